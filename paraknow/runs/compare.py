"""Two runs side by side: what differs in settings and surroundings, and their results, fairly (no torch).

The runs may come from different machines. Their deltas can be held against each other only where models and data are
the same, which the hashes in environment.json say; then the same-named models of both runs are compared item by item.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from paraknow.config import RunConfig
from paraknow.errors import InputError
from paraknow.evaluate import statistics
from paraknow.runs import artifacts
from paraknow.runs.store import Run

ITEMS = "evaluate/items.parquet"
KEYS = ["task", "group", "doc_id", "doc_hash"]


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys."""
    if not isinstance(values, dict):
        return {prefix: values}
    result: dict[str, Any] = {}
    for key, value in values.items():
        result |= flatten(value, f"{prefix}.{key}" if prefix else key)
    return result


def differences(first: RunConfig, second: RunConfig) -> list[dict[str, Any]]:
    """The settings in which two runs differ; one that a run does not have is None."""
    a, b = (flatten(c.model_dump(mode="json")) for c in (first, second))
    return _differing("setting", a, b)


def _differing(what: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    keys = list(dict.fromkeys([*a, *b]))
    return [{what: k, "first": a.get(k), "second": b.get(k)} for k in keys if a.get(k) != b.get(k)]


def results(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Delta and interval of every row that at least one of the runs has."""
    tables = [{(r["suite"], r["group"], r["model"]): r for r in rows} for rows in (first, second)]
    made = []
    for key in dict.fromkeys([*tables[0], *tables[1]]):
        row: dict[str, Any] = dict(zip(("suite", "group", "model"), key, strict=True))
        for name, table in zip(("first", "second"), tables, strict=True):
            found = table.get(key, {})
            row |= {f"{name}_{field}": found.get(field) for field in ("accuracy", "delta", "delta_ci")}
        made.append(row)
    return made


# -- across machines --------------------------------------------------------------------------------


@dataclass
class Across:
    """What differs around two runs, and how far their models differ on the same items.

    environment: what differs (what, first, second). notes: sentences to read first. rows: one per model, task and
    group that both runs measured (task and group as the first calls them): n, accuracy_first, accuracy_second, delta
    (second − first, in [−1, 1]), delta_ci (95 %), p_mcnemar, p_holm (corrected over all rows), gained, lost. No rows
    where a note says why.
    """

    environment: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)


def across(first: Run, second: Run) -> Across:
    """Two runs, from wherever, held against each other. What cannot be read is said in a note."""
    found = Across()
    facts = [_environment(run) for run in (first, second)]
    for run, known in zip((first, second), facts, strict=True):
        if known is None:
            found.notes.append(f"{run.id} does not say which models, data and versions it had.")
    a, b = (known or {} for known in facts)
    about = [k for k in dict.fromkeys([*a, *b]) if k not in ("schema_version", "data")]
    found.environment = _differing("what", *(flatten({k: v[k] for k in about if k in v}) for v in (a, b)))
    names = _same_data(a.get("data", {}), b.get("data", {}))
    found.environment += [
        {"what": f"data.{name}", "first": own, "second": b["data"].get(names[name])}
        for name, own in a.get("data", {}).items()
        if name in names and own != b["data"].get(names[name])
    ]
    refused = _unlike(a, b, names)
    found.notes += refused
    if not refused:
        found.notes += _in_doubt(a, b)
        _pair(first, second, names, found)
        for row, p in zip(found.rows, statistics.holm(np.array([r["p_mcnemar"] for r in found.rows])), strict=True):
            row["p_holm"] = float(p)
    return found


def _environment(run: Run) -> dict[str, Any] | None:
    try:
        return artifacts.json_file(run.folder, "environment.json")
    except InputError:
        return None


def _same_data(a: Mapping[str, str], b: Mapping[str, str]) -> dict[str, str]:
    """What the second run calls the data of the first: by name, or by hash where a path was shortened or moved."""
    by_hash = {value: name for name, value in b.items()}
    return {name: name if name in b else by_hash[value] for name, value in a.items() if name in b or value in by_hash}


def _unlike(a: Mapping[str, Any], b: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    """Why the runs' deltas cannot be compared: sentences, none where they can."""
    said = []
    for model in ("teacher", "student"):
        hashes = [e.get("models", {}).get(model, {}).get("sha256") for e in (a, b)]
        if all(hashes) and hashes[0] != hashes[1]:
            said.append(
                f"The {model}s differ (SHA-256 {hashes[0][:12]}… and {hashes[1][:12]}…), so the runs' deltas are not "
                "comparable."
            )
    for name, other in names.items():
        if a["data"][name] != b["data"][other]:
            said.append(
                f"The data of {name} differ (SHA-256 {a['data'][name][:12]}… and {b['data'][other][:12]}…), so the "
                "runs' deltas are not comparable."
            )
    if a.get("data") and b.get("data") and not names:
        said.append("The runs have no data in common, so their deltas are not comparable.")
    return said


def _in_doubt(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """What else could make a difference between runs that can be compared."""
    said = []
    for model in ("teacher", "student"):
        if a and b and not all(e.get("models", {}).get(model, {}).get("sha256") for e in (a, b)):
            said.append(f"Whether the {model}s are the same is not known: a run lacks its hash.")
    if a and b and any(a.get(k) != b.get(k) for k in ("versions", "device", "device_type")):
        said.append(
            "Versions or devices differ, which can flip single items by itself: the rows of the teacher and the "
            "student show how many."
        )
    return said


def _pair(first: Run, second: Run, names: Mapping[str, str], found: Across) -> None:
    """Fill the rows of what both runs measured, or say why there are none."""
    try:
        tables = [artifacts.table(run.folder, ITEMS, [*KEYS, "model", "seed", "correct"]) for run in (first, second)]
    except InputError as error:
        found.notes.append(f"Nothing is compared item by item: {error}")
        return
    left, right = tables
    back = {other: name for name, other in names.items()}
    right = right.assign(task=right.task.map(lambda name: back.get(name, name)))
    items = [table[KEYS].drop_duplicates() for table in (left, right)]
    common = items[0].merge(items[1], on=KEYS)
    sizes = [len(table) for table in items]
    if not len(common):
        found.notes.append(
            "The runs were not measured on the same items (their hashes differ), so nothing is compared."
        )
        return
    if any(size != len(common) for size in sizes):
        found.notes.append(
            f"Only {len(common)} items are the same in both runs (of {sizes[0]} and {sizes[1]}); these are compared."
        )
    left, right = (table.merge(common, on=KEYS) for table in (left, right))
    for model in dict.fromkeys(left.model):
        mine, other = left[left.model == model], right[right.model == model]
        if len(other):
            found.rows += _differences(str(model), mine, other, found.notes)


def _differences(model: str, first: pd.DataFrame, second: pd.DataFrame, notes: list[str]) -> list[dict[str, Any]]:
    """One model of both runs on the same items, per task and group."""
    seeds = sorted(set(first.seed) & set(second.seed))
    if not seeds:
        notes.append(f"{model}: the runs have no seed in common, so it is not compared.")
        return []
    sides = [
        table[table.seed.isin(seeds)].set_index(KEYS).pivot(columns="seed", values="correct")[seeds]
        for table in (first, second)
    ]
    both = sides[0].join(sides[1], how="inner", lsuffix="_first", rsuffix="_second").dropna()
    rows = []
    for (task, group), part in both.groupby(level=["task", "group"], sort=False):
        values = part.to_numpy().astype(bool).T  # (2 · seeds, items)
        mine, other = values[: len(seeds)], values[len(seeds) :]
        held = statistics.compare(*((other[0], mine[0]) if len(seeds) == 1 else (other, mine)))
        rows.append(
            {
                "model": model,
                "suite": str(task),
                "group": str(group),
                "n": held.n,
                "seeds": len(seeds),
                "accuracy_first": float(np.mean(mine)),
                "accuracy_second": float(np.mean(other)),
                "delta": held.delta,
                "delta_ci": [held.lo, held.hi],
                "p_mcnemar": held.p_mcnemar,
                "gained": held.gained,
                "lost": held.lost,
            }
        )
    return rows
