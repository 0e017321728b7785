"""What a report and a run's figures are made from: the run's files, checked, with this machine's places shortened."""

from __future__ import annotations

import json
from functools import cache, cached_property
from typing import Any

import numpy as np
import pandas as pd

from paraknow import files
from paraknow.config import RunConfig
from paraknow.errors import InputError
from paraknow.figures import losses, tables
from paraknow.report import names
from paraknow.runs import artifacts, private
from paraknow.runs.store import Run

MAPS = "locate/maps.safetensors"


class Source:
    """A run's artifacts, each read once. What is not there is None; what is damaged too, and `notes` says so.

    Names of models and data that are places on this machine are shortened to their last part, in all of them: what is
    made from a Source is given to others.
    """

    def __init__(self, run: Run):
        self.run = run
        self.notes: list[str] = []
        self.table = cache(self._table)
        self.json = cache(self._json)

    @cached_property
    def config(self) -> RunConfig:
        """The run's settings. Raises InputError if they are missing or damaged."""
        return self.run.config()

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The same as plain values, places shortened."""
        return private.renamed(self.config.model_dump(mode="json"), self._short)

    @cached_property
    def _short(self) -> dict[str, str]:
        try:
            facts = files.read_json(self.run.path("environment.json"))
        except (OSError, ValueError):
            facts = {}
        about = [facts.get("models"), list(facts["data"]) if isinstance(facts.get("data"), dict) else None]
        return private.names([self.config.model_dump(mode="json"), about])

    def said(self, values: Any) -> Any:
        """Nested values, or text, with places of this machine shortened."""
        return private.renamed(values, self._short)

    def _there(self, name: str) -> bool:
        path = self.run.path(*name.split("/"))
        if not path.is_file():
            return False
        try:
            artifacts.check(path, name)
        except ValueError as error:
            self.notes.append(f"{name} is damaged and left out ({error}).")
            return False
        return True

    def _table(self, name: str) -> pd.DataFrame | None:
        """A parquet table of the run with at least a row."""
        if not self._there(name):
            return None
        found = pd.read_parquet(self.run.path(*name.split("/")))
        for column in set(found.columns) & set(private.NAMED):
            found[column] = found[column].map(lambda v: self._short.get(v, v))
        return found if len(found) else None

    def _json(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the run."""
        return self.said(files.read_json(self.run.path(*name.split("/")))) if self._there(name) else None

    def map(self, model: str, layer: int, module: str) -> tuple[np.ndarray, dict[str, Any]] | None:
        """One pooled |w · ∇| map (out, in) and what is noted about it: shape, max, pooling."""
        from safetensors import safe_open

        if not self.maps_there:
            return None
        with safe_open(self.run.path(*MAPS.split("/")), framework="numpy") as stream:
            notes = json.loads((stream.metadata() or {}).get("maps", "{}"))
            key = f"{model}/{layer}/{module}"
            if key not in notes or key not in stream.keys():  # noqa: SIM118 (not a dict)
                return None
            return stream.get_tensor(key).astype(np.float32) * np.float32(notes[key]["max"]), notes[key]

    @cached_property
    def maps_there(self) -> bool:
        """Whether the run's pooled maps can be read."""
        return self._there(MAPS)

    # -- what is told by them -------------------------------------------------------------------

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of evaluate/deltas.json; none where it was not measured."""
        return list((self.json("evaluate/deltas.json") or {}).get("rows") or ())

    @cached_property
    def kinds(self) -> dict[str, str]:
        """Every model's part in the comparison; see tables.kinds."""
        return tables.kinds(self.rows)

    @cached_property
    def titles(self) -> dict[str, str]:
        """Names of the two models and of every method; see names.titles."""
        return names.titles(self.json("environment.json") or {})

    def model_titles(self, labels: list[str]) -> dict[str, str]:
        """A title per model label; see names.model_titles."""
        return names.model_titles(self.titles, labels)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The measured rows as a table with titles; see tables.deltas_frame."""
        return tables.deltas_frame(self.rows, self.model_titles(list(self.kinds)))

    @cached_property
    def losses(self) -> pd.DataFrame:
        """Fine-tuning losses by label, seed and step."""
        return losses.from_events(self.run.events() if self._there("events.jsonl") else ())

    def kept(self, model: str) -> pd.DataFrame | None:
        """What a method kept of its own work, over its seeds (column seed)."""
        parts = []
        for path in sorted(self.run.path("align").glob(f"{model}/*.parquet")):
            if path.stem.lstrip("-").isdecimal():  # 0.parquet, and not 0.sizes.parquet
                table = self.table(f"align/{model}/{path.name}")
                parts += [] if table is None else [table.assign(seed=int(path.stem))]
        return pd.concat(parts, ignore_index=True) if parts else None


def of(run: Run | Source | str) -> Source:
    """A source of a run, given as such, as a run or as an id. Raises InputError where there is none."""
    from paraknow.runs import store

    if isinstance(run, Source):
        return run
    found = store.find(run) if isinstance(run, str) else run
    if not found.path("config.yaml").is_file():
        raise InputError(f"{found.folder}: no run folder, for it holds no config.yaml.")
    return Source(found)
