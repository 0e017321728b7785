"""A sweep file: `base` and its points, read and checked as far as they can be without models (no torch).

`base` is a config, the path of one (from the sweep file's folder), or recipe:NAME. Points: `grid` (dotted setting →
values, all combinations), `list` (one mapping of dotted settings per point), or both, one after the other.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from paraknow import config as configs
from paraknow import yamls
from paraknow.config import Part, RunConfig
from paraknow.errors import InputError
from paraknow.runs.compare import flatten
from paraknow.wrong import explain

MOST = 1000  # points; more is a slip in a grid
# What decides which examples are read. Rows of one table must differ in a setting and in nothing else.
SAME = ("task", "seed", "seeds", "evaluate.suites", "evaluate.limit", "evaluate.benchmarks")


class SweepFile(Part):
    """What a sweep file may hold."""

    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,60}$", description="The file's by default.")
    base: str | dict[str, Any] = Field(description="A config, the path of one (from the sweep file), or recipe:NAME.")
    grid: dict[str, list[Any]] = Field({}, description="Dotted setting → values; all combinations are points.")
    points: list[dict[str, Any]] = Field([], alias="list", description="Points of their own: dotted setting → value.")


@dataclass(frozen=True)
class Point:
    """One run of a sweep: what it sets, and the whole config; `number` counts from 1."""

    number: int
    settings: dict[str, Any]
    config: RunConfig

    @property
    def words(self) -> str:
        return ", ".join(f"{k}={word(v)}" for k, v in self.settings.items())

    @property
    def digest(self) -> str:
        """The same for two configs that differ in their title alone."""
        text = configs.dump(self.config.model_copy(update={"name": ""}))
        return hashlib.sha256(text.encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Plan:
    """A sweep as it was read. `source`: the file, None where values were given."""

    name: str
    base: dict[str, Any]
    points: tuple[Point, ...]
    source: Path | None = None


def word(value: Any) -> str:
    """A setting's value as a table shows it."""
    return str(value) if not isinstance(value, dict | list) else yaml.safe_dump(value, default_flow_style=True).strip()


def read(source: Path | str | dict[str, Any]) -> Plan:
    """A sweep from a file or from the same values in a dict (which then need a name).

    Raises InputError, one sentence: what cannot be read, an unknown key, a point that is no config, that is there
    twice, or that reads other data than the rest.
    """
    path = None if isinstance(source, dict) else Path(source)
    values = source if path is None else yamls.read(path)
    where = str(path or "sweep")
    if not isinstance(values, dict):
        raise InputError(f"{where}: expected a mapping with base and grid or list.")
    try:
        file = SweepFile.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{where}: {explain(error, SweepFile)}") from None
    name = file.name or (re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._")[:60] if path else "")
    if not name:
        raise InputError(f"{where}: name is missing; give one of letters, digits, '.', '_' and '-'.")
    base = _base(file.base, path, where)
    points = tuple(
        Point(number, settings, _config(base, settings, name, f"{where}, point {number}"))
        for number, settings in enumerate(_settings(file, where), 1)
    )
    _refuse_odd(points, where)
    return Plan(name, base, points, path.resolve() if path else None)


def _base(base: str | dict[str, Any], path: Path | None, where: str) -> dict[str, Any]:
    if isinstance(base, dict):
        return base
    if base.startswith("recipe:"):
        from paraknow import recipes

        return recipes.find(base.removeprefix("recipe:")).config
    values = yamls.read((path.parent if path else Path()) / Path(base).expanduser())
    if not isinstance(values, dict):
        raise InputError(f"{where}: base {base!r} holds no settings.")
    return values


def _settings(file: SweepFile, where: str) -> list[dict[str, Any]]:
    if empty := [key for key, values in file.grid.items() if not values]:
        raise InputError(f"{where}: grid.{empty[0]} lists no values.")
    count = len(file.points)
    if file.grid:
        count += prod(map(len, file.grid.values()))
    if not count or not all(file.points):
        raise InputError(f"{where}: grid or list must name at least one setting of every point.")
    if count > MOST:
        raise InputError(f"{where}: {count} points are more than {MOST}; give fewer values, or several sweeps.")
    made = [dict(zip(file.grid, values, strict=True)) for values in itertools.product(*file.grid.values())]
    return [*(made if file.grid else []), *file.points]


def _config(base: dict[str, Any], settings: dict[str, Any], name: str, where: str) -> RunConfig:
    values = copy.deepcopy(base)
    for dotted, value in settings.items():
        *keys, last = str(dotted).split(".")
        inner = values
        for key in keys:
            if isinstance(inner.get(key), str) and key == "method":  # `method: seeking` is short for its name
                inner[key] = {"name": inner[key]}
            inner = inner.setdefault(key, {})
            if not isinstance(inner, dict):
                raise InputError(f"{where}: {dotted!r}: {key} holds no settings.")
        inner[last] = value
    if "name" in settings:
        raise InputError(f"{where}: 'name' is a run's title, which the sweep gives; leave it out.")
    words = ", ".join(f"{k}={word(v)}" for k, v in settings.items())
    return configs.parse({**values, "name": f"{name}: {words}"[:200]}, where)


def _refuse_odd(points: Sequence[Point], where: str) -> None:
    seen: dict[str, int] = {}
    first = flatten(points[0].config.model_dump(mode="json"))
    for point in points:
        own = flatten(point.config.model_dump(mode="json"))
        for field in SAME:
            if own[field] != first[field]:
                raise InputError(
                    f"{where}, point {point.number}: {field} is {word(own[field])} and {word(first[field])} in point "
                    "1; every point reads the same data with the same seeds, so set it in base (or make two sweeps)."
                )
        if other := seen.get(point.digest):
            raise InputError(f"{where}: points {other} and {point.number} are the same ({point.words}).")
        seen[point.digest] = point.number
