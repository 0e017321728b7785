"""`paraknow runs …`: list, show, compare, cancel, delete. Thin, like the rest of the command line."""

from __future__ import annotations

from typing import Annotated

import typer

from paraknow.errors import InputError
from paraknow.screen import budget_table, budgets_of, delta_table, deltas_of, emit, table

app = typer.Typer(help="List, show, compare, cancel and delete runs.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


@app.command("list")
def runs_list(as_json: Json = False) -> None:
    """All runs, newest first."""
    from paraknow.runs import store

    rows = [store.summary(run) for run in store.all_runs()]
    if as_json:
        emit({"runs": rows})
    else:
        table([{k: r[k] for k in ("id", "state", "stage", "method", "task")} for r in rows], "Runs")


@app.command("show")
def runs_show(run_id: str, as_json: Json = False) -> None:
    """Status and results of one run."""
    from paraknow.runs import store

    run = store.find(run_id)
    rows = deltas_of(run)
    if as_json:
        emit(
            {
                **store.summary(run),
                "status": run.status(),
                "folder": str(run.folder),
                "rows": rows,
                "budgets": budgets_of(run),
            }
        )
        return
    table([store.summary(run)], run.id)
    if rows:
        delta_table(rows)
        budget_table(run)


@app.command("compare")
def runs_compare(first: str, second: str, as_json: Json = False) -> None:
    """The settings in which two runs differ, and their deltas side by side."""
    from paraknow.runs import compare, store

    pair = [store.find(first), store.find(second)]
    settings = compare.differences(*(run.config() for run in pair))
    results = compare.results(*(deltas_of(run) for run in pair))
    if as_json:
        emit({"runs": [run.id for run in pair], "settings": settings, "results": results})
        return
    table(settings, "Settings that differ")
    table(results, "Deltas to the student")


@app.command("cancel")
def runs_cancel(run_id: str) -> None:
    """Stop a run at its next step; what it has finished is kept."""
    from paraknow.runs import store

    run = store.find(run_id)
    if run.recorded or run.status().get("state") not in ("queued", "running", "lost"):
        raise InputError(f"run {run.id} is not queued or running.")
    run.cancel()
    print(f"Run {run.id} is asked to stop.")


@app.command("delete")
def runs_delete(
    run_id: str, yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False
) -> None:
    """Delete a run folder."""
    from paraknow.runs import store

    run = store.find(run_id)
    if not yes and not typer.confirm(f"Delete {run.folder} for good?"):
        raise typer.Exit(0)
    store.delete(run)
    print(f"Run {run.id} is deleted.")
