"""How ratios are measured: both sides by turns in one process, the median of the rounds' ratios.

Every round times both sides once, the first of one round being the second of the next, after both ran once to warm up.
The median is of wall-clock ratios; `cpu` is the same median by the process's CPU time, which other programs on the
machine disturb less.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from paraknow.errors import RunError


@dataclass(frozen=True)
class Ratio:
    """One claim: `value` against `limit` (None: told, not claimed), and the rounds' own values.

    at_least: the value is the rival's over ours, and should be large; else ours over the rival's. more: what ours does
    beside what the rival does, for where it takes longer. error: the value is how far ours is off, not what it costs.
    """

    what: str
    rival: str
    value: float
    limit: float | None
    at_least: bool
    rounds: list[float]
    cpu: float | None = None
    more: str = ""
    error: bool = False

    @property
    def held(self) -> bool:
        if self.limit is None:
            return True
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    @property
    def loses(self) -> bool:
        """Whether ours takes more than the rival."""
        if self.error:
            return False
        return self.value < 1 if self.at_least else self.value > 1

    def row(self) -> dict[str, Any]:
        """For a table or JSON."""
        sign = "≥" if self.at_least else "≤"
        limit = "–" if self.limit is None else f"{sign} {self.limit:g}"
        return {**asdict(self), "limit": limit, "held": self.held, "loses": self.loses}


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Wall-clock and CPU seconds of one call."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter(), time.process_time()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began[0], time.process_time() - began[1]


def seconds(work: Callable[[], Any]) -> float:
    """Wall-clock time of one call."""
    return timed(work)[0]


def _compared(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> tuple[list[float], float]:
    """Our wall-clock time over the rival's in every round, and the median of the same by CPU time."""
    theirs()
    ours()
    walls, cpus = [], []
    for number in range(rounds):
        if number % 2:
            own, other = timed(ours), timed(theirs)
        else:
            other, own = timed(theirs), timed(ours)
        walls.append(own[0] / other[0])
        cpus.append(own[1] / other[1])
    return walls, statistics.median(cpus)


def slow_down(
    what: str,
    rival: str,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    limit: float | None,
    rounds: int = 5,
    more: str = "",
) -> Ratio:
    """Our time over the rival's: at most `limit`."""
    values, cpu = _compared(ours, theirs, rounds)
    return Ratio(what, rival, statistics.median(values), limit, False, values, cpu, more)


def speed_up(
    what: str,
    rival: str,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    limit: float | None,
    rounds: int = 5,
    more: str = "",
) -> Ratio:
    """The rival's time over ours: at least `limit`."""
    values, cpu = _compared(ours, theirs, rounds)
    values = [1 / v for v in values]
    return Ratio(what, rival, statistics.median(values), limit, True, values, 1 / cpu, more)


def require_same(what: str, gap: float, limit: float) -> None:
    """Raises RunError where both sides' results differ by more than `limit`: then no time is worth comparing."""
    if not gap <= limit:
        raise RunError(f"{what}: the two sides' results differ by {gap:.2g}, and {limit:g} was expected at most.")


def peak_bytes(work: Callable[[], Any], device: torch.device) -> int:
    """Most bytes of tensors that `work` holds at once beyond what was there before."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    held = peak = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak
