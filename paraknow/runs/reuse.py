"""What one run found and another would find again: locating and comparing, taken over between points of a sweep.

Locating depends on the pair, its number type and device, the task, the seed and the settings `locate` and `similarity`
(layers may be matched by it); comparing depends on the examined method's rank besides. Files are copied, so that
deleting a run harms no other.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from paraknow import data, methods
from paraknow.checkpoints import Checkpoint, weights_hash
from paraknow.checks import Checked
from paraknow.config import RunConfig
from paraknow.evaluate import benchmarks
from paraknow.evaluate.benchmarks import Plan
from paraknow.methods.base import Candidate
from paraknow.runs.store import Run

SETTINGS = ("pair", "dtype", "device", "task", "seed", "locate", "similarity")


def data_hashes(config: RunConfig, plans: Sequence[Plan] | None = None) -> dict[str, str]:
    """What a run's data were, for environment.json: the hash of every task, and of what every benchmark asks."""
    asked = benchmarks.plans(config.evaluate) if plans is None else plans
    hashes = {name: data.load_task(name, config.seed).hash for name in config.all_tasks}
    return hashes | {f"benchmark {plan.benchmark.title}": plan.hash for plan in asked}


def unchanged(facts: Mapping[str, Any], config: RunConfig, teacher: Checkpoint, student: Checkpoint) -> bool:
    """Whether models and data are what a run's environment.json (`facts`) says they were."""
    hashes = {name: facts.get("models", {}).get(name, {}).get("sha256") for name in ("teacher", "student")}
    now = {"teacher": weights_hash(teacher), "student": weights_hash(student)}
    return hashes == now and facts.get("data") == data_hashes(config)


def located(run: Run, about: Checked, earlier: Sequence[Run]) -> tuple[Run, list[str]] | None:
    """Give a run that has not located yet what an earlier one with the same settings found.

    `earlier` runs must be on the models and data of today. Returns the run it came from and the stages that are now
    finished, or None where nothing fits.
    """
    if "locate" in run.status().get("stages", []):
        return None
    config, rank = about.config, _rank(about.candidates[0].settings)
    found: tuple[Run, list[str]] | None = None
    for donor in earlier:
        own, stages = donor.config(), donor.status().get("stages", [])
        whole = donor.path("locate", "blocks.safetensors").is_file() and donor.path("environment.json").is_file()
        if "locate" not in stages or not whole or any(getattr(own, s) != getattr(config, s) for s in SETTINGS):
            continue
        both = "similarity" in stages and _rank(methods.candidates(own)[0].settings) == rank
        if both or found is None:
            found = donor, ["locate", "similarity"] if both else ["locate"]
        if both:
            break
    if found:
        _copy(found[0], run, found[1], config)
    return found


class Planned(Protocol):
    """What donors are told by: the config of a point, and the methods it names."""

    @property
    def config(self) -> RunConfig: ...
    @property
    def candidates(self) -> Sequence[Candidate]: ...


def donors(points: Sequence[Planned]) -> list[int | None]:
    """By place: the earlier point that each one takes over from, if points are begun one after the other; None where
    there is none. Begun side by side, points that wait for these find the same."""
    made: list[int | None] = []
    seen: dict[str, int] = {}
    for place, about in enumerate(points):
        same = repr([getattr(about.config, s) for s in SETTINGS])
        both = f"{same} {_rank(about.candidates[0].settings)}"
        made.append(seen.get(both, seen.get(same)))
        seen.setdefault(same, place)
        seen.setdefault(both, place)
    return made


def taken(donor: Planned, point: Planned) -> tuple[str, ...]:
    """The stages that a point takes over from its donor."""
    same = _rank(donor.candidates[0].settings) == _rank(point.candidates[0].settings)
    return ("locate", "similarity") if same else ("locate",)


def _rank(settings: Any) -> int:
    return getattr(settings, "rank", 16)  # as the similarity stage takes it


def _copy(donor: Run, run: Run, stages: list[str], config: RunConfig) -> None:
    shutil.copytree(donor.path("locate"), run.path("locate"), dirs_exist_ok=True)
    shutil.rmtree(run.path("similarity"), ignore_errors=True)
    if "similarity" in stages and donor.path("similarity").is_dir():
        shutil.copytree(donor.path("similarity"), run.path("similarity"))
    elif config.locate.layers == "matched":  # locating has stitched
        run.path("similarity").mkdir(exist_ok=True)
        shutil.copy2(donor.path("similarity", "stitching.parquet"), run.path("similarity"))
    # With it the load stage refuses to go on where models or data are others after all.
    shutil.copy2(donor.path("environment.json"), run.path("environment.json"))
    for warning in _warnings(donor, stages[-1]):
        run.event(warning=warning)
    run.event(reused=donor.id, stages=stages)
    run.update(stages=["load", *stages])


def _warnings(donor: Run, last: str) -> list[str]:
    """What the donor was warned of until it finished the stage `last`."""
    found = []
    for event in donor.events():
        if "warning" in event:
            found.append(event["warning"])
        if (event.get("stage") == last and "seconds" in event) or last in event.get("stages", []):
            break
    return found
