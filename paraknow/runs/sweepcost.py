"""What a sweep would cost before it begins: what its points share, operations, and how long on n GPUs (no torch).

Points are handed out as cluster.py does it, by its own order.Order: a point waits until the one it takes over from has
located, each slot carries out one run at a time and keeps its pair of models, and what the unchanged teacher and
student answer is measured once (evaluate.reuse). A stage's cost is in operations, or in seconds where those are known.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paraknow import methods
from paraknow.config import RunConfig
from paraknow.data import Task
from paraknow.dryrun import DryRun, dry_run
from paraknow.errors import InputError
from paraknow.fitting import gib
from paraknow.methods.base import Candidate
from paraknow.recipes import Sizes
from paraknow.runs import reuse, sweepfile, timing
from paraknow.runs.order import Order

Costs = Mapping[str, float]  # per stage: load, locate, similarity, align, tune, evaluate, and `pair`, see Planned


@dataclass(frozen=True)
class Planned:
    """One point: what it sets, and which earlier one it takes stages over from (its place; None: from nobody).

    costs: operations by stage; `pair` is the part of `evaluate` that asks the unchanged teacher and student, which one
    of the points with the same pair, data and batches does for all. None where a count is unknown. seconds: the same
    by earlier runs, None where nothing tells.
    """

    words: str
    config: RunConfig
    candidates: Sequence[Candidate]
    donor: int | None
    taken: tuple[str, ...]
    costs: Costs | None
    seconds: Costs | None

    def own(self, costs: Costs) -> float:
        """Costs of what it does itself, the unchanged models' answers included."""
        return sum(v for k, v in costs.items() if k != "pair" and k not in self.taken)


@dataclass(frozen=True)
class Cost:
    """A sweep's points in order, what they need in memory at most, in bytes, and what their seconds rest on."""

    name: str
    points: tuple[Planned, ...]
    memory: int
    judges: str

    @property
    def located(self) -> int:
        """Points that locate for themselves."""
        return sum(p.donor is None for p in self.points)

    @property
    def compared(self) -> int:
        """Points that compare the models for themselves."""
        return sum("similarity" not in p.taken for p in self.points)

    @property
    def flops(self) -> float | None:
        """Operations of all points, with all that is shared done once."""
        return None if any(p.costs is None for p in self.points) else self._last(1, lambda p: p.costs or {}, 0.0)

    def alone(self) -> float | None:
        """Operations if every point were a run that shares nothing."""
        if any(p.costs is None for p in self.points):
            return None
        return sum(v for p in self.points for k, v in (p.costs or {}).items() if k != "pair")

    def spans(self, slots: int) -> float | None:
        """Operations that pass one after the other when `slots` runs are carried out side by side: the sweep takes as
        long as one GPU takes for so many. None where a count is unknown."""
        return None if self.flops is None else self._last(slots, lambda p: p.costs or {}, 0.0)

    def seconds(self, slots: int, start: float = 0.0) -> float | None:
        """Seconds by earlier runs, `start` for Ray itself; None where nothing tells of a stage."""
        if any(p.seconds is None for p in self.points):
            return None
        return self._last(slots, lambda p: p.seconds or {}, start)

    def rows(self) -> list[dict[str, Any]]:
        """One row per point: its settings, the point it takes stages over from, its own operations; the unchanged
        models' answers (`pair`) count where they are asked for first."""
        asked: set[str] = set()
        known = []
        for p in self.points:
            known.append(p.config.evaluate.reuse and _asked(p.config) in asked)
            asked.add(_asked(p.config))
        return [
            {
                "point": number,
                "settings": p.words,
                "from": None if p.donor is None else p.donor + 1,
                "takes over": ", ".join((*p.taken, *["teacher's and student's answers"] * found)) or None,
                "flops": None if p.costs is None else p.own(p.costs) - p.costs["pair"] * found,
            }
            for number, (p, found) in enumerate(zip(self.points, known, strict=True), 1)
        ]

    def as_dict(self, gpus: int) -> dict[str, Any]:
        """Everything as JSON holds it."""
        return {
            "points": self.rows(),
            "located": self.located,
            "compared": self.compared,
            "memory": self.memory,
            "gpus": gpus,
            "flops": self.flops,
            "flops_alone": self.alone(),
            "flops_in_a_row": self.spans(gpus),
            "seconds": self.seconds(gpus),
        }

    def words(self, gpus: int) -> list[str]:
        """What it comes to, in sentences."""
        said = [
            f"{len(self.points)} points: {self.located} locate and {self.compared} compare the models, the others take "
            f"that over. At its peak a run needs about {gib(self.memory)}."
        ]
        whole, row, alone = self.flops, self.spans(gpus), self.alone()
        if whole is None or row is None or alone is None:
            said.append(
                "Operations are not known: a count is missing; `paraknow run --dry-run` on its base says which."
            )
        else:
            said.append(
                f"{whole:.2e} operations (as single runs {alone:.2e}); on {gpus} GPU{'s' * (gpus != 1)} it takes as "
                f"long as {row:.2e} one after the other: divide by what one of yours does in a second (docs/scale.md)."
            )
        seconds = self.seconds(gpus)
        if seconds is None:
            said.append("Time is not known: no earlier run here tells how long such stages take.")
        else:
            said.append(
                f"With {gpus} at once about {timing.duration(seconds)}, Ray's start left out, judging by {self.judges}."
            )
        return said

    def _last(self, slots: int, costs: Callable[[Planned], Costs], start: float) -> float:
        return schedule(self.points, [costs(p) for p in self.points], slots, start)


def schedule(points: Sequence[Planned], costs: Sequence[Costs], slots: int, start: float = 0.0) -> float:
    """When the last point ends, all begun at `start` on so many slots (at least 1)."""
    order = Order([p.donor for p in points])
    located: dict[int, float] = {}
    answered: dict[str, float] = {}  # by pair and data: when the unchanged models' answers are known
    warm: dict[int, str] = {}
    free = [(start, slot) for slot in range(min(max(1, slots), len(points)))]
    heapq.heapify(free)
    last = start
    while order.waiting:
        now, slot = heapq.heappop(free)
        place = order.next(lambda p, now=now: located.get(p, now + 1) <= now)  # type: ignore[misc]
        if place is None:  # until another point has located
            then = min(t for t in located.values() if t > now)
            heapq.heappush(free, (then, slot))
            continue
        point, cost = points[place], costs[place]
        pair, asked = _pair(point.config), _asked(point.config)
        at = now + (0.0 if warm.get(slot) == pair else cost.get("load", 0.0))
        warm[slot] = pair
        at += sum(cost.get(s, 0.0) for s in ("locate", "similarity") if s not in point.taken)
        located[place] = at
        at += cost.get("align", 0.0) + cost.get("tune", 0.0)
        known = point.config.evaluate.reuse and answered.get(asked, at + 1) <= at
        at += cost.get("evaluate", 0.0) - (cost.get("pair", 0.0) if known else 0.0)
        answered[asked] = min(at, answered.get(asked, at))
        last = max(last, at)
        heapq.heappush(free, (at, slot))
    return last


def _pair(config: RunConfig) -> str:
    return repr((config.pair, config.dtype, config.device, config.placement))


def _asked(config: RunConfig) -> str:
    return repr((_pair(config), config.evaluate, config.task))


def plan(
    source: Path | str | dict[str, Any],
    sizes: Mapping[str, Sizes] | None = None,
    note: Callable[[int, int], None] = lambda done, whole: None,
) -> Cost:
    """A sweep's cost from its file or the same values in a dict; nothing is loaded, fetched or written.

    `sizes`: of tasks that are not here, as dryrun.dry_run takes them; `note(done, whole)` counts points. Raises
    InputError, one sentence: what sweepfile.read refuses, and what a point's own dry run refuses, by its number.
    """
    read = sweepfile.read(source)
    heads = [_Head(point.config, tuple(methods.candidates(point.config))) for point in read.points]
    donors = reuse.donors(heads)
    made, most, judges, tasks = [], 0, "", dict[str, Task]()  # every point reads the same data (sweepfile.SAME)
    for place, (point, head, donor) in enumerate(zip(read.points, heads, donors, strict=True)):
        try:
            found = dry_run(point.config, sizes, tasks)
        except InputError as error:
            raise InputError(f"point {point.number} ({point.words}): {error}") from None
        taken = () if donor is None else reuse.taken(heads[donor], head)
        made.append(
            Planned(point.words, head.config, head.candidates, donor, taken, _operations(found), _seconds(found))
        )
        most = max(most, *found.memory.values())
        judges = timing.judges(found.times.get("runs", 0), found.times.get("recorded", 0))
        note(place + 1, len(heads))
    return Cost(read.name, tuple(made), most, judges)


@dataclass(frozen=True)
class _Head:
    config: RunConfig
    candidates: tuple[Candidate, ...]


def _unchanged(found: DryRun) -> tuple[float, float]:
    """(operations of evaluating, those of them that ask the plain teacher and student)."""
    rows = [row for row in found.passes if row["stage"] == "evaluate"]
    own = [row for row in rows if row["what"] in ("teacher", "student")]
    return sum(row["flops"] or 0.0 for row in rows), sum(row["flops"] or 0.0 for row in own)


def _operations(found: DryRun) -> Costs | None:
    stages = found.stage_flops
    if None in stages.values():
        return None
    return {**{s: v or 0.0 for s, v in stages.items()}, "pair": _unchanged(found)[1]}


def _seconds(found: DryRun) -> Costs | None:
    """By earlier runs; the unchanged models' part of evaluating in proportion to its operations."""
    rows = found.times.get("stages", ())
    if not rows or any(row["likely"] is None for row in rows):
        return None
    seconds = {row["stage"]: float(row["likely"]) for row in rows}
    whole, own = _unchanged(found)
    return {**seconds, "pair": seconds.get("evaluate", 0.0) * (own / whole if whole else 0.0)}
