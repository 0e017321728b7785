"""`paraknow sweep`, `paraknow recipes` and what `paraknow run --dry-run` prints. Thin, like the rest of the command
line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paraknow.errors import InputError, RunError
from paraknow.screen import PointBars, carry_out, emit, note, table

if TYPE_CHECKING:
    from paraknow.config import RunConfig
    from paraknow.dryrun import DryRun
    from paraknow.runs.cluster import Cluster

RayAddress = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="Carry out on this Ray cluster: auto, HOST:PORT or ray://HOST:PORT."),
]
OneByOne = Annotated[bool, typer.Option("--one-by-one", help="One after the other in this process, without Ray.")]
Workers = Annotated[int | None, typer.Option(min=1, help="With Ray: at most so many runs at once.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads of every run; 1 for small models, else all cores.")
]
DrySweep = Annotated[bool, typer.Option("--dry-run", help="Only print what it would cost; nothing is loaded.")]
Gpus = Annotated[int | None, typer.Option(min=1, max=100_000, help="With --dry-run: so many runs side by side.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
recipes_app = typer.Typer(help="The papers' settings, shipped as configs.", invoke_without_command=True)


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command("sweep")(sweep)
    app.add_typer(recipes_app, name="recipes")


# -- sweeps ----------------------------------------------------------------------------------------------


def sweep(
    source: Annotated[str, typer.Argument(metavar="SWEEP.yaml", help="A sweep's file; with --resume also its name.")],
    resume: Annotated[bool, typer.Option("--resume", help="Only go on with a sweep that was begun.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also keep the table in this file (.parquet or .csv).")] = None,
    ray_address: RayAddress = None,
    one_by_one: OneByOne = False,
    workers: Workers = None,
    threads: Threads = None,
    dry: DrySweep = False,
    gpus: Gpus = None,
    as_json: Json = False,
) -> None:
    """One config at several settings: every point a run, one table at the end. A second call goes on.

    With the extra paraknow[ray], points are carried out side by side on a Ray of this machine, or on a cluster; without
    it, one after the other. Both find the same.
    """
    from paraknow.runs import sweep as sweeps

    if dry:
        if out is not None or resume or ray_address or one_by_one or workers or threads:
            raise InputError("--dry-run carries nothing out: of the other options it takes --gpus and --json alone.")
        _cost(source, gpus or 1, as_json)
        return
    if gpus is not None:
        raise InputError("--gpus: how many runs side by side --dry-run counts with; a sweep takes --workers.")
    if out is not None and out.suffix not in (".parquet", ".csv"):
        raise InputError(f"--out {str(out)!r}: the table is kept as .parquet or .csv.")
    with side_by_side(ray_address, one_by_one, workers) as (cluster, told):
        folder = sweeps.run(
            source, None, lambda run, warm: carry_out(run, warm=warm), told, resume, cluster=cluster, threads=threads
        )
    if out is not None:
        _keep(sweeps.table(folder), out)
    rows = sweeps.rows(folder)
    if as_json:
        runs = {row["point"]: row["run"] for row in rows}
        emit({"sweep": folder.name, "folder": str(folder), "runs": list(runs.values()), "rows": rows})
    else:
        table([_shown(row) for row in rows], folder.name)
        print(f"Sweep {folder.name} is in {folder}.")
    if broken := sweeps.unfinished(folder):
        total = len({row["point"] for row in rows})
        first = next(row for row in rows if row["point"] == broken[0])
        raise RunError(
            f"{len(broken)} of {total} points failed, the first of them point {broken[0]}: {first['error'] or ''} "
            f"`paraknow sweep {folder.name} --resume` tries again."
        )


def _cost(source: str, gpus: int, as_json: bool) -> None:
    """What a sweep would cost on so many GPUs: for --dry-run."""
    from paraknow.runs import sweepcost
    from paraknow.runs.worker import quiet

    quiet()
    found = sweepcost.plan(source)
    if as_json:
        emit({"sweep": found.name, "cost": found.as_dict(gpus)})
        return
    table([row | {"flops": _power(row["flops"])} for row in found.rows()], found.name)
    for line in found.words(gpus):
        print(line)


@contextmanager
def side_by_side(
    address: str | None, one_by_one: bool, workers: int | None
) -> Iterator[tuple[Cluster | None, Callable[[str], None]]]:
    """(the Ray that runs are carried out on, or None for one after the other; where notes go)."""
    from paraknow.runs import cluster

    if one_by_one and (address or workers):
        raise InputError("--one-by-one needs no Ray: leave out --ray-address and --workers.")
    if one_by_one or not (address or workers or cluster.installed()):
        yield None, note
        return
    with PointBars() as bars, cluster.Cluster(address, workers, bars.show) as found:
        yield found, bars.note


def _keep(frame: Any, out: Path) -> None:
    from paraknow import files

    if out.suffix == ".csv":
        files.write_text(out, frame.to_csv(index=False))
    else:
        files.write_table(out, frame)


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """A row as people read it, intervals beside every number."""
    from paraknow.runs.sweep import KEPT
    from paraknow.screen import interval

    about = {k: v for k, v in row.items() if k not in (*KEPT, "run", "state", "error")}
    return {
        **about,
        "run": row["run"],
        "state": row["state"],
        "suite": row["suite"],
        "group": row["group"],
        "model": row["model"],
        "accuracy": interval(row["accuracy"], row["ci"]),
        "difference to student": interval(row["delta"], row["delta_ci"]),
        "share arrived": interval(row["share"], row["share_ci"]),
        "above all controls": {True: "yes", False: "no", None: "–"}[row["claim"]],
    }


# -- recipes ---------------------------------------------------------------------------------------------


@recipes_app.callback()
def recipes_list(context: typer.Context, as_json: Json = False) -> None:
    """All recipes: names, models, task, method, and what was published for them (never a result of ours)."""
    if context.invoked_subcommand:
        return
    from paraknow import recipes

    found = recipes.catalogue().values()
    if as_json:
        emit({"recipes": [recipe.summary() for recipe in found]})
        return
    table([_line(recipe.summary()) for recipe in found], "Recipes; the figures are the papers', not ours")


def _line(summary: dict[str, Any]) -> dict[str, Any]:
    figures = []
    for figure in summary["published"]:
        setting = f" ({figure['setting']})" if figure["setting"] else ""
        figures.append(f"{figure['model']} {figure['value']:.2f}{setting}")
    return {
        **{k: summary[k] for k in ("name", "teacher", "student", "task", "method")},
        "published": "; ".join(figures) or None,
        "needs": "; ".join(summary["needs"]) or None,
    }


@recipes_app.command("show")
def recipes_show(name: str, as_json: Json = False) -> None:
    """A recipe's config as YAML, to be kept, changed and run."""
    from paraknow import recipes

    recipe = recipes.find(name)
    if as_json:
        emit({**recipe.summary(), "config": recipe.config})
    else:
        print(recipe.yaml(), end="")


# -- the dry run -----------------------------------------------------------------------------------------


def dry_run(config: RunConfig, as_json: bool = False) -> None:
    """Print what a run of this config would be: for `paraknow run --dry-run`."""
    from paraknow.dryrun import dry_run
    from paraknow.runs.worker import quiet

    quiet()
    found = dry_run(config)
    if as_json:
        emit({"dry_run": found.as_dict()})
        return
    _tables(found)


def _tables(found: DryRun) -> None:
    table(found.models, "Models")
    table(found.blocks, "Matrices that take part")
    table(found.methods, "What each method moves")
    table([{**row, "flops": _power(row["flops"])} for row in found.passes], "Passes over data")
    table([{**row, "flops": _power(row["flops"])} for row in found.beside], "What is computed beside passes")
    rows = [
        {"stage": stage, "needs (GiB)": _in_gib(need)} | {k: _in_gib(v) for k, v in found.parts[stage].items()}
        for stage, need in found.memory.items()
    ]
    table(rows, "Memory at its peak, and what it is for")
    seconds = [
        {k: round(v, 1) if isinstance(v, float) else v for k, v in row.items()} for row in found.times.get("stages", ())
    ]
    if seconds:
        table(seconds, "Seconds, by earlier runs")
    print(f"Passes: teacher {_power(found.flops['teacher'])}, student {_power(found.flops['student'])} FLOPs", end="")
    print(" at least; some counts are unknown." if found.unknown else ".")
    for line in (*found.unknown, *found.notes):
        print(f"- {line}")


def _in_gib(size: int) -> float:
    return round(size / 2**30, 2)


def _power(value: float | None) -> str | None:
    return None if value is None else f"{value:.2e}"
