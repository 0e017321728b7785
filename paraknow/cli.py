"""The command line. Thin: every command calls one library function and prints its result.

Exit codes: 0 done; 2 bad input; 3 memory or device; 4 a run failed; 130 cancelled.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from paraknow import (
    cli_ask,
    cli_audit,
    cli_benchmarks,
    cli_calibrate,
    cli_cross,
    cli_diagnose,
    cli_glossary,
    cli_models,
    cli_report,
    cli_runs,
    cli_sweep,
)
from paraknow.errors import Cancelled, InputError, ParaKnowError
from paraknow.screen import budget_table, budgets_of, carry_out, delta_table, deltas_of, emit, note, table

app = typer.Typer(
    help="Move knowledge between language models as weights, and see whether it really moved.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
demo_app = typer.Typer(help="The whole story on the built-in pair.", invoke_without_command=True)
app.add_typer(cli_runs.app, name="runs")
app.command("ask")(cli_ask.ask)
app.command("audit")(cli_audit.audit)
app.command("cross")(cli_cross.cross)
app.command("calibrate")(cli_calibrate.calibrate)
app.command("benchmarks")(cli_benchmarks.benchmarks)
app.command("models")(cli_models.models)
app.command("diagnose")(cli_diagnose.diagnose)
app.command("glossary")(cli_glossary.glossary)
app.command("report")(cli_report.report)
app.command("figure")(cli_report.figure)
cli_sweep.register(app)
app.add_typer(demo_app, name="demo")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Config = Annotated[Path, typer.Argument(help="A run's YAML file.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override a setting: locate.seeds=16. Repeatable.")]


def _finish(run: Any, as_json: bool, extra: dict[str, Any] | None = None) -> None:
    """What a run came to: its deltas, or the tables in `extra` (title → rows)."""
    known = {"run": run.id, "folder": str(run.folder), **(extra or {})}
    has_rows = run.path("evaluate", "deltas.json").is_file()
    if as_json:
        emit({**known, **({"rows": deltas_of(run), "budgets": budgets_of(run)} if has_rows else {})})
        return
    if has_rows:
        delta_table(deltas_of(run))
        budget_table(run)
    for title, rows in (extra or {}).items():
        table(rows, title)
    print(f"Run {run.id} is in {run.folder}.")


@app.command("run")
def run_command(
    config: Annotated[Path | None, typer.Argument(help="A run's YAML file.")] = None,
    override: Set = None,
    until: Annotated[str, typer.Option(help="Stop after this stage.")] = "diagnose",
    resume: Annotated[str | None, typer.Option(help="Go on with a broken run, by id.")] = None,
    like: Annotated[
        str | None, typer.Option(help="A new run with the settings of this one, by id; --set changes some.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Queue it for the worker instead.")] = False,
    priority: Annotated[int, typer.Option(help="With --detach: higher goes first.")] = 0,
    print_config: Annotated[bool, typer.Option("--print-config", help="Show every setting and stop.")] = False,
    recipe: Annotated[str | None, typer.Option(help="Run a shipped recipe by name; see `paraknow recipes`.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check shapes, ranks, memory and passes without weights, and stop.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Carry out a run: locate, similarity, align, tune, evaluate, diagnose."""
    from paraknow import config as configs
    from paraknow import recipes
    from paraknow.checks import check
    from paraknow.runs import queue, store
    from paraknow.runs.worker import STAGE_NAMES

    if until not in STAGE_NAMES:
        raise InputError(f"--until {until!r}: choose one of {', '.join(STAGE_NAMES)}.")
    if resume:
        if config or override or recipe or like or dry_run:
            raise InputError("--resume goes on with a run as it was set; leave every other setting out.")
        run = store.find(resume)
        run.refuse_read_only()
        if run.locked():
            raise InputError(f"run {run.id} is being worked on by another process.")
        check(run.config())
    else:
        if sum(source is not None for source in (config, recipe, like)) != 1:
            raise InputError("give a config file, --recipe NAME or --like RUN, or --resume with a run's id.")
        if priority and not detach:
            raise InputError("--priority orders the queue; it needs --detach.")
        if like:
            file = store.find(like).path("config.yaml")
            wanted = configs.load(file, override)
        elif recipe:
            wanted = configs.parse(configs.overridden(recipes.find(recipe).config, override), f"recipe {recipe}")
        else:
            assert config is not None
            wanted = configs.load(config, override)
        if print_config:
            print(configs.dump(wanted), end="")
            return
        if dry_run:
            cli_sweep.dry_run(wanted, as_json)
            return
        if detach:
            run = queue.submit(wanted, priority=priority)
            emit({"run": run.id, "folder": str(run.folder)}) if as_json else print(f"Queued as {run.id}.")
            return
        check(wanted)
        run = store.create(wanted, state="running")
    try:
        carry_out(run, until)
    except Cancelled as stopped:
        raise Cancelled(f"{stopped} It goes on with `paraknow run --resume {run.id}`.") from None
    from paraknow.runs import summaries

    found = {"locate": summaries.located, "similarity": summaries.compared}.get(until)
    _finish(run, as_json, found(run) if found else None)


@app.command()
def locate(config: Config, override: Set = None, as_json: Json = False) -> None:
    """Sensitivity, neurons, layers and blocks of a config, without a transfer."""
    run_command(config, override, until="locate", as_json=as_json)


@app.command()
def similarity(config: Config, override: Set = None, as_json: Json = False) -> None:
    """How alike the two models of a config are: CKA, stitching, weights, each beside its null."""
    run_command(config, override, until="similarity", as_json=as_json)


@app.command()
def evaluate(
    config: Config,
    override: Set = None,
    benchmark: cli_benchmarks.Names = None,
    shots: cli_benchmarks.Shots = None,
    shots_file: cli_benchmarks.ShotsFile = None,
    limit: cli_benchmarks.Limit = None,
    chat: cli_benchmarks.Chat = None,
    max_tokens: cli_benchmarks.MaxTokens = None,
    run_code: cli_benchmarks.RunCode = False,
    as_json: Json = False,
) -> None:
    """Measure teacher and student alone on a config's suites and benchmarks."""
    from paraknow import config as configs
    from paraknow.checks import check
    from paraknow.runs import store
    from paraknow.runs.worker import quiet

    about = {"shots": shots, "shots_file": shots_file, "limit": limit, "chat": chat, "max_tokens": max_tokens}
    wanted = cli_benchmarks.added(configs.load(config, override), benchmark, run_code, **about)
    quiet()  # checking may bring lm-eval in
    check(wanted)
    run = store.create(wanted, state="running")
    carry_out(run, skip=("locate", "similarity", "align", "tune"))
    _finish(run, as_json)


@demo_app.callback()
def demo(context: typer.Context, seed: int = 0, as_json: Json = False) -> None:
    """Transfer on the built-in pair with all controls, then the instrument's check on the clone pair."""
    if context.invoked_subcommand:
        return
    from paraknow.checks import check
    from paraknow.demo.story import calibration_config, demo_config, verdict
    from paraknow.runs import store

    configs = [demo_config(seed), calibration_config(seed)]
    for config in configs:
        check(config)
    made = []
    for config in configs:
        run = store.create(config, state="running")
        note(f"{config.name}: run {run.id}")
        carry_out(run)
        made.append(run)
    rows, calibration = deltas_of(made[0]), deltas_of(made[1])
    passed, sentences = verdict(rows, calibration)
    if as_json:
        emit(
            {
                "run": made[0].id,
                "folder": str(made[0].folder),
                "rows": rows,
                "calibration": {
                    "run": made[1].id,
                    "folder": str(made[1].folder),
                    "rows": calibration,
                    "passed": passed,
                },
                "reading": sentences,
            }
        )
    else:
        delta_table(rows, configs[0].name)
        delta_table(calibration, configs[1].name)
        print("\n".join(sentences))
    if not passed:
        raise ParaKnowError("the instrument failed its check on the clone pair; see the second table.")


@demo_app.command("build")
def demo_build(
    out: Annotated[Path, typer.Option(help="Where to write models, suites and the record.")] = Path("assets"),
    size: Annotated[str, typer.Option(help="full, study (a pair in some eight minutes) or small.")] = "full",
    seed: int = 0,
    ladder: Annotated[bool, typer.Option("--ladder", help="Also the pairs that calibrate the instrument.")] = False,
    study: Annotated[bool, typer.Option("--study", help="Also the pairs between sibling and stranger.")] = False,
    as_json: Json = False,
) -> None:
    """Train the demo pair and its clone teacher from nothing. What is built already is kept."""
    from paraknow.runs.worker import quiet
    from paraknow.screen import Bars

    quiet()
    from paraknow.demo import build

    with Bars() as bars:
        record = build.build(out, size, seed, bars.stage, ladder, study)
    if as_json:
        emit(record)
    else:
        rows = [{"model": name, **facts["accuracy"]} for name, facts in record["models"].items()]
        table(rows, "Accuracy of the stored weights")


@demo_app.command("record", hidden=True)
def demo_record(run_id: str, out: Annotated[Path, typer.Option(help="Folder of recorded runs.")]) -> None:
    """Keep a finished run with the package, for pages to show before anything is computed."""
    from paraknow.demo.record import record
    from paraknow.runs import store

    print(f"Recorded in {record(store.find(run_id), out)}.")


@app.command("export")
def export_command(
    run_id: str,
    merged: Annotated[Path, typer.Option(help="Folder for the merged checkpoint.")],
    model: Annotated[str | None, typer.Option(help="Which model of the run; its method by default.")] = None,
    seed: Annotated[int | None, typer.Option(help="Which seed; the first by default.")] = None,
    as_json: Json = False,
) -> None:
    """Write a transferred student as an ordinary checkpoint."""
    from paraknow.runs import store
    from paraknow.runs.worker import quiet

    quiet()
    run = store.find(run_id)
    run.refuse_read_only()  # its student may be another model than the one of that name here
    config = run.config()
    label = model or config.method.title
    folder = run.path("adapters", label, str(config.run_seeds[0] if seed is None else seed))
    if not folder.is_dir():
        known = sorted(
            str(p.parent.relative_to(run.path("adapters"))) for p in run.path("adapters").glob("*/*/paraknow.json")
        )
        raise InputError(f"run {run.id} has no adapter {label!r}; it has {', '.join(known) or 'none'}.")
    if merged.exists():
        raise InputError(f"{merged} exists already; name a new folder.")
    from paraknow import models, results

    results.merge(models.load(config.pair.student, config.dtype, "cpu"), folder, merged)
    if as_json:
        emit({"run": run.id, "folder": str(merged)})
    else:
        print(f"The merged student is in {merged}.")


@app.command()
def methods(as_json: Json = False) -> None:
    """All transfer methods, baselines and controls."""
    from paraknow import methods as registry

    fields: tuple[str, ...] = ("name", "title", "paradigm", "needs", "cost", "reference")
    rows = [{f: getattr(m, f) for f in fields} for m in registry.catalogue().values()]
    if as_json:
        emit({"methods": rows})
    else:
        table([{**r, "needs": "; ".join(r["needs"])} for r in rows], "Methods")


@app.command()
def doctor(as_json: Json = False) -> None:
    """What this machine has: versions, memory, devices, the demo pair."""
    from paraknow.doctor import examine

    rows = examine()
    emit({"checks": rows}) if as_json else table(rows, "This machine")
    if not all(r["ok"] for r in rows):
        raise ParaKnowError("something is missing; see the lines that are not ok.")


@app.command()
def worker(
    device: Annotated[str, typer.Option(help="cpu, cuda:0, cuda:1 …; auto: the first GPU, else the CPU.")] = "auto",
    idle: Annotated[
        float | None, typer.Option(min=0, help="Leave after so many seconds without a run; stays by default.")
    ] = None,
) -> None:
    """Work through the queue on one device, until Ctrl-C. The dashboard starts one by itself where none lives."""
    from paraknow.runs import store, supervisor

    name = supervisor.device_named(device)
    note(f"Working on {name} through the queue in {store.runs_folder()}; Ctrl-C ends it.")
    supervisor.serve(store.runs_folder(), name, idle)


@app.command("app")
def app_command(
    host: Annotated[str, typer.Option(help="Where to listen. Any other address lets others in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8501,
    models_dir: Annotated[
        list[Path] | None, typer.Option(help="Models are opened from this folder alone (and a hub). Repeatable.")
    ] = None,
    data_dir: Annotated[
        list[Path] | None, typer.Option(help="Tasks and records are opened from this folder alone. Repeatable.")
    ] = None,
    shared: Annotated[
        bool, typer.Option("--shared", help="Others reach it by a proxy on this machine: limit it as with --host.")
    ] = False,
    headless: Annotated[bool, typer.Option("--headless", help="Do not open a browser.")] = False,
) -> None:
    """Open the dashboard, on 127.0.0.1 unless --host says otherwise; see docs/security.md."""
    from paraknow import serving

    prepared = serving.prepare(host, port, models_dir or (), data_dir or (), shared)
    if prepared.warning:
        note(f"paraknow: {prepared.warning}")
    serving.run(prepared, headless, sys.executable)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: errors of ours become one sentence on stderr and their exit code."""
    command: Callable[..., Any] = typer.main.get_command(app)
    try:
        code = command(args=arguments, standalone_mode=False)
    except ParaKnowError as error:
        note(f"paraknow: {error}")
        code = error.exit_code
    except KeyboardInterrupt:
        note("paraknow: cancelled.")
        code = 130
    except OSError as error:
        note(f"paraknow: {error.strerror or error}: {error.filename}." if error.filename else f"paraknow: {error}.")
        code = 4 if error.errno == errno.ENOSPC else 2
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")):  # usage errors know how to show themselves
            shown = error.format_message() if hasattr(error, "format_message") else str(error)
            if shown:
                note(f"paraknow: {shown}")
            code = getattr(error, "exit_code", 2)
        else:
            raise
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
