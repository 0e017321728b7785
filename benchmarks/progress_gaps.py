"""`python -m benchmarks.progress_gaps [CONFIG.yaml]`: how long a run is silent, how soon it can be stopped.

A run is carried out once and every report of its stages is timed. Then it is carried out again, and in each stage it
is asked to stop at the beginning of what was that stage's longest silence, and resumed. One row per stage: reports,
seconds it took, the longest silence and what it began after, seconds from asking until it stood still, and whether its
steps only grew and ended at the total.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paraknow import config as configs
from paraknow.config import RunConfig
from paraknow.errors import Cancelled
from paraknow.progress import Progress, silent
from paraknow.runs import store, worker
from paraknow.screen import emit, table

END = "end"
DEMO = {
    "pair": {"teacher": "demo:teacher", "student": "demo:student"},
    "task": "demo:people",
    "method": {"name": "seeking", "rank": 16},
    "baselines": [
        *("laten", "semalign", "distillation", "sft", "pissa", "eva", "corda", "lora_ga", "logit_fusion"),
        {"name": "transport", "learn": 20, "heal": 20},
        {"name": "block_scales", "of": "seeking"},
    ],
    "controls": ["zero", "noise", "random_window", "shuffled_teacher"],
    "locate": {"layers": "matched"},
    "tune": {"epochs": 2, "max_length": 64},
    "evaluate": {"suites": ["demo:people", "demo:sort"], "batch_size": 256},
}


@dataclass
class Heard:
    """One stage's reports: when (seconds), step, total, message. The first is its beginning, the last its end."""

    times: list[float] = field(default_factory=list)
    said: list[tuple[int, int, str]] = field(default_factory=list)

    def add(self, step: int, total: int, message: str = "") -> None:
        self.times.append(time.monotonic())
        self.said.append((step, total, message))

    @property
    def gaps(self) -> list[float]:
        return [after - before for before, after in itertools.pairwise(self.times)]

    @property
    def longest(self) -> int:
        """After which report the longest silence lies; 0 is the stage's beginning."""
        return max(range(len(self.gaps)), key=self.gaps.__getitem__)

    def sound(self) -> bool:
        """Whether steps never fell, no step went beyond a total that stayed the same, and the last was the total."""
        steps, totals = [s for s, _, _ in self.said[1:-1]], {t for _, t, _ in self.said[1:-1]}
        return steps == sorted(steps) and totals == {steps[-1]}


def listen(heard: dict[str, Heard], stop: tuple[str, int] | None = None, run: store.Run | None = None) -> Any:
    """A `show` for worker.execute that notes every report, and asks `run` to stop after report number stop[1]."""

    def show(stage: str) -> Progress:
        for other in heard.values():
            if other.said[-1][2] != END:
                other.add(0, 0, END)
        heard[stage] = mine = Heard()
        mine.add(0, 0, "beginning")
        if stop == (stage, 0) and run:
            run.cancel()

        def report(step: int, total: int, message: str = "", **_: float) -> None:
            mine.add(step, total, message)
            if stop == (stage, len(mine.said) - 1) and run:
                run.cancel()

        return report

    return show


def measure(config: RunConfig, root: Path, stop: bool = True) -> list[dict[str, Any]]:
    """One row per stage; without `stop`, only the silences of a run that nobody stops."""
    heard: dict[str, Heard] = {}
    worker.execute(store.create(config, root), show=listen(heard))
    list(heard.values())[-1].add(0, 0, END)
    run, rows = store.create(config, root), []
    for stage, found in heard.items():
        stopped = _stopped(run, stage, found.longest) if stop else None
        rows.append(
            {
                "stage": stage,
                "reports": len(found.said) - 2,
                "seconds": round(found.times[-1] - found.times[0], 2),
                "longest_silence": round(found.gaps[found.longest], 2),
                "after": " ".join(map(str, found.said[found.longest])),
                "until_stopped": None if stopped is None else round(stopped, 2),
                "sound": found.sound(),
            }
        )
    return rows


def _stopped(run: store.Run, stage: str, report: int) -> float | None:
    """Seconds from asking `run` to stop, at that report of that stage, until it stands still; None where it was over
    before it heard of it. The stage is then finished."""
    again: dict[str, Heard] = {}
    seconds = None
    try:
        worker.execute(run, until=stage, show=listen(again, (stage, report), run))
    except Cancelled:
        seconds = time.monotonic() - again[stage].times[report]
    worker.execute(run, until=stage, show=lambda _: silent)
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.progress_gaps", description=__doc__)
    parser.add_argument(
        "config", nargs="?", type=Path, help="a run's config; the demo pair with methods of every kind by default"
    )
    parser.add_argument("--silences", action="store_true", help="carry it out once, without stopping it")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    worker.quiet()
    config = configs.load(arguments.config) if arguments.config else configs.parse(DEMO)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PARAKNOW_RUNS"] = folder  # measurements of unchanged models are kept there, and not found there
        rows = measure(config, Path(folder), not arguments.silences)
    if arguments.json:
        emit({"stages": rows})
    else:
        table(rows, "Silences")
    return 0


if __name__ == "__main__":
    sys.exit(main())
