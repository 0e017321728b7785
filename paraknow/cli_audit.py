"""`paraknow audit`: what two models know, before anything is moved. Thin, like the rest of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from paraknow.errors import InputError
from paraknow.screen import Bars, emit, interval, say, table


def audit(
    task: Annotated[str, typer.Argument(help="A task, or a fact table (.csv).")],
    teacher: Annotated[str, typer.Option(help="demo:NAME, a local folder, or a hub id.")],
    student: Annotated[str, typer.Option(help="demo:NAME, a local folder, or a hub id.")],
    out: Annotated[
        Path | None, typer.Option(help="Write the table back with groups made from what was found, for a run (.csv).")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws candidates, folds, and which facts will be shown.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many facts per group.")] = None,
    resamples: Annotated[int, typer.Option(min=200, help="Bootstrap resamples behind intervals.")] = 2000,
    batch_size: Annotated[int, typer.Option(min=1, help="Requests per forward pass.")] = 128,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """What teacher and student know of the same facts, in bits, and which facts there are to transfer."""
    from paraknow import checkpoints, data, facts
    from paraknow.runs.worker import quiet

    for name, value, known in (("dtype", dtype, tuple(checkpoints.BYTES)), ("device", device, ("auto", "cpu", "cuda"))):
        if value not in known:
            raise InputError(f"--{name} {value!r}: choose one of {', '.join(known)}.")
    own = None
    if out is not None:
        if not data.is_table(task):
            raise InputError("--out writes a fact table back, so TASK must be one (.csv).")
        if out.suffix.lower() != ".csv":
            raise InputError(f"--out {str(out)!r}: the table is written as .csv.")
        own = facts.read(Path(task).expanduser(), seed)
    quiet()
    from paraknow.evaluate import knowledge

    given: dict[str, Any] = {"seed": seed, "limit": limit, "resamples": resamples, "batch_size": batch_size}
    with Bars() as bars:
        found = knowledge.audit_pair(teacher, student, task, **given, dtype=dtype, device=device, stage=bars.stage)
    groups, refusal = {}, None
    if own and out:
        try:
            groups = knowledge.sorted_groups(found, own, seed)
            facts.write(own, groups, out)
        except InputError as error:
            refusal = error  # what was measured is shown all the same
    written = {"out": str(out), "written": _tally(own, groups)} if groups else {}
    if as_json:
        emit({**_as_json(found), **written})
    else:
        table([_shown(row) for row in found.groups], f"What {teacher} (teacher) and {student} (student) know")
        table([{"group": g, **c} for g, c in found.counts.items()], "Known to (first-ranked answer right)")
        say("\n".join(sentence[:1].upper() + sentence[1:] for sentence in found.words))
        if groups:
            counts = ", ".join(f"{n} {g.replace('_', ' ')}" for g, n in _tally(own, groups).items())
            print(f"{out}: {counts} (the teacher does not know them, or they were not asked).")
    if refusal:
        raise refusal


def _as_json(found: Any) -> dict[str, Any]:
    rows = found.facts.astype(object).where(found.facts.notna(), None).to_dict("records")
    return {**{k: v for k, v in vars(found).items() if k != "facts"}, "facts": rows}


def _tally(own: Any, groups: dict[Any, str]) -> dict[str, int]:
    """Facts written by group, and how many were left out."""
    made = {name: sum(g == name for g in groups.values()) for name in ("known", "shown", "never_shown")}
    return made | {"left_out": len({fact.key for fact in own.facts}) - len(groups)}


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"group": row["group"], "n": row["n"]}
    for name in ("teacher", "student"):
        made[f"{name}: accuracy (95 %)"] = interval(row[f"{name}_accuracy"], row[f"{name}_ci"])
        made[f"{name}: bits (95 %)"] = interval(row[f"{name}_bits"], row[f"{name}_bits_ci"])
    return {**made, "surplus in bits (95 %)": interval(row["surplus"], row["surplus_ci"])}
