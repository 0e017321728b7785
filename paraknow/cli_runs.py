"""`paraknow runs …`: list, show, log, compare, cancel, resume, delete and more. Thin, like the rest of the command line."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from paraknow.errors import InputError
from paraknow.screen import budget_table, budgets_of, delta_table, deltas_of, emit, table

app = typer.Typer(help="List, show, compare, cancel, resume and delete runs.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


@app.command("list")
def runs_list(as_json: Json = False) -> None:
    """All runs, newest first."""
    from paraknow.runs import store

    rows = [*store.listing(), *(store.summary(run) for run in store.recorded_runs())]
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


@app.command("items")
def runs_items(
    run_id: str,
    model: Annotated[str | None, typer.Option(help="Whose answers; the examined method's by default.")] = None,
    against: Annotated[str, typer.Option(help="The model it is held against.")] = "student",
    show: Annotated[
        list[str] | None, typer.Option(help="gained, lost, both right, both wrong or alike; all by default.")
    ] = None,
    search: Annotated[str, typer.Option(help="Words that the question, the target or an answer must hold.")] = "",
    task: Annotated[list[str] | None, typer.Option(help="Only this suite.")] = None,
    group: Annotated[list[str] | None, typer.Option(help="Only this group: known, shown, never_shown, all.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Print at most so many; --out keeps all.")] = 20,
    out: Annotated[Path | None, typer.Option(help="Keep what is found: a .parquet or .csv file.")] = None,
    as_json: Json = False,
) -> None:
    """Item by item: what was asked, what two models answered, what was gained and lost."""
    import pandas as pd

    from paraknow import files
    from paraknow.evaluate import items
    from paraknow.runs import store

    run = store.find(run_id)
    file = run.path("evaluate", "items.parquet")
    if not file.is_file():
        raise InputError(f"run {run.id} has no measured items.")
    if out and out.suffix not in (".parquet", ".csv"):
        raise InputError(f"--out {out}: the name must end in .parquet or .csv.")
    whole = pd.read_parquet(file)
    chosen = model or run.config().method.title
    found = items.select(items.lines(whole, chosen, against), search, show or (), task or (), group or ())
    if out and out.suffix == ".csv":
        files.write_text(out, found.to_csv(index=False))
    elif out:
        files.write_table(out, found)
    head = found.head(limit)
    if as_json:
        rows = json.loads(head.to_json(orient="records"))
        emit({"run": run.id, "model": chosen, "against": against, "found": len(found), "items": rows})
        return
    names = ["task", "group", "doc_id", "change", "prompt", "target", "answer", "answer_reference", "moved"]
    rows = [{n: v if v == v else None for n, v in line.items()} for line in head[names].to_dict("records")]
    table(
        [{n: _short(v) for n, v in row.items()} for row in rows],
        f"{chosen} against {against}: {len(found)} items, {len(head)} of them here",
    )


def _short(value: Any, most: int = 80) -> Any:
    """Text on one line, its middle left out where it is long."""
    if not isinstance(value, str):
        return value
    line = " ".join(value.split())
    return line if len(line) <= most else f"{line[: most // 2]} … {line[-most // 2 :]}"


@app.command("log")
def runs_log(
    run_id: str,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many lines of its end.")] = 40,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
) -> None:
    """The end of a run's log (worker.log in its folder)."""
    from paraknow.runs import store
    from paraknow.runs.events import Lines, harmless

    run = store.find(run_id)
    log = Lines(run.path("worker.log"))
    if not log.path.is_file() and not (follow and run.status().get("state") in ("queued", "running")):
        raise InputError(f"run {run.id} has written no log.")
    found = log.last(lines)
    while True:
        for line in found:
            print(harmless(line), flush=True)
        if not follow:
            return
        ended = run.status().get("state") not in ("queued", "running")  # asked before reading: nothing is missed
        found = log.new()
        if ended and not found:
            return
        if not found:
            time.sleep(0.5)


@app.command("rescore")
def runs_rescore(run_id: str) -> None:
    """Compute a run's intervals and shares anew from its stored items, by today's formulas."""
    from paraknow.runs import rescore, store

    run = store.find(run_id)
    if run.recorded:
        raise InputError(f"run {run.id} came with the package and stays as it is.")
    print(f"Run {run.id}: {rescore.rescore(run)} rows are written anew.")


@app.command("cancel")
def runs_cancel(run_id: str) -> None:
    """Stop a run at its next step, at the latest after ten seconds; what it has finished is kept."""
    import time

    from paraknow.runs import queue, store

    run = store.find(run_id)
    if run.recorded or run.status().get("state") not in ("queued", "running", "lost"):
        raise InputError(f"run {run.id} is not queued or running.")
    run.cancel()
    until = time.monotonic() + queue.HARD + 5
    while run.status().get("state") == "running" and time.monotonic() < until:
        time.sleep(0.2)
        queue.enforce_cancel(run)
    state = run.status().get("state")
    print(f"Run {run.id} is asked to stop." if state == "running" else f"Run {run.id} is {state}.")


@app.command("resume")
def runs_resume(run_id: str) -> None:
    """Queue a failed, cancelled or lost run again; it goes on after its last finished stage."""
    from paraknow.runs import queue, store

    run = store.find(run_id)
    if run.recorded or run.status().get("state") not in ("failed", "cancelled", "lost"):
        raise InputError(f"run {run.id} is not failed, cancelled or lost.")
    queue.resume(run)
    print(f"Run {run.id} is queued again.")


@app.command("priority")
def runs_priority(
    run_id: str,
    priority: Annotated[int | None, typer.Argument(help="Higher goes first; without it, before all others.")] = None,
) -> None:
    """Let a queued run be taken earlier or later."""
    from paraknow.runs import queue, store

    run = store.find(run_id)
    if priority is None:
        queue.first(run)
    else:
        queue.prioritise(run, priority)
    place = [row["id"] for row in queue.waiting() if row["state"] == "queued"].index(run.id)
    print(f"Run {run.id} is number {place + 1} in the queue.")


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
