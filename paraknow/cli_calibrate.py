"""`paraknow calibrate`: methods on the ladder of pairs. Thin, like the rest of the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from paraknow.errors import ParaKnowError
from paraknow.screen import carry_out, emit, note, say, table


def calibrate(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Folders built by `paraknow demo build --ladder`; the shipped one.")
    ] = None,
    rung: Annotated[list[str] | None, typer.Option(help="Pairs to use; clone, sibling, stranger, equal.")] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Methods with their controls: seeking, or transport:maps=ridge.")
    ] = None,
    beside: Annotated[
        list[str] | None, typer.Option(help="Further methods beside the first one, without controls.")
    ] = None,
    seed: int = 0,
    resamples: Annotated[int, typer.Option(min=200, help="Bootstrap resamples behind intervals.")] = 2000,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many test items per group.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also keep the result in this file (JSON).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """How much never-shown knowledge each method moves, on pairs from a known answer to none at all."""
    from paraknow import resources
    from paraknow.demo.rungs import LADDER
    from paraknow.runs import calibrate as ladder
    from paraknow.runs import store

    jobs = ladder.plan(
        folders or [resources.assets()],
        rung or list(LADDER),
        method or [ladder.KIN, "transport", "seeking"],
        beside or [],
        seed,
        {"resamples": resamples, "limit": limit},
    )
    warm: dict[str, Any] = {}
    runs = ladder.carry_out(jobs, lambda run: carry_out(run, warm=warm), note)
    found = ladder.read(jobs, runs)
    command = "paraknow " + " ".join(sys.argv[1:])
    for path in filter(None, (store.runs_folder() / ladder.FILE, out)):
        ladder.save(found, path, command)
    if as_json:
        emit({"command": command, **vars(found)})
    else:
        table([_shown(row) for row in found.pooled], "Share of the teacher's never-shown knowledge that arrived")
        pairs = {row["rung"]: row for row in found.pooled}  # the same for all models of a pair
        alike = [{"pair": rung, **{n: row[n] for n in ladder.PREDICTORS}} for rung, row in pairs.items()]
        table(alike, "How alike the pairs are: means")
        table(found.predictors, "What predicts it: rank correlation of shares with likeness, over pairs")
        say("\n".join(found.words))
    if found.passed is False:
        raise ParaKnowError("the instrument failed its check on the ladder; see the first sentence.")


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    from paraknow.runs.calibrate import share_words

    return {
        "pair": row["rung"],
        "model": row["model"],
        "pairs": row["worlds"],
        "share arrived (95 %)": share_words(row),
        "never shown": f"{row['accuracy']:.2f}",
        "known": f"{row['known']:.2f}",
        "above all controls": f"{row['above_controls']} of {row['worlds']}",
    }
