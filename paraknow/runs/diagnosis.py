"""A run folder as evidence, its findings, and diagnose.json (no torch). What is missing or damaged is said."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from paraknow import files, methods
from paraknow.config import RunConfig
from paraknow.diagnose import Evidence, Finding, findings, headline
from paraknow.errors import InputError
from paraknow.figures import losses
from paraknow.runs import artifacts
from paraknow.runs.store import Run

FILE = "diagnose.json"
TABLES = {
    "items": "evaluate/items.parquet",
    "starts": "align/starts.parquet",
    "changes": "tune/changes.parquet",
    "checks": "tune/checks.parquet",
    "budgets": "tune/budgets.parquet",
    "blocks": "locate/blocks.parquet",
    "agreement": "locate/agreement.parquet",
    "cka": "similarity/cka.parquet",
    "stitching": "similarity/stitching.parquet",
    "weights": "similarity/weights.parquet",
}
NUMBERS = frozenset(  # in tables that artifacts.COLUMNS does not list: align/starts.parquet and what models left
    "seed layer rank norm weight_norm step loss student_layer teacher_layer kinship".split()
)
BY_MODEL = re.compile(r"(?:align|tune)/([^/]+)/(-?\d{1,10})\.parquet")
Found = dict[str, Any]


def evidence(run: Run, ended: bool = False) -> Evidence:
    """What rules read of a run, as its folder holds it now. `ended`: it is over but for being diagnosed."""
    values: Found = {}
    missing: dict[str, str] = {}

    def take(name: str, read: Any, *arguments: Any) -> None:
        try:
            values[name] = read(*arguments)
        except InputError as reason:
            missing[name] = str(reason)

    take("config", run.config)
    values["status"] = run.status() | ({"state": "done"} if ended else {})
    take("environment", artifacts.json_file, run.folder, "environment.json")
    take("rows", _rows, run.folder)
    take("reload", artifacts.json_file, run.folder, "adapters/reload.json")
    for name, file in TABLES.items():
        take(name, table, run.folder, file)
    events = run.events()
    values["warnings"] = [e["warning"] for e in events if isinstance(e.get("warning"), str)]
    take("losses", _losses, run.folder, events)
    take("aligned", _of_models, run.folder, "align")
    take("settings", _settings, values.get("config"))
    take("ranks", _ranks, values.get("config"))
    take("layerwise", _layerwise, values.get("config"))
    take("moves_blocks", _moves_blocks, values.get("config"))
    return Evidence(**values, missing=missing)


def diagnose(run: Run) -> list[Finding]:
    """The findings about a run as it is now, the gravest first."""
    return findings(evidence(run))


def write(run: Run, ended: bool = False) -> list[Finding]:
    """The same into diagnose.json; `ended` as for `evidence`."""
    found = findings(evidence(run, ended))
    files.write_json(run.path(FILE), in_json(run, found))
    return found


def in_json(run: Run, found: list[Finding]) -> Found:
    """Findings as diagnose.json holds them."""
    return {"run": run.id, "headline": headline(found), "findings": [finding.plain() for finding in found]}


def sources(run: Run) -> list[str]:
    """The files of a run that findings rest on, by their paths in it; those that are there."""
    single = ["config.yaml", "environment.json", "events.jsonl", "evaluate/deltas.json", "adapters/reload.json"]
    of_models = (
        p.relative_to(run.folder).as_posix() for s in ("align", "tune") for p in run.path(s).glob("*/*.parquet")
    )
    names = [*single, *TABLES.values(), *sorted(name for name in of_models if BY_MODEL.fullmatch(name))]
    return [name for name in names if run.path(*name.split("/")).is_file()]


def table(folder: Path, name: str) -> pd.DataFrame:
    """A table whose columns are there and of their kinds, infinite values as missing ones. Raises InputError where it
    is missing or damaged."""
    if not (folder / name).is_file():
        raise InputError(f"{name} is not there.")
    try:
        artifacts.check_table(folder / name, name)
    except (OSError, ValueError) as error:
        raise InputError(f"{name} is damaged: {' '.join(str(error).split())[:200]}.") from None
    found = artifacts.table(folder, name)
    listed = set(artifacts.COLUMNS.get(name, "").split())
    numbers = listed - artifacts.TEXTS - artifacts.LISTS - artifacts.FLAGS if listed else NUMBERS
    return found.assign(**{c: _numbers(found[c]) for c in numbers & {*found}})


def _numbers(column: pd.Series) -> pd.Series:
    """What is no finite number becomes NaN: rules count and compare."""
    return pd.to_numeric(column, errors="coerce").astype(float).replace([np.inf, -np.inf], np.nan)


def _rows(folder: Path) -> list[Found]:
    return artifacts.json_file(folder, "evaluate/deltas.json")["rows"]


def _of_models(folder: Path, stage: str) -> pd.DataFrame:
    """The tables that models of a run left about themselves, their model and seed beside each row."""
    parts = []
    for path in sorted((folder / stage).glob("*/*.parquet")):
        if named := BY_MODEL.fullmatch(path.relative_to(folder).as_posix()):
            parts.append(table(folder, named[0]).assign(model=named[1], seed=int(named[2])))
    if not parts:
        raise InputError(f"no model left a table in {stage}/.")
    return pd.concat(parts, ignore_index=True)


def _losses(folder: Path, events: list[Found]) -> pd.DataFrame:
    """label, seed, step, loss, and layer where it was written down; of models that are not finished from the events."""
    told = losses.from_events(events)
    try:
        kept = _of_models(folder, "tune").rename(columns={"model": "label"})
    except InputError:
        kept = pd.DataFrame(columns=["label", "seed", "step", "loss"])
    if not {"step", "loss"} <= set(kept):
        raise InputError("a table of losses in tune/ lacks its columns step and loss.")
    kept = kept.assign(seed=kept.seed.astype(str))
    there = set(zip(kept.label, kept.seed, strict=True))
    told = told[[pair not in there for pair in zip(told.label, told.seed, strict=True)]]
    if kept.empty and told.empty:
        raise InputError("no loss was written down: nothing was fine-tuned, or not yet.")
    return pd.concat([kept, told], ignore_index=True) if len(told) else kept


def _settings(config: RunConfig | None) -> dict[str, Found]:
    """Every model's method settings, by its name."""
    if config is None:
        raise InputError("config.yaml cannot be read.")
    return {c.label: c.settings.model_dump() for c in methods.candidates(config)}


def _ranks(config: RunConfig | None) -> dict[str, int]:
    """The rank that each model was to have, where its settings name one."""
    if config is None:
        raise InputError("config.yaml cannot be read.")
    return {c.label: c.settings.rank for c in methods.candidates(config) if hasattr(c.settings, "rank")}


def _layerwise(config: RunConfig | None) -> list[str]:
    """Models that are trained layer after layer; a control is trained as the method it is one of."""
    if config is None:
        raise InputError("config.yaml cannot be read.")
    made = [(c.label, methods.get(c.control_of) if c.control_of else c.method) for c in methods.candidates(config)]
    return [label for label, method in made if method.layerwise]


def _moves_blocks(config: RunConfig | None) -> bool:
    if config is None:
        raise InputError("config.yaml cannot be read.")
    return methods.get(config.method.name).blocks
