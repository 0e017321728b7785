"""`paraknow cross`: located on one task, measured on another. Thin, like the rest of the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from paraknow.cli_sweep import OneByOne, RayAddress, Workers, side_by_side
from paraknow.errors import RunError
from paraknow.screen import carry_out, emit, interval, say, table


def cross(
    config: Annotated[Path, typer.Argument(help="A run's YAML file.")],
    task: Annotated[
        list[str] | None, typer.Option(help="Tasks to locate and to measure on; the config's own. Repeatable.")
    ] = None,
    override: Annotated[list[str] | None, typer.Option("--set", help="Override a setting: locate.seeds=16.")] = None,
    name: Annotated[str | None, typer.Option(help="What its sweeps are called; the file's name by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also keep the result in this file (JSON).")] = None,
    ray_address: RayAddress = None,
    one_by_one: OneByOne = False,
    workers: Workers = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Locate on every task, tune and measure on every task: a matrix of runs, one table. A second call goes on."""
    from paraknow import config as configs
    from paraknow.runs import cross as matrix
    from paraknow.runs import store

    wanted = configs.load(config, override)
    warm: dict[str, Any] = {}  # one pair for all cells
    with side_by_side(ray_address, one_by_one, workers) as (cluster, told):
        found = matrix.run(
            wanted,
            task or list(wanted.task),
            name or f"cross-{config.stem}",
            execute=lambda run: carry_out(run, warm=warm),
            note=told,
            cluster=cluster,
        )
    command = "paraknow " + " ".join(sys.argv[1:])
    for path in filter(None, (store.runs_folder() / matrix.FILE, out)):
        matrix.save(found, path, command)
    if as_json:
        emit({"command": command, **vars(found)})
    else:
        table([_shown(cell) for cell in found.cells], f"{found.title}: difference in accuracy to the student")
        say("\n".join(found.words))
    if lacking := matrix.missing(found):
        first = lacking[0]
        raise RunError(
            f"{len(lacking)} cells are missing, the first of them located on {first['located']}, measured on "
            f"{first['measured']}: {first['error'] or str(first['state']) + '.'} The same command tries again."
        )


def _shown(cell: dict[str, Any]) -> dict[str, Any]:
    made = {
        "measured on": cell["measured"],
        "items": "all" if cell["scope"] == "all" else cell["scope"],
        "located on": ("nothing (noise)" if cell["located"] is None else cell["located"]) + " *" * cell["own"],
        "n": cell["n"],
        "difference to student": interval(cell["delta"], cell["delta_ci"]),
    }
    for name in ("noise", "random_window"):
        held = cell["against"].get(name, {})
        made[f"to {name}"] = interval(held.get("delta"), held.get("delta_ci"))
    return made
