"""A made-up run of two deep models: 80 layers against 60, with the tables whose maps grow with depth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from paraknow import files
from paraknow.runs.store import Run
from tests.runs import packed

MODULES = ("q", "k", "v", "o", "gate", "up", "down")
TASK = "demo:people"


def run(root: Path, layers: tuple[int, int] = (80, 60)) -> Run:
    """Sensitivity, CKA of the residual stream and stitching, drawn at random."""
    made = packed.finished(root)
    drawn = np.random.default_rng(0)
    depth = dict(zip(("teacher", "student"), layers, strict=True))
    cells = pd.DataFrame(
        [(model, seed, k, m) for model in depth for seed in (-1, 0) for k in range(depth[model]) for m in MODULES],
        columns=["model", "seed", "layer", "module"],
    )
    values = {c: drawn.uniform(1e-4, 1e-2, len(cells)) for c in ("sum", "mean", "max", "share")}
    files.write_table(made.path("locate", "sensitivity.parquet"), cells.assign(task=TASK, **values))
    grid = pd.MultiIndex.from_product([range(n) for n in layers], names=["teacher_layer", "student_layer"]).to_frame()
    null = {"null": 0.0, "null_lo": -0.1, "null_hi": 0.1, "null_position": 0.1, "untrained": 0.3}
    values = {"cka": drawn.uniform(0, 1, len(grid)), "lo": 0.1, "hi": 0.9, "n": 80, "examples": 40, **null}
    cka = grid.assign(task=TASK, module="residual", **values).reset_index(drop=True)
    files.write_table(made.path("similarity", "cka.parquet"), cka)
    on_line = grid.teacher_layer * layers[1] // layers[0] == grid.student_layer
    paired = on_line & ~grid[on_line].student_layer.duplicated().reindex(grid.index, fill_value=True)
    stitching = grid.assign(r2=drawn.uniform(0, 1, len(grid)), lo=0.2, hi=0.9, null=0.0, n=80, paired=paired)
    files.write_table(made.path("similarity", "stitching.parquet"), stitching.reset_index(drop=True))
    return made
