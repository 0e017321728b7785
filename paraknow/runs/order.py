"""In which order work is handed out, how often it is tried again, how much of it fits at once (no Ray, no torch)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from paraknow.runs.store import Run

AGAIN = 3  # times that a run is taken up again after the process that carried it out was killed


@dataclass(frozen=True)
class Work:
    """Runs to carry out, by place. `begin(place)` makes a run ready, or says None where nothing is left to do.

    `after[place]` is the earlier place whose run must have located before this one begins.
    """

    titles: Sequence[str]
    after: Sequence[int | None]
    begin: Callable[[int], Run | None]


class Order:
    """Places still to be handed out, first ones first."""

    def __init__(self, after: Sequence[int | None]):
        self.after = after
        self.waiting = list(range(len(after)))
        self.broken: Counter[int] = Counter()

    def next(self, located: Callable[[int], bool]) -> int | None:
        """Take the first place that need not wait; None while all must. `located`: whether a place has located."""
        for place in self.waiting:
            first = self.after[place]
            if first is None or (first not in self.waiting and located(first)):
                self.waiting.remove(place)
                return place
        return None

    def again(self, place: int) -> bool:
        """A place's process was killed: hand it out once more, unless that has happened too often."""
        self.broken[place] += 1
        if self.broken[place] > AGAIN:
            return False
        self.waiting = sorted([*self.waiting, place])
        return True


def room(nodes: Sequence[Mapping[str, float]], threads: int, gpu: bool, most: int) -> tuple[int, dict[str, float]]:
    """(how many runs fit at once, what each of them takes) on nodes with so many CPU and GPU.

    With `gpu`, and where there are any, a run has a GPU of its own and no run goes without: rows of one table are then
    computed on one kind of device. Else a run has as many cores as threads, at most a node's.
    """
    gpus = sum(int(node.get("GPU", 0)) for node in nodes) if gpu else 0
    if gpus:
        return max(1, min(gpus, most)), {"num_gpus": 1.0, "num_cpus": 1.0}
    each = max(1, min(threads, int(max(node.get("CPU", 0) for node in nodes))))
    fit = sum(int(node.get("CPU", 0)) // each for node in nodes)
    return max(1, min(fit, most)), {"num_gpus": 0.0, "num_cpus": float(each)}
