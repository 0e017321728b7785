"""Keep a finished run with the package, small enough to ship: tables and pooled maps, no adapters (no torch)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from paraknow import files
from paraknow.errors import InputError
from paraknow.runs import store
from paraknow.runs.store import Run

KEPT = (
    "config.yaml",
    "events.jsonl",
    "environment.json",
    "locate/sensitivity.parquet",
    "locate/layers.parquet",
    "locate/blocks.parquet",
    "locate/agreement.parquet",
    "locate/neurons.parquet",
    "locate/attribution.parquet",
    "locate/promoted.parquet",
    "similarity/cka.parquet",
    "similarity/stitching.parquet",
    "similarity/weights.parquet",
    "similarity/spectra.parquet",
    "align/starts.parquet",
    "adapters/reload.json",
    "tune/budgets.parquet",
    "tune/changes.parquet",
    "tune/checks.parquet",
    "evaluate/items.parquet",
    "evaluate/deltas.json",
    "diagnose.json",
)
SIDE = 128


def record(run: Run, root: Path) -> Path:
    """Copy what pages show of a finished run to root/<id>; maps are pooled once more, to 128 cells a side.

    Raises InputError for a run that is not done.
    """
    if run.status().get("state") != "done":
        raise InputError(f"run {run.id} is not done, so it cannot be recorded.")
    with files.replacing_folder(root / run.id) as folder:
        for name in (n for n in KEPT if run.path(n).is_file()):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run.path(name), folder / name)
        arrays, notes = {}, {}
        with safe_open(run.path("locate", "maps.safetensors"), framework="numpy") as stream:
            described = json.loads(stream.metadata()["maps"])
            for key in stream.keys():  # noqa: SIM118 (not a dict)
                arrays[key], notes[key] = pool(stream.get_tensor(key), SIDE), described[key]
        save_file(arrays, folder / "locate" / "maps.safetensors", metadata={"maps": json.dumps(notes)})
        status = {k: v for k, v in run.status().items() if k not in (*store.OWN_PLACE, "schema_version")}
        files.write_json(folder / "status.json", status)
    return root / run.id


def pool(values: np.ndarray, side: int) -> np.ndarray:
    """Largest value of each cell of a grid of at most side × side cells."""
    for axis, length in enumerate(values.shape):
        if length > side:
            edges = np.arange(side) * length // side
            values = np.maximum.reduceat(values, edges, axis=axis)
    return np.ascontiguousarray(values)
