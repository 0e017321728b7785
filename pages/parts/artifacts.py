"""Artifacts of a run, read once per content. What cannot be read becomes a sentence, never a traceback."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from paraknow import files
from paraknow.evaluate import items
from paraknow.report import names
from paraknow.runs import artifacts as kinds
from paraknow.runs.store import Run

MADE_BY = {
    "locate": "locate",
    "similarity": "similarity",
    "align": "align",
    "tune": "tune",
    "evaluate": "evaluate",
    "environment.json": "load",
    "diagnose.json": "diagnose",
}
AFTER = {  # what to do about what is missing, by the run's state
    "queued": " The run waits in the queue; the Transfer page shows it.",
    "running": " The run is on its way; the Transfer page shows how far it is.",
    "done": " This run was made without it: the Transfer page can start one like it with that stage.",
    "failed": " The run failed before that: the Transfer page says why, and can go on with it.",
    "cancelled": " The run was cancelled before that: the Transfer page can go on with it.",
    "lost": " The run's process was lost before that: the Transfer page can go on with it.",
}


class NotThere(Exception):
    """An artifact that is missing or damaged; its text is the sentence that pages show."""


@lru_cache(maxsize=256)
def _hash(path: str, modified: int, size: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fingerprint(run: Run, name: str) -> tuple[str, str]:
    """Path and content hash of an artifact. Raises NotThere."""
    path = run.path(*name.split("/"))
    try:
        stat = path.stat()
        return str(path), _hash(str(path), stat.st_mtime_ns, stat.st_size)
    except FileNotFoundError:
        stage = MADE_BY.get(name.split("/")[0], "an earlier")
        after = AFTER.get(str(run.status().get("state")), "") if not run.read_only else ""
        raise NotThere(f"This run has no {name} yet; its {stage} stage writes it.{after}") from None
    except OSError as error:
        raise NotThere(f"{name} of this run cannot be read ({error.strerror}).") from None


@st.cache_data(max_entries=24, show_spinner=False)
def _table(path: str, content: str) -> pd.DataFrame:
    return pd.read_parquet(path)


def has(run: Run, name: str) -> bool:
    """Whether the run has an artifact at all: what was not asked for is passed over, what is damaged is said."""
    return run.path(*name.split("/")).is_file()


def table(run: Run, name: str) -> pd.DataFrame:
    """A parquet table of the run. Raises NotThere."""
    try:
        found = _table(*fingerprint(run, name))
    except (OSError, ValueError, TypeError) as error:  # pyarrow's errors are ValueError and OSError
        raise NotThere(f"{name} of this run is damaged ({type(error).__name__}).") from None
    lacking = [c for c in kinds.COLUMNS.get(name, "").split() if c not in found.columns]
    if lacking:
        raise NotThere(f"{name} of this run lacks the columns {', '.join(lacking)}.")
    return found


@st.cache_data(max_entries=64, show_spinner=False)
def _json(path: str, content: str) -> dict[str, Any]:
    return files.read_json(Path(path))


def json_file(run: Run, name: str) -> dict[str, Any]:
    """A JSON artifact of the run. Raises NotThere."""
    try:
        values = _json(*fingerprint(run, name))
    except (OSError, ValueError):
        raise NotThere(f"{name} of this run is damaged.") from None
    if name in kinds.JSON and (bad := kinds.unsound(kinds.JSON[name], values)):
        raise NotThere(f"{name} of this run is damaged ({bad}).")
    return values


@st.cache_data(max_entries=8, show_spinner=False)
def _lines(path: str, content: str, model: str, reference: str) -> pd.DataFrame:
    return items.lines(_table(path, content), model, reference)


def item_lines(run: Run, model: str, reference: str) -> pd.DataFrame:
    """The items of a run with two models' answers, gained and lost first. Raises NotThere."""
    name = "evaluate/items.parquet"
    table(run, name)  # says what it lacks
    return _lines(*fingerprint(run, name), model, reference)


def delta_rows(run: Run) -> list[dict[str, Any]]:
    """The rows of evaluate/deltas.json. Raises NotThere."""
    rows = json_file(run, "evaluate/deltas.json")["rows"]
    if not rows:
        raise NotThere("evaluate/deltas.json of this run holds no rows.")
    return rows


@st.cache_data(max_entries=16, show_spinner=False)
def _notes(path: str, content: str) -> dict[str, dict]:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as stream:
        return json.loads((stream.metadata() or {}).get("maps", "{}"))


@st.cache_data(max_entries=24, show_spinner=False)
def _map(path: str, content: str, key: str) -> np.ndarray:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as stream:
        return stream.get_tensor(key)


def matrix(run: Run, model: str, layer: int, module: str) -> tuple[np.ndarray, dict[str, Any]]:
    """One pooled |w · ∇| map and what is noted about it (shape, max, pooling). Raises NotThere."""
    name, key = "locate/maps.safetensors", f"{model}/{layer}/{module}"
    place = fingerprint(run, name)
    try:
        notes = _notes(*place)
        if key not in notes:
            raise NotThere(f"{name} of this run holds no map of {module} in layer {layer} of the {model}.")
        values = _map(*place, key).astype(np.float32) * np.float32(notes[key]["max"])
    except NotThere:
        raise
    except Exception as error:  # safetensors raises its own kind, which is no public name for numpy users
        raise NotThere(f"{name} of this run is damaged ({type(error).__name__}).") from None
    return values, notes[key]


def titles(run: Run) -> dict[str, str]:
    """Names for axes and legends: the two models' own, and every method's from the catalogue."""
    try:
        return names.titles(json_file(run, "environment.json"))
    except NotThere:
        return names.titles({})


def model_titles(run: Run, labels: list[str]) -> dict[str, str]:
    """A title per model label of a run; a control's label is METHOD+CONTROL."""
    return names.model_titles(titles(run), labels)
