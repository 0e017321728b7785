"""What the command line shows: bars on a terminal, plain lines elsewhere, tables.

Every command imports this, `paraknow --help` too: what reads runs is imported where it is used.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from paraknow import progress as progresses
    from paraknow.runs.store import Run


class Bars:
    """One bar per stage on stderr. Ctrl-C calls `on_interrupt`, so that the run ends at a step."""

    def __init__(self, on_interrupt: Callable[[], None] | None = None):
        self.console = Console(stderr=True)
        self.on_interrupt = on_interrupt
        self.bars = Progress(
            TextColumn("{task.description:<28}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> Bars:
        import signal

        self.bars.start()
        self.before: Any = None
        if self.on_interrupt:
            self.before = signal.signal(signal.SIGINT, lambda *_: self.on_interrupt and self.on_interrupt())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import signal

        self.bars.stop()
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)

    def stage(self, name: str) -> progresses.Progress:
        """The progress callback of one stage."""
        task = self.bars.add_task(name, total=None)
        last = [0.0]
        began = time.time()

        def report(step: int, total: int, message: str = "", **values: float) -> None:
            loss = f" loss {values['loss']:.3f}" if "loss" in values else ""
            self.bars.update(task, completed=step, total=total, description=plain(f"{name} {message}{loss}")[:28])
            if self.bars.disable and (step >= total or time.time() - last[0] > 10):
                last[0] = time.time()
                note(f"{name}: {step}/{total} {message}{loss} ({time.time() - began:.0f} s)")

        return report


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but the tab and the end of a line


def plain(text: object) -> str:
    """Text for a terminal: what models wrote and users named must not steer it (colours, links, the title)."""
    return _CONTROL.sub("\ufffd", str(text))


def say(text: str) -> None:
    """Text on stdout."""
    print(plain(text))


class PointBars:
    """One bar per run under way on stderr, read from its status; a line every ten seconds where that is no terminal."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        columns = (
            TextColumn("{task.description:<36}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[eta]}"),
        )
        self.bars = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.tasks: dict[str, Any] = {}
        self.said: dict[str, float] = {}

    def __enter__(self) -> PointBars:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def show(self, title: str, status: dict[str, Any] | None) -> None:
        """How far a run is; None: it is no longer under way."""
        if status is None:
            if (task := self.tasks.pop(title, None)) is not None:
                self.bars.remove_task(task)
            return
        stage, step, total = status.get("stage") or "begins", status.get("step") or 0, status.get("total")
        eta = status.get("eta")
        left = "" if not isinstance(eta, int | float) else f"about {eta:.0f} s left in this stage"
        if title not in self.tasks:
            self.tasks[title] = self.bars.add_task(title, total=total, eta=left)
            self.said[title] = time.time()
        name = f"{title}: {stage} {status.get('message') or ''}"[:36]
        self.bars.update(self.tasks[title], description=name, completed=step, total=total, eta=left)
        if self.bars.disable and time.time() - self.said[title] > 10:
            self.said[title] = time.time()
            note(f"{title}: {stage} {step}/{total or '?'}{left and ', ' + left}")

    def note(self, text: str) -> None:
        """One line above the bars."""
        self.bars.print(plain(text), markup=False, highlight=False) if not self.bars.disable else note(text)


def note(text: str) -> None:
    """One line on stderr."""
    print(plain(text), file=sys.stderr, flush=True)


def carry_out(
    run: Run, until: str | None = None, skip: tuple[str, ...] = (), warm: dict[str, Any] | None = None
) -> None:
    """Run in the foreground with a bar per stage on a terminal, a line per stage elsewhere.

    `until`: the last stage; all of them without it. `warm` keeps loaded models between runs of one pair.
    """
    import signal

    from paraknow.runs.worker import STAGE_NAMES, execute, quiet

    quiet()
    stop = _Stop(run)
    before = signal.signal(signal.SIGTERM, lambda *_: stop())
    try:
        with Bars(on_interrupt=stop) as bars:
            execute(run, until or STAGE_NAMES[-1], skip, bars.stage, warm=warm)
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


class _Stop:
    """What Ctrl-C does to a run in the foreground: it ends at its next step; one that does not within HARD seconds, or
    on a second Ctrl-C, is ended with the process. What it has finished is kept either way."""

    def __init__(self, run: Run):
        self.run = run
        self.asked = False

    def __call__(self) -> None:
        import threading

        from paraknow.runs.queue import HARD

        if self.asked:
            self._now("it was cancelled twice.")
        self.asked = True
        self.run.cancel()
        note(f"Stopping at the next step; at once on a second Ctrl-C, or after {HARD:.0f} s.")
        timer = threading.Timer(HARD, self._now, [f"it did not stop within {HARD:.0f} s of being cancelled."])
        timer.daemon = True
        timer.start()

    def _now(self, why: str) -> None:
        import os

        import psutil

        from paraknow.runs import processes

        if not self.run.locked():
            return  # it has stopped by itself meanwhile
        note(f"paraknow: run {self.run.id}: {why}")
        with suppress(OSError):  # no space, or the lock is held by what is to be ended: the run is lost, not cancelled
            self.run.update(state="cancelled", finished=time.time(), error=why)
        for child in psutil.Process().children():
            processes.end(child, 1.0)
        os._exit(130)


def emit(values: dict[str, Any]) -> None:
    """Print one JSON object with schema_version."""
    text = json.dumps({"schema_version": 1, **values}, ensure_ascii=False, allow_nan=False)
    print(_CONTROL.sub(lambda found: f"\\u{ord(found.group()):04x}", text))  # JSON leaves some as they are


def deltas_of(run: Run) -> list[dict[str, Any]]:
    """The rows of a run's evaluate/deltas.json; none where it has not been evaluated."""
    from paraknow.runs import artifacts

    name = "evaluate/deltas.json"
    return artifacts.json_file(run.folder, name)["rows"] if run.path(*name.split("/")).is_file() else []


def table(rows: list[dict[str, Any]], title: str = "") -> None:
    """Any list of flat dicts as a table."""
    if not rows:
        print(f"{title}: nothing to show." if title else "Nothing to show.")
        return
    shown = Table(title=Text(plain(title)) if title else None, show_edge=False)
    for column in rows[0]:
        shown.add_column(Text(plain(column)))
    for row in rows:
        shown.add_row(*(Text(_text(row.get(column))) for column in rows[0]))  # not str: rich reads its own markup there
    Console(width=None if sys.stdout.isatty() else 200).print(shown)


def budgets_of(run: Run) -> list[dict[str, Any]]:
    """What each model of a run was given (tune/budgets.parquet); none where that was not kept."""
    from paraknow.runs import artifacts

    if not run.path("tune", "budgets.parquet").is_file():
        return []
    rows: Any = artifacts.table(run.folder, "tune/budgets.parquet").to_dict("records")
    return [{**row, "more": list(row["more"])} for row in rows]


def budget_table(run: Run) -> None:
    """What each model was given; a mark where that is more than the examined method got."""
    rows = [{**row, "more": ", ".join(row["more"]) or "–"} for row in budgets_of(run)]
    if rows:
        table([{("more than the method" if k == "more" else k): v for k, v in r.items()} for r in rows], "Budgets")


def _text(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else plain(value)


def interval(value: float | None, bounds: list[float] | None, digits: int = 2) -> str:
    if value is None:
        return "–"
    first, *ends = (f"{round(x, digits) + 0.0:.{digits}f}" for x in (value, *(bounds or ())))  # + 0.0: never "-0.00"
    return f"{first} ({ends[0]} to {ends[1]})" if ends else first


def delta_table(rows: list[dict[str, Any]], title: str = "") -> None:
    """The rows of deltas.json as people read them, intervals beside every number, the examined methods in words."""
    from paraknow.evaluate import words

    made = [
        {
            "suite": r["suite"],
            "group": r["group"],
            "model": r["model"],
            "n": r["n"],
            "accuracy (95 %)": interval(r["accuracy"], r["ci"]),
            "difference to student": interval(r["delta"], r["delta_ci"]),
            "hidden below": "–" if (seen := words.hidden_below(r)) is None else f"{seen:.2f}",
            "gained/lost": "–" if r["gained"] is None else f"{r['gained']}/{r['lost']}",
            "loss": interval(r["loss"], None),
            "share arrived": interval(r["share"], r["share_ci"]),
            "above all controls": {True: "yes", False: "no", None: "–"}[r["claim"]],
        }
        for r in rows
    ]
    table(made, title)
    examined = [r for r in rows if r["claim"] is not None]
    for r in examined or [r for r in rows if r["model"] not in ("student", "teacher")]:
        say(f"{r['model']} on {r['suite']}, {r['group']}: {words.reading(r)}")
    if rows:
        print("Hidden below: the smallest true difference that so many items show with probability 0.8.")
