"""What the locate and similarity stages found, in a few rows each, for the command line and for notes (no torch)."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from paraknow.runs.store import Run

Rows = list[dict[str, Any]]


def _read(run: Run, name: str) -> pd.DataFrame:
    path = run.path(*name.split("/"))
    return pd.read_parquet(path) if path.is_file() else pd.DataFrame()


def rows(table: pd.DataFrame) -> Rows:
    """A table's rows with plain values; NaN and missing are None."""
    made = []
    for record in table.to_dict("records"):
        row = {}
        for key, value in record.items():
            value = value.item() if hasattr(value, "item") else value
            row[str(key)] = None if value is pd.NA or (isinstance(value, float) and not math.isfinite(value)) else value
        made.append(row)
    return made


def located(run: Run) -> dict[str, Rows]:
    """Layer scores and what they feed; whether seeds and tasks agree (means over matrices)."""
    layers, agreement = _read(run, "locate/layers.parquet"), _read(run, "locate/agreement.parquet")
    result = {"layers": rows(layers)}
    if len(agreement):
        keys = ["about", "model", "task", "other", "what"]
        result["agreement"] = rows(agreement.groupby(keys, sort=False)[["value", "chance"]].mean().reset_index())
    return result


def compared(run: Run) -> dict[str, Rows]:
    """Mean CKA per task and module beside its nulls; the layer pairing; block geometry per matrix and source."""
    result: dict[str, Rows] = {}
    cka, stitching, weights = (_read(run, f"similarity/{n}.parquet") for n in ("cka", "stitching", "weights"))
    if len(cka):
        values = cka.groupby(["task", "module"], sort=False)[["cka", "null", "null_position", "untrained"]].mean()
        values["n"] = cka.groupby(["task", "module"], sort=False).n.first()
        result["cka"] = rows(values.reset_index())
    if len(stitching):
        paired = stitching[stitching.paired].sort_values("student_layer")
        result["stitching"] = rows(paired[["student_layer", "teacher_layer", "r2", "lo", "hi", "null", "n"]])
    if len(weights):
        names = ["norm_ratio", "cos", "cos_rest", "cos_rest_expected", "interference", "interference_expected"]
        result["weights"] = rows(weights.groupby(["module", "source"], sort=False)[names].mean().reset_index())
    return result
