"""A run's statistics anew from its stored items, by today's formulas; no model is asked again (no torch)."""

from __future__ import annotations

import pandas as pd

from paraknow import files
from paraknow.errors import InputError
from paraknow.evaluate import deltas
from paraknow.runs.store import Run


def rescore(run: Run) -> int:
    """Write evaluate/deltas.json anew; models keep the controls they were held against. Returns how many rows it has.

    Raises InputError where the run is read-only, or has no measured items or no deltas.
    """
    items, kept = (run.path("evaluate", name) for name in ("items.parquet", "deltas.json"))
    run.refuse_read_only()
    if not (items.is_file() and kept.is_file()):
        raise InputError(f"run {run.id} has no measured items.")
    before = files.read_json(kept)["rows"]
    controls = {row["model"]: [a["control"] for a in row["against"]] for row in before if row["claim"] is not None}
    config = run.config()
    rows = deltas.rows(pd.read_parquet(items), controls, config.evaluate.resamples, config.seed)
    files.write_json(kept, {"run": run.id, "rows": rows})
    return len(rows)
