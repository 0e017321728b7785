"""`python -m benchmarks.profiles [--stage STAGE]`: where the time of a run goes, stage by stage, on the demo pair.

One process carries out the demo's run, as `paraknow run` does. A thread looks every few milliseconds which of our
functions is at work: the innermost of paraknow's own on the stack, with all that it calls in libraries; what is spent
importing is counted apart. That slows little down, unlike a profiler called for every function. torch's profiler
records the operators in short windows, which begin and end where the stage reports progress: all events of a stage
would not fit in memory, and would slow it down.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the worker sets it, before torch is imported

import paraknow
from benchmarks import wastes, written
from benchmarks.memory import larger, whole_demo
from paraknow.runs.worker import STAGE_NAMES
from paraknow.screen import emit, table

PAIRS = {"demo": whole_demo, "larger": larger}
OWN = str(Path(paraknow.__file__).parent) + os.sep
EVERY = 0.004  # seconds between two looks at the stack
WINDOW, BETWEEN = 0.2, 3.0  # seconds that operators are recorded, and that they are not
LARGEST = 5


def place(stack: Iterable[tuple[str, str]]) -> str:
    """Which function of ours is at work, from a stack of (file, function), innermost first.

    Returns `module.function` of the innermost one in paraknow, "(imports)" where it is importing, and "(elsewhere)"
    where none is on the stack.
    """
    for file, function in stack:
        if file.startswith("<frozen importlib"):
            return "(imports)"
        if file.startswith(OWN):
            module = file.removeprefix(OWN).removesuffix(".py").replace(os.sep, ".")
            return f"{module}.{function.replace('.<locals>', '')}"
    return "(elsewhere)"


def _stack(frame: FrameType | None) -> Iterator[tuple[str, str]]:
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_code.co_qualname
        frame = frame.f_back


class Looks(threading.Thread):
    """Looks at the stack of the thread that made it, and counts what it finds there; not what measuring takes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.watched, self.over, self.found = threading.get_ident(), threading.Event(), Counter[str]()

    def run(self) -> None:
        while not self.over.wait(EVERY):
            stack = list(_stack(sys._current_frames().get(self.watched)))
            if (__file__, "Windows.__call__") not in stack:
                self.found[place(stack)] += 1

    def __enter__(self) -> Looks:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()


class Windows:
    """A progress callback that records torch's operators now and then; `found`: microseconds of each, its own;
    `spent`: seconds that recording took of the stage."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()
        self.record: Any = None
        self.since = time.monotonic()
        self.spent = 0.0

    def __call__(self, step: int, total: int, message: str = "", **values: float) -> None:
        if (began := time.monotonic()) - self.since >= (WINDOW if self.record else BETWEEN):
            self._close() if self.record else self._open()
            self.spent += time.monotonic() - began

    def _open(self) -> None:
        import torch
        from torch.profiler import ProfilerActivity, profile

        kinds = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * torch.cuda.is_available()]
        self.record = profile(activities=kinds)
        self.record.start()
        self.since = time.monotonic()

    def _close(self) -> None:
        record, self.record = self.record, None
        if record:
            record.stop()
            for event in record.key_averages():
                self.found[event.key] += round(max(event.self_cpu_time_total, event.self_device_time_total))
        self.since = time.monotonic()

    def __enter__(self) -> Windows:
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self._close()


def largest(found: Mapping[str, float], count: int = LARGEST) -> str:
    """The largest of `found` with their shares of the whole, as one line; what is below 1 % is left out."""
    whole = sum(found.values())
    top = sorted(found.items(), key=lambda pair: -pair[1])[:count]
    return ", ".join(f"`{name}` {value / whole:.0%}" for name, value in top if value >= 0.01 * whole) or "–"


def profiled(wanted: Any, only: Sequence[str], scratch: Path) -> Iterator[dict[str, Any]]:
    """One row per stage in `only` of a run of that config: seconds, functions and operators as counts."""
    from paraknow.checks import check
    from paraknow.runs import store
    from paraknow.runs.stages import STAGES, Session
    from paraknow.runs.worker import Reporter

    run = store.create(wanted, scratch / "runs")
    session = Session(run, check(wanted), lambda text: None)
    for name in STAGE_NAMES[: 1 + max(map(STAGE_NAMES.index, only))]:
        began = time.perf_counter()
        with Looks() as looks, Windows() as windows:
            STAGES[name](session, Reporter(run, name, windows))
        seconds = time.perf_counter() - began - windows.spent
        run.update(stages=[*run.status().get("stages", []), name])
        print(f"{name}: {seconds:.1f} s", file=sys.stderr, flush=True)
        if name in only:
            yield {"stage": name, "seconds": seconds, "functions": looks.found, "operators": windows.found}


def main(argv: Sequence[str] | None = None) -> int:
    parser = written.options(__doc__, "profiles")
    parser.add_argument("--stage", choices=STAGE_NAMES, action="append", help="all by default")
    parser.add_argument("--pair", choices=sorted(PAIRS), default="demo")
    arguments = parser.parse_args(argv)
    only = arguments.stage or STAGE_NAMES
    with TemporaryDirectory() as folder:
        scratch = Path(folder)
        found = list(profiled(PAIRS[arguments.pair](scratch, {}), only, scratch))
    whole = sum(row["seconds"] for row in found)
    shown = [
        {
            "stage": row["stage"],
            "share": f"{row['seconds'] / whole:.0%}",
            "our functions": largest(row["functions"]),
            "torch's operators": largest(row["operators"]),
        }
        for row in found
    ]
    if arguments.json:
        emit(
            {
                "profiles": [
                    {**row, **{k: dict(row[k].most_common(20)) for k in ("functions", "operators")}} for row in found
                ]
            }
        )
    else:
        table([{"seconds": f"{a['seconds']:.1f}", **b} for a, b in zip(found, shown, strict=True)], "Profiles")
    if arguments.write and arguments.pair == "demo" and not arguments.stage:
        body = ABOUT + written.markdown(shown) + REMOVED + written.markdown(wastes.shown(wastes.ratios()))
        written.put("profiles", "Where the time goes", body)
    return 0


ABOUT = """Stages of the demo's run: each one's share of the run's time, our functions with all that they call in
libraries (share of the stage), and torch's operators by their own time (share of all operators of the stage).

"""

REMOVED = """

What was taken out of the largest stages, as processor time on one thread before over after
(`python -m benchmarks.wastes`; the former versions are kept there as rivals):

- Tuning: peft computes a trained adapter and its frozen twin one after the other, each with a multiplication by its
  scale and a sum; now they are one pair of products, and what is frozen gets no gradient.
- Tuning: every token went through the head; now only those that predict an answer do. That takes less memory, and less
  time where the vocabulary is large, which the demo's is not.
- Evaluation: candidates were filled up to the longest one of their batch, and every text was encoded again for every
  candidate and every model; now they are read among those of their length, and encoded once.
- Similarity: CKA's permuted Gram matrices were copied by torch's indexing; numpy copies the same bits faster.

"""

if __name__ == "__main__":
    sys.exit(main())
