"""How long a run would take, from what this machine measured in earlier runs, and from nothing else (no torch).

A stage's time is taken to be a sum over the parts of its work (workload.py), each times a rate that is not negative.
Kept are the laws that tell earlier runs best: whose errors, as shares of the time such work takes, add up to the least,

    Σ_i |x_i·θ − s_i| / w_i → min,  θ ≥ 0,  w_i = s_i at first, then x_i·θ of the law before,

which of equal runs is their median, and which one run that went wrong does not move. Rarely is that one law alone: one
earlier run leaves everything open between "the time does not grow" and "the part that has grown most is all there is",
and every further run that differs narrows it. A new run takes between the least and the most of these laws, stretched
by how far they were off earlier runs. A part of the work that no earlier run had can take any time: then there is no
upper end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from paraknow import checks, devices, files, progress
from paraknow import config as configs
from paraknow.config import Placement, RunConfig
from paraknow.errors import ParaKnowError
from paraknow.runs import store, workload
from paraknow.runs.events import EventsReader
from paraknow.runs.store import Run
from paraknow.runs.workload import Parts

Spread = tuple[float, float]
MOST = 12  # earlier runs that are looked at, the newest ones
MANY = 10  # runs from which on the fastest and the slowest tenth are left out of the range
ROUNDS = 3  # of weighing anew
FAR = 100.0  # a law that tells less than so small a part of a run's time does not weigh it
LOOSE = 1 + 1e-7  # against rounding in what was optimal


@dataclass(frozen=True)
class Time:
    """Seconds of one stage: `low` to `high`, most likely `likely`; resting on so many earlier runs.

    None: not known. high None with low: nothing earlier tells how long a part of its work takes.
    """

    stage: str
    low: float | None
    likely: float | None
    high: float | None
    runs: int


@dataclass(frozen=True)
class Times:
    """Every stage, and all together. `runs`: of this machine that it rests on; `recorded`: those that came with the
    package. why: in words, where nothing is known."""

    stages: tuple[Time, ...]
    runs: int
    recorded: int
    why: str | None = None

    @property
    def whole(self) -> Time:
        """All stages together; unknown where one of them is."""

        def total(name: str) -> float | None:
            values = [getattr(t, name) for t in self.stages]
            return None if not values or None in values else float(sum(values))

        few = min((t.runs for t in self.stages), default=0)
        return Time("all", total("low"), total("likely"), total("high"), few)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"whole": asdict(self.whole)}

    @property
    def words(self) -> str:
        """One sentence: the range, and what it rests on."""
        if self.why:
            return self.why
        whole, rests = self.whole, f"judging by {judges(self.runs, self.recorded)}"
        if whole.low is None:
            lacking = ", ".join(t.stage for t in self.stages if t.low is None)
            return f"Time of a stage ({lacking}) is not known: no earlier run here tells."
        if whole.high is None:
            lacking = ", ".join(t.stage for t in self.stages if t.high is None)
            return f"At least {duration(whole.low)}, {rests}; no earlier run did such work as its {lacking} stage."
        return f"About {duration(whole.likely)}, between {duration(whole.low)} and {duration(whole.high)}, {rests}."


def judges(runs: int, recorded: int) -> str:
    """What times rest on, in words: runs of this machine, and those that came with the package."""
    by = []
    if runs:
        by.append(f"{runs} earlier run{'s' * (runs != 1)} on this device")
    if recorded:
        by.append(f"{recorded} run{'s' * (recorded != 1)} recorded on another machine with the same kind of device")
    return " and ".join(by)


def duration(seconds: float | None) -> str:
    """Seconds of a run to come in words: not under one."""
    return progress.duration(None if seconds is None else max(1.0, seconds))


# -- the law ---------------------------------------------------------------------------------------------


def predict(work: Parts, earlier: Sequence[tuple[Parts, float]], stage: str = "") -> Time:
    """The time of work, from (work, seconds above 0) of earlier runs. None everywhere where there are none."""
    names = sorted({name for parts, _ in earlier for name in parts} | set(work))
    if not earlier:
        return Time(stage, None, None, None, 0)
    if not any(work.values()):
        return Time(stage, 0.0, 0.0, 0.0, len(earlier))
    table = np.array([[parts.get(n, 0.0) for n in names] for parts, _ in earlier], dtype=float)
    x = np.array([work.get(n, 0.0) for n in names], dtype=float)
    scale = np.maximum(table.max(axis=0), x)
    kept = scale > 0
    table, x, scale = table[:, kept], x[kept], scale[kept]
    rows, took = table / scale, np.array([s for _, s in earlier])
    new = x / scale
    unheard = bool(new[~rows.any(axis=0)].any())  # work that no earlier run had
    least, most, spread = _laws(rows, took, new)
    low = None if least is None else least * spread[0]
    if most is None or least is None or unheard:
        return Time(stage, low, None, None, len(earlier))
    high = most * spread[1]
    return Time(stage, low, min(max(math.sqrt(least * most), low or 0.0), high), high, len(earlier))


def _solve(cost: np.ndarray, above: np.ndarray, limit: np.ndarray) -> tuple[float, np.ndarray] | None:
    """(the least cost·v, v) with above·v ≤ limit and v ≥ 0; None where there is none."""
    from scipy.optimize import linprog

    found = linprog(cost, A_ub=above, b_ub=limit, bounds=(0, None), method="highs")
    return (float(found.fun), found.x) if found.status == 0 else None


def _laws(rows: np.ndarray, took: np.ndarray, new: np.ndarray) -> tuple[float | None, float | None, Spread]:
    """(least, most) that the laws nearest to earlier runs give, and (least, most) of measured over told, of those runs.

    rows (runs, parts) and new (parts,): work; took (runs,): seconds.
    """
    runs, parts = rows.shape
    errors = np.r_[np.zeros(parts), np.ones(runs)]
    weights = took
    for last in (*[False] * (ROUNDS - 1), True):
        scaled, wanted = rows / weights[:, None], took / weights
        above, limit = np.block([[scaled, -np.eye(runs)], [-scaled, -np.eye(runs)]]), np.r_[wanted, -wanted]
        nearest = _solve(errors, above, limit)
        if nearest is None:
            break
        told = rows @ nearest[1][:parts]
        if not last:
            weights = np.where(told > took / FAR, told, took)
            continue
        above, limit = np.vstack([above, errors]), np.r_[limit, nearest[0] * LOOSE + 1e-9]
        cost = np.r_[new, np.zeros(runs)]
        low, high = _solve(cost, above, limit), _solve(-cost, above, limit)
        return None if low is None else max(low[0], 0.0), None if high is None else -high[0], _spread(told, took)
    return None, None, (1.0, 1.0)


def _spread(told: np.ndarray, took: np.ndarray) -> Spread:
    """(least, most) of measured over told; without the ends where there are many."""
    ratios = took[told > 0] / told[told > 0] if (told > 0).any() else np.ones(1)
    ends = (0.0, 1.0) if len(ratios) < MANY else (0.1, 0.9)
    return min(1.0, float(np.quantile(ratios, ends[0]))), max(1.0, float(np.quantile(ratios, ends[1])))


# -- earlier runs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """What one finished run took: seconds per stage, and the work of each; its kind of device, its weights' type."""

    run: str
    recorded: bool
    kind: tuple[str, str]
    dtype: str
    placement: Placement
    seconds: Mapping[str, float]
    work: Mapping[str, Parts | None]


def device_here(device: str) -> tuple[str, str]:
    """(kind, name) of the device a run would work on, as runs write them down. Raises as devices.free_bytes does."""
    import platform

    kind, _ = devices.free_bytes(device)
    if kind == "cuda":
        number = devices.current()
        return kind, next(g.name for g in devices.gpus() if g.index == number)
    return kind, platform.processor() or "cpu"


def measured(config: RunConfig, root: Path | None = None) -> list[Measured]:
    """Finished runs on this kind of device with weights of the same type and place: the newest, and the recorded ones.

    Left out: imported runs, runs that were broken off and resumed, runs whose models or data are not here any more.
    """
    here = device_here(config.device)
    own: list[Measured] = []
    for run in store.all_runs(root):
        if run.imported or (len(own) >= MOST and not run.recorded):
            continue
        try:
            state = tuple(run.path(n).stat().st_mtime_ns for n in ("config.yaml", "status.json", "environment.json"))
            found = _of(str(run.folder), run.recorded, state)
        except OSError:
            continue
        if found and (found.kind, found.dtype, found.placement) == (here, config.dtype, config.placement):
            own.append(found)
    return own


@lru_cache(maxsize=256)
def _of(folder: str, recorded: bool, _state: tuple[int, ...]) -> Measured | None:
    """A run as it took its time; None where it is not done, was resumed, is damaged, or its models are gone."""
    run = Run(Path(folder), recorded)
    try:
        if run.status().get("state") != "done" or not (seconds := _seconds(run)):
            return None
        about, config = files.read_json(run.path("environment.json")), run.config()
        work = _work(configs.dump(config.model_copy(update={"name": ""})))
        kind = (str(about["device_type"]), str(about["device"]))
    except (ParaKnowError, OSError, ValueError, KeyError, TypeError):
        return None
    return Measured(run.id, recorded, kind, config.dtype, config.placement, seconds, work)


def _seconds(run: Run) -> dict[str, float]:
    """Seconds per stage; none of a run that was resumed, whose events tell of a part of a stage."""
    found: dict[str, float] = {}
    for event in EventsReader(run.path("events.jsonl")).new():
        stage, seconds = event.get("stage"), event.get("seconds")
        if isinstance(stage, str) and isinstance(seconds, int | float) and math.isfinite(seconds):
            if stage in found:
                return {}
            found[stage] = max(float(seconds), 0.01)
    return found


@lru_cache(maxsize=64)
def _work(text: str) -> dict[str, Parts | None]:
    """The work of a config given as YAML. Raises InputError where its models or tasks are not here."""
    import yaml

    return of_checked(checks.prepare(configs.parse(yaml.safe_load(text)), here=False))


def of_checked(checked: checks.Checked) -> dict[str, Parts | None]:
    """The work of a config that can be run."""
    tasks = dict(checked.case.tasks)
    return workload.stages(checked.config, checked.teacher, checked.student, checked.candidates, tasks)


def estimate(
    config: RunConfig,
    work: Mapping[str, Parts | None],
    root: Path | None = None,
    earlier: Sequence[Measured] | None = None,
) -> Times:
    """How long a run of this config would take. `work`: of_checked; `earlier`: `measured` by default.

    Never raises for want of earlier runs: it says so.
    """
    try:
        found = measured(config, root) if earlier is None else earlier
    except ParaKnowError as error:
        return Times((), 0, 0, f"Time: {error}")
    if not found:
        return Times((), 0, 0, "Time is not known: no run has ended on this device yet.")
    stages = []
    for stage, parts in work.items():
        known = [(m.work[stage], m.seconds[stage]) for m in found if m.work.get(stage) and stage in m.seconds]
        told = [(w, s) for w, s in known if w is not None]
        stages.append(Time(stage, None, None, None, 0) if parts is None else predict(parts, told, stage))
    recorded = sum(m.recorded for m in found)
    return Times(tuple(stages), len(found) - recorded, recorded)
