"""How ratios are measured: both sides by turns in one process, the median of the rounds' ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Ratio:
    """One claim: `value` against `limit`, and the rounds' own values."""

    what: str
    rival: str
    value: float
    limit: float
    at_least: bool
    rounds: list[float]

    @property
    def held(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def row(self) -> dict[str, Any]:
        """For a table or JSON."""
        sign = "≥" if self.at_least else "≤"
        return {**asdict(self), "limit": f"{sign} {self.limit:g}", "held": self.held}


def seconds(work: Callable[[], Any]) -> float:
    """Wall-clock time of one call."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def speed_up(what: str, rival: str, ours: Callable[[], Any], theirs: Callable[[], Any], limit: float, rounds: int = 5):
    """The rival's time over ours: at least `limit`."""
    ours()
    values = [seconds(theirs) / seconds(ours) for _ in range(rounds)]
    return Ratio(what, rival, statistics.median(values), limit, True, values)


def slow_down(what: str, rival: str, ours: Callable[[], Any], theirs: Callable[[], Any], limit: float, rounds: int = 5):
    """Our time over the rival's: at most `limit`."""
    theirs()
    ours()
    values = [1 / (seconds(theirs) / seconds(ours)) for _ in range(rounds)]
    return Ratio(what, rival, statistics.median(values), limit, False, values)


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
