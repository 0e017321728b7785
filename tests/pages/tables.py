"""Small tables of the locate and similarity stages, written by hand: two layers in both models, two tasks."""

from __future__ import annotations

import numpy as np
import pandas as pd

from paraknow import files
from paraknow.runs.store import Run

MODULES = ("residual", "attention", "ffn", "q", "k", "v", "o", "gate", "up", "down")
PAIRS = [(t, s) for t in (0, 1) for s in (0, 1)]
TASKS = ("demo:people", "demo:sum")


def cka() -> pd.DataFrame:
    rows = []
    for task in TASKS:
        for module in MODULES:
            for t, s in PAIRS:
                value = 0.9 - 0.3 * abs(t - s)
                row = {"task": task, "module": module, "teacher_layer": t, "student_layer": s, "cka": value}
                row |= {"lo": value - 0.05, "hi": value + 0.05, "null": 0.001, "null_lo": -0.02, "null_hi": 0.02}
                rows.append(row | {"null_position": 0.1, "untrained": 0.3, "n": 80, "batches": 2, "examples": 40})
    return pd.DataFrame(rows)


def stitching() -> pd.DataFrame:
    rows = [
        {"teacher_layer": t, "student_layer": s, "r2": 0.8 - 0.2 * abs(t - s), "lo": 0.5, "hi": 0.85, "null": -0.01}
        | {"ridge": 1e-3, "n": 20, "paired": t == s}
        for t, s in PAIRS
    ]
    return pd.DataFrame(rows)


def weights() -> pd.DataFrame:
    rows = []
    for module in ("q", "down"):
        for layer in (0, 1):
            for source, value in (("block", 0.01), ("own", 0.7), ("noise", -0.01)):
                row = {"module": module, "teacher_layer": layer, "student_layer": layer, "source": source, "rank": 8}
                row |= {"norm_ratio": 0.6, "cos": value, "cos_rest": -0.5, "cos_rest_expected": -0.51, "cos_sd": 0.02}
                row |= {"left_overlap": 0.2, "left_expected": 0.1, "right_overlap": 0.2, "right_expected": 0.1}
                row |= {"interference": 0.3, "interference_expected": 0.25, "directions": 9, "n": 40}
                rows.append(row)
    return pd.DataFrame(rows)


def spectra() -> pd.DataFrame:
    rows = [
        {"model": model, "layer": layer, "module": module, "index": k, "size": 1 - k / 6, "effective_rank": 4.5}
        | {"shape0": 6, "shape1": 8}
        for model in ("teacher", "student")
        for layer in (0, 1)
        for module in ("q", "down")
        for k in range(6)
    ]
    return pd.DataFrame(rows)


def across_tasks() -> pd.DataFrame:
    return pd.DataFrame(
        [{"module": m, "task": TASKS[0], "other": TASKS[1], "rank_correlation": 0.4, "n": 4} for m in MODULES]
    )


def agreement() -> pd.DataFrame:
    rows = []

    def add(about: str, task: str, other: str, what: str, value: float, module: str = "", layer: int | None = None):
        row = {"about": about, "model": "teacher", "task": task, "other": other, "what": what, "module": module}
        rows.append(row | {"layer": layer, "value": value, "chance": 0.3, "lo": np.nan, "hi": np.nan, "n": 8})

    for about, task, other in (("split_half", TASKS[0], ""), ("tasks", *TASKS)):
        add(about, task, other, "layer_scores", 0.9)
        add(about, task, other, "chosen_layers", 0.5)
        for layer in (0, 1):
            add(about, task, other, "block", 0.4, "q", layer)
            add(about, task, other, "map", 0.7, "q", layer)
    for layer in (0, 1):
        for kind in ("attention", "ffn"):
            add("first_order", TASKS[0], "", "neurons", 0.99, kind, layer)
    return pd.DataFrame(rows).astype({"layer": "Int64"})


def attribution() -> pd.DataFrame:
    rows = [
        {"task": TASKS[0], "model": model, "seed": seed, "layer": layer, "kind": kind, "score": 1.5, "summed": 2.0}
        for model in ("teacher", "student")
        for seed in (-1, 0, 1)
        for layer in (0, 1)
        for kind in ("attention", "ffn")
    ]
    return pd.DataFrame(rows)


def promoted() -> pd.DataFrame:
    rows = [
        {"task": TASKS[0], "model": model, "layer": 1, "kind": kind, "neuron": 7, "place": place, "score": 2.0 - place}
        | {"tokens": [" a", "\n", "<b>"], "logits": [3.0, 2.0, 1.0]}
        for model in ("teacher", "student")
        for kind in ("ffn", "attention")
        for place in (0, 1)
    ]
    return pd.DataFrame(rows)


TABLES = {
    "similarity/cka": cka,
    "similarity/stitching": stitching,
    "similarity/weights": weights,
    "similarity/spectra": spectra,
    "similarity/tasks": across_tasks,
    "locate/agreement": agreement,
    "locate/attribution": attribution,
    "locate/promoted": promoted,
}


def write(run: Run) -> None:
    """All of them into a run folder."""
    for name, make in TABLES.items():
        files.write_table(run.path(*f"{name}.parquet".split("/")), make())
