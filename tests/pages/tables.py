"""Small tables of the locate and similarity stages, written by hand: two layers in both models, two tasks."""

from __future__ import annotations

import numpy as np
import pandas as pd

from paraknow import files
from paraknow.runs import calibrate
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


def budgets() -> pd.DataFrame:
    rows = [
        {"model": "seeking", "examples": 600, "steps": 30, "trainable": 4096, "teacher_flops": 2e9, "more": []},
        {"model": "zero", "examples": 0, "steps": 0, "trainable": 0, "teacher_flops": 0.0, "more": []},
        {"model": "seeking+noise", "examples": 600, "steps": 30, "trainable": 4096, "teacher_flops": 9e9}
        | {"more": ["examples", "teacher_flops"]},
    ]
    return pd.DataFrame([{"seed": 0, "added": 0, "student_flops": 5e9, **row} for row in rows])


def steps() -> pd.DataFrame:
    """What LaTen keeps of its steps; one score was not finite."""
    rows = [(0, None, None, None, 2.0), (1, 3.0, 2.5, 5e-4, 1.5), (2, 2.9, 2.4, 6e-4, 1.2), (3, 9.0, 8.0, 1e-3, None)]
    table = pd.DataFrame(rows, columns=["step", "loss", "cross_entropy", "norm", "score"])
    return table.assign(chosen=table.step == 2)


def fits() -> pd.DataFrame:
    """What transport keeps of its layers."""
    return pd.DataFrame(
        {"student_layer": [0, 1], "teacher_layer": [0, 1], "fit_in": 0.9, "fit_out": 0.8, "neurons": 64}
    )


LADDER_SHARES = {  # mean over worlds by rung and model; None: could not be measured
    "clone": {"oracle": 1.0, "transport": 0.4, "transport-widen-16": 0.1, "transport-widen-64": 0.3, "seeking": 0.05},
    "sibling": {"transport": 0.7, "transport-widen-16": 0.2, "transport-widen-64": 0.5, "seeking": 0.0},
    "stranger": {"transport": 0.0, "transport-widen-16": None, "transport-widen-64": None, "seeking": None},
}


def calibration(worlds: tuple[str, ...] = ("0", "1", "2")) -> dict:
    """A calibration as the command writes it: three rungs, two methods with controls, variants by neurons."""
    rows = []
    for rung, methods in LADDER_SHARES.items():
        shares = {"teacher": 1.0, "student": None, "zero": 0.0, **methods}
        for method in ("transport", "seeking"):
            shares |= {f"{method}+noise": -1.2 if rung == "sibling" else 0.0, f"{method}+shuffled_teacher": 0.02}
        bits = {"teacher": 4.0, "student": 2.0 if rung == "sibling" else 0.0}
        for k, world in enumerate(worlds):
            for model, share in shares.items():
                value = None if share is None else share + 0.05 * (k - (len(worlds) - 1) / 2) * (model in methods)
                row = {"world": world, "rung": rung, "model": model, "share": value, "n": 90, "accuracy": 0.5}
                row |= {"share_ci": None if value is None else [value - 0.1, value + 0.1], "known": 0.9, "claim": None}
                row |= {"bits": bits.get(model, 1.0), "missing": "no surplus" if value is None else None, "run": "r"}
                rows.append(row | {"kinship": None, "cka": 0.9 - 0.1 * k, "r2": 0.8, "fit_turned": 0.5})
    found = calibrate.Calibration(rows, calibrate.pool(rows), calibrate.predictors(rows, ["transport", "seeking"]))
    found.passed, found.words = calibrate.verdict(found.pooled, ["transport", "seeking"], list(LADDER_SHARES))
    return {"schema_version": 1, "command": "paraknow calibrate there --json", **vars(found)}


def crossed() -> dict:
    """A cross matrix as the command writes it: two tasks, one cell missing, one group."""
    values = {("demo:people", "demo:people"): 0.4, ("demo:sort", "demo:people"): 0.1, (None, "demo:people"): 0.0}
    values |= {("demo:people", "demo:sort"): None, ("demo:sort", "demo:sort"): -0.2, (None, "demo:sort"): 0.0}
    cells = []
    for scope in ("all", "never_shown"):
        for (located, measured), value in values.items():
            if scope != "all" and measured != "demo:people":
                continue
            around = 0.05 if value == 0 else 0.1
            ci = None if value is None else [value - around, value + around]
            row = {"located": located, "measured": measured, "own": located == measured, "scope": scope}
            row |= {"run": "r", "state": "done", "error": None, "n": 120, "seeds": 1, "accuracy": 0.5}
            row |= {"delta": value, "delta_ci": ci, "against": {}}
            if value is None:
                row |= {"state": "failed", "error": "it broke <b>", "n": None, "accuracy": None}
            elif located:
                held = {"delta": value - 0.05, "delta_ci": [value - 0.1, value + 0.1]}
                row["against"] = {"noise": held, "random_window": held}
            cells.append(row)
    words = ["demo:people: locating on it brings more than locating on the other task (+0.30, -0.10 to +0.50)."]
    about = {"name": "x", "method": "seeking", "title": "Seeking", "pair": {"teacher": "a", "student": "b"}}
    return {
        "command": "paraknow cross x.yaml",
        **about,
        "tasks": ["demo:people", "demo:sort"],
        "cells": cells,
        "words": words,
    }


# Readable, but not what a run writes: fields of other kinds, nesting without end.
ODD = {
    "status.json": ['{"state": "done", "created": 1e300, "stages": 5}', '{"state": ["x"]}', "[" * 100000, '{"a": NaN}'],
    "environment.json": ['{"models": {"teacher": 3}}', '{"models": [], "data": 4}', "null", "[" * 100000],
    "events.jsonl": [
        '{"stage": "tune", "loss": "x", "step": "y", "message": "a, seed 0"}\n[1]\n{',
        "\x00",
        "[" * 99999,
        "",
    ],
    "evaluate/deltas.json": [
        '{"rows": [{"model": "a", "suite": "b", "group": "c", "accuracy": "x"}]}',
        '{"rows": [{"model": "a", "suite": "b", "group": "c", "delta_ci": [1]}]}',
        '{"rows": [{"model": "a", "suite": "b", "group": "c", "against": 4}]}',
        '{"rows": {}}',
    ],
    "config.yaml": ["pair: x\ntask: [1, 2]\nmethod: y\n", "- 1\n", "a: &a [*a]\n", "!!python/object:os.x {}\n"],
}


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
OF_METHODS = {"tune/budgets": budgets, "align/seeking/0": steps, "align/seeking+noise/0": fits}


def write(run: Run) -> None:
    """All of them into a run folder."""
    for name, make in {**TABLES, **OF_METHODS}.items():
        files.write_table(run.path(*f"{name}.parquet".split("/")), make())
