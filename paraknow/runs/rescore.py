"""A run's statistics anew from its stored items, by today's formulas; no model is asked again (no torch)."""

from __future__ import annotations

from paraknow import files
from paraknow.errors import InputError
from paraknow.evaluate import deltas
from paraknow.runs import artifacts, diagnosis
from paraknow.runs.store import Run


def rescore(run: Run) -> int:
    """Write evaluate/deltas.json anew; models keep the controls they were held against. Returns how many rows it has.

    Raises InputError where the run is read-only, or has no measured items or no deltas.
    """
    run.refuse_read_only()
    if not run.path("evaluate", "items.parquet").is_file():
        raise InputError(f"run {run.id} has no measured items.")
    items = artifacts.table(run.folder, "evaluate/items.parquet")
    before = artifacts.json_file(run.folder, "evaluate/deltas.json")["rows"]
    judged = [row for row in before if row.get("claim") is not None]
    controls = {row["model"]: [a["control"] for a in row.get("against", ())] for row in judged}
    config = run.config()
    rows = deltas.rows(items, controls, config.evaluate.resamples, config.seed)
    files.write_json(run.path("evaluate", "deltas.json"), {"run": run.id, "rows": rows})
    if run.path(diagnosis.FILE).is_file():  # it rests on those rows
        diagnosis.write(run)
    return len(rows)
