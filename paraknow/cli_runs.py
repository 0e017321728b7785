"""`paraknow runs …`: list, show, compare, landscape, export and more. Thin, like the rest of the command line."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from paraknow.errors import InputError
from paraknow.screen import budget_table, budgets_of, delta_table, deltas_of, emit, note, say, table

app = typer.Typer(help="List, show, compare, export, import, cancel, resume and delete runs.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


@app.command("list")
def runs_list(as_json: Json = False) -> None:
    """All runs, newest first."""
    from paraknow.runs import store

    rows = [*store.listing(), *(store.summary(run) for run in store.recorded_runs())]
    if as_json:
        emit({"runs": rows})
    else:
        shown = [{k: r[k] for k in ("id", "name", "state", "stage", "method", "task")} for r in rows]
        kept = {"recorded": "with the package", "imported": "imported"}
        for line, row in zip(shown, rows, strict=True):
            line["priority"] = row.get("priority") if row["state"] == "queued" else None
            line["read-only"] = next((words for name, words in kept.items() if row[name]), None)
        table(shown, "Runs")


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
    about = store.summary(run)
    for name in ("created", "finished"):
        about[name] = about[name] and time.strftime("%d %b %Y, %H:%M:%S", time.localtime(about[name]))
    table([{"": name, "value": value} for name, value in about.items() if value is not None], run.id)
    if rows:
        delta_table(rows)
        budget_table(run)


@app.command("compare")
def runs_compare(first: str, second: str, as_json: Json = False) -> None:
    """What differs between two runs in settings and surroundings, their deltas, and both on the same items."""
    from paraknow.runs import compare, store

    pair = store.find(first), store.find(second)
    settings = compare.differences(*(run.config() for run in pair))
    results = compare.results(*(deltas_of(run) for run in pair))
    found = compare.across(*pair)
    if as_json:
        around = {"environment": found.environment, "notes": found.notes, "paired": found.rows}
        emit({"runs": [run.id for run in pair], "settings": settings, "results": results, **around})
        return
    table(settings, "Settings that differ")
    table(found.environment, "Versions, devices, models and data that differ")
    table(results, "Deltas to the student")
    for sentence in found.notes:
        note(sentence)
    names = ["suite", "group", "model", "n", "accuracy_first", "accuracy_second", "delta", "delta_ci", "p_holm"]
    table([{k: row[k] for k in names} for row in found.rows], "The second run against the first, item by item")


@app.command("landscape")
def runs_landscape(
    x: Annotated[str, typer.Option(help="A measure of similarity: cka, r2, kinship, …")] = "cka",
    y: Annotated[str, typer.Option(help="A measure of knowledge: share, gain or delta.")] = "share",
    method: Annotated[list[str] | None, typer.Option(help="Only this method; all examined ones by default.")] = None,
    kind: Annotated[list[str] | None, typer.Option(help="Also: baseline, control, known answer. Repeatable.")] = None,
    here: Annotated[bool, typer.Option("--here", help="Without the pairs that came with the package.")] = False,
    as_json: Json = False,
) -> None:
    """Similarity against transferred knowledge over all finished runs, with its correlation over pairs."""
    from paraknow.runs import landscape, summaries

    rows = landscape.table(("examined", *(kind or ())), shipped=not here)
    if method:
        if unknown := [m for m in method if m not in set(rows.model)]:
            raise InputError(
                f"--method {unknown[0]!r}: no finished run has it; there are {', '.join(dict.fromkeys(rows.model))}."
            )
        rows = rows[rows.model.isin(method)]
    found = landscape.correlations(rows, x, y)
    lines: Any = summaries.rows(rows)
    if as_json:
        emit({"x": x, "y": y, "correlations": {k: vars(v) for k, v in found.items()}, "rows": lines})
        return
    names = ["source", "run", "model", "pair", "lineage", "kind", x, y, f"{y}_lo", f"{y}_hi"]
    table([{n: row[n] for n in names} for row in lines], f"{landscape.SIMILARITY[x]} against {landscape.KNOWLEDGE[y]}")
    for where, correlation in found.items():
        say(f"{where.capitalize()}: {correlation.words}")
    say("Similarity is not transfer: what predicts it over these pairs may not in others.")


@app.command("export")
def runs_export(
    run_id: str,
    out: Annotated[Path, typer.Option("--out", "-o", help="The bundle: a file whose name ends in .zip.")],
    adapters: Annotated[
        bool, typer.Option("--adapters", help="With the adapters and checkpoints that the run made.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file of that name.")] = False,
    as_json: Json = False,
) -> None:
    """One run as one file, to look at on another machine; paths of this one are shortened in it."""
    from paraknow.runs import bundle, store

    run = store.find(run_id)
    path = bundle.export(run, out, adapters, force)
    size = path.stat().st_size
    if as_json:
        emit({"run": run.id, "file": str(path), "bytes": size})
    else:
        print(f"Run {run.id} is in {path} ({size / 2**20:.1f} MiB).")


@app.command("import")
def runs_import(file: Path, as_json: Json = False) -> None:
    """A bundle as a read-only run, after everything in it has been checked."""
    from paraknow.runs import bundle

    run, known = bundle.import_(file)
    if as_json:
        emit({"run": run.id, "folder": str(run.folder), "known": known})
    elif known:
        print(f"This content is here already: run {run.id}.")
    else:
        print(f"Imported, read-only, as run {run.id}.")


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
    from paraknow import files
    from paraknow.evaluate import items
    from paraknow.runs import artifacts, store

    run = store.find(run_id)
    if not run.path("evaluate", "items.parquet").is_file():
        raise InputError(f"run {run.id} has no measured items.")
    if out and out.suffix not in (".parquet", ".csv"):
        raise InputError(f"--out {out}: the name must end in .parquet or .csv.")
    whole = artifacts.table(run.folder, "evaluate/items.parquet")
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
def runs_rescore(run_id: str, as_json: Json = False) -> None:
    """Compute a run's intervals and shares anew from its stored items, by today's formulas."""
    from paraknow.runs import rescore, store

    run = store.find(run_id)
    rows = rescore.rescore(run)
    _told(as_json, f"Run {run.id}: {rows} rows are written anew.", run=run.id, rows=rows)


@app.command("cancel")
def runs_cancel(run_id: str, as_json: Json = False) -> None:
    """Stop a run at its next step, at the latest after ten seconds; what it has finished is kept."""
    from paraknow.runs import queue, store

    run = store.find(run_id)
    run.refuse_read_only()
    if run.status().get("state") not in ("queued", "running", "lost"):
        raise InputError(f"run {run.id} is not queued or running.")
    run.cancel()
    until = time.monotonic() + queue.HARD + 5
    while run.status().get("state") == "running" and time.monotonic() < until:
        time.sleep(0.2)
        queue.enforce_cancel(run)
    state = run.status().get("state")
    said = f"Run {run.id} is asked to stop." if state == "running" else f"Run {run.id} is {state}."
    _told(as_json, said, run=run.id, state=state)


@app.command("resume")
def runs_resume(run_id: str, as_json: Json = False) -> None:
    """Queue a failed, cancelled or lost run again; it goes on after its last finished stage."""
    from paraknow.runs import queue, store

    run = store.find(run_id)
    queue.resume(run)
    _told(as_json, f"Run {run.id} is queued again.", run=run.id, state=run.status().get("state"))


@app.command("priority", context_settings={"ignore_unknown_options": True})  # numbers below 0 are no options
def runs_priority(
    run_id: str,
    priority: Annotated[int | None, typer.Argument(help="Higher goes first; without it, before all others.")] = None,
    as_json: Json = False,
) -> None:
    """Let a queued run be taken earlier or later."""
    from paraknow.runs import queue, store

    run = store.find(run_id)
    if priority is None:
        queue.first(run)
    else:
        queue.prioritise(run, priority)
    queued = [row["id"] for row in queue.waiting() if row["state"] == "queued"]
    place = queued.index(run.id) + 1 if run.id in queued else None
    said = f"is number {place} in the queue" if place else "has been taken meanwhile"
    _told(as_json, f"Run {run.id} {said}.", run=run.id, place=place)


@app.command("delete")
def runs_delete(
    run_id: str,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    as_json: Json = False,
) -> None:
    """Delete a run folder."""
    from paraknow.runs import store

    run = store.find(run_id)
    if not yes and not typer.confirm(f"Delete {run.folder} for good?"):
        raise typer.Exit(0)
    store.delete(run)
    _told(as_json, f"Run {run.id} is deleted.", run=run.id)


def _told(as_json: bool, sentence: str, **facts: Any) -> None:
    """What was done, in a sentence or as facts."""
    if as_json:
        emit(facts)
    else:
        print(sentence)
