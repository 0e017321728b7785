"""A run of a large pair, made up: the shapes of Llama-2 13B against 7B (or more layers), matrices pooled to 512²."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from paraknow import config as configs
from paraknow import files
from paraknow.config import MODULES
from paraknow.runs import store
from tests.pages import tables, test_pages

SHAPES = {m: (5120, 5120) for m in "qkvo"} | {"gate": (13824, 5120), "up": (13824, 5120), "down": (5120, 13824)}
NAMES = {"teacher": "someone/Large-Model-13b-chat-hf", "student": "someone/Large-Model-7b-chat-hf"}
TASK, SEEDS, PLACES = "gsm8k", 4, 64


def write(root: Path, teacher: int = 40, student: int = 32) -> store.Run:
    """A finished run with every artifact that pages read; maps of a few matrices (of all it would be 260 MB)."""
    values = {"pair": NAMES, "task": TASK, "method": {"name": "seeking"}, "name": f"{teacher} against {student} layers"}
    run = store.create(configs.parse(values), root)
    stages = ["load", "locate", "similarity", "align", "tune", "evaluate"]
    run.update(state="done", stages=stages, started=1.0, finished=9000.0)
    layers, draw = {"teacher": teacher, "student": student}, np.random.default_rng(0)
    models = {m: {"title": NAMES[m].split("/")[1], "layers": layers[m]} for m in layers}
    files.write_json(run.path("environment.json"), {"models": models})
    pairs = np.rint(np.linspace(0, teacher - 1, student)).astype(int)
    sensitivity = _sensitivity(layers, draw)
    made = {
        "locate/sensitivity": sensitivity,
        "locate/layers": _layers(sensitivity, pairs),
        "locate/blocks": _blocks(pairs, draw),
        "similarity/cka": _cka(teacher, student, draw),
        "similarity/stitching": _stitching(teacher, student, pairs, draw),
        "similarity/weights": _weights(pairs, draw),
        "similarity/spectra": _spectra(layers),
        "locate/agreement": _agreement(teacher, draw),
        "locate/attribution": _attribution(layers, draw),
        "locate/promoted": tables.promoted().assign(task=TASK),
        "tune/budgets": tables.budgets(),
    }
    for name, table in made.items():
        files.write_table(run.path(*f"{name}.parquet".split("/")), table)
    maps = {f"{m}/{layers[m] - 1}/{n}": draw.random((512, 512), np.float32) ** 8 for m in layers for n in ("q", "down")}
    notes = {k: {"shape": SHAPES[k.split("/")[2]], "max": 3e-4, "pooling": "max"} for k in maps}
    half = {k: v.astype(np.float16) for k, v in maps.items()}
    save_file(half, run.path("locate", "maps.safetensors"), metadata={"maps": json.dumps(notes)})
    files.write_table(run.path("evaluate", "items.parquet"), test_pages.items())
    files.write_json(run.path("evaluate", "deltas.json"), {"run": run.id, "rows": test_pages.rows()})
    return run


def _sensitivity(layers: dict[str, int], draw: np.random.Generator) -> pd.DataFrame:
    parts = []
    for model, seed in product(layers, range(-1, SEEDS)):
        places = pd.DataFrame(product(range(layers[model]), MODULES), columns=["layer", "module"])
        values = draw.lognormal(size=len(places)) * (1 + places.layer + 10 * (places.module == "down"))
        values *= SEEDS if seed == -1 else 1
        parts.append(
            places.assign(task=TASK, model=model, seed=seed, sum=values, mean=values / 5120**2, max=values / 50)
        )
        parts[-1]["share"] = values / values.sum()
    return pd.concat(parts, ignore_index=True)


def _layers(sensitivity: pd.DataFrame, pairs: np.ndarray) -> pd.DataFrame:
    fed = {int(t): s for s, t in enumerate(pairs)}
    own = sensitivity[(sensitivity.model == "teacher") & (sensitivity.seed == -1)]
    table = own.groupby("layer")["sum"].sum().rename("score").reset_index().assign(task=TASK, model="teacher")
    table = table.assign(by="sensitivity", chosen=table.layer.isin(list(fed)))
    return table.assign(student_layer=pd.array([fed.get(k) for k in table.layer], "Int64"))


def _blocks(pairs: np.ndarray, draw: np.random.Generator) -> pd.DataFrame:
    table = pd.DataFrame(product(enumerate(pairs), MODULES), columns=["pair", "module"])
    table["student_layer"], table["teacher_layer"] = [p[0] for p in table.pair], [int(p[1]) for p in table.pair]
    return table.drop(columns="pair").assign(
        row=draw.integers(0, 1000, len(table)), col=draw.integers(0, 1000, len(table)), rows=4096, cols=4096, share=0.7
    )


def _grid(teacher: int, student: int) -> pd.DataFrame:
    return pd.DataFrame(product(range(teacher), range(student)), columns=["teacher_layer", "student_layer"])


def _cka(teacher: int, student: int, draw: np.random.Generator) -> pd.DataFrame:
    parts = []
    for module in tables.MODULES:
        own = _grid(teacher, student).assign(task=TASK, module=module)
        far = (own.teacher_layer / teacher - own.student_layer / student).abs()
        own["cka"] = 0.9 - 0.6 * far + 0.02 * draw.standard_normal(len(own))
        parts.append(own.assign(lo=own.cka - 0.04, hi=own.cka + 0.04, null=0.002, null_lo=-0.01, null_hi=0.01))
    whole = pd.concat(parts, ignore_index=True)
    return whole.assign(null_position=0.12, untrained=0.3, n=4096, batches=4, examples=512)


def _stitching(teacher: int, student: int, pairs: np.ndarray, draw: np.random.Generator) -> pd.DataFrame:
    own = _grid(teacher, student)
    own["r2"] = 0.8 - 0.5 * (own.teacher_layer / teacher - own.student_layer / student).abs()
    own = own.assign(lo=own.r2 - 0.05, hi=own.r2 + 0.05, null=-0.02, ridge=1e-3, n=2048)
    return own.assign(paired=[pairs[s] == t for t, s in zip(own.teacher_layer, own.student_layer, strict=True)])


def _weights(pairs: np.ndarray, draw: np.random.Generator) -> pd.DataFrame:
    like = tables.weights().iloc[:3]
    parts = [
        like.assign(module=m, teacher_layer=int(t), student_layer=s, cos=draw.normal(0, 0.02, 3))
        for (s, t), m in product(enumerate(pairs), MODULES)
    ]
    return pd.concat(parts, ignore_index=True)


def _spectra(layers: dict[str, int]) -> pd.DataFrame:
    parts = []
    for model, module in product(layers, MODULES):
        own = pd.DataFrame(product(range(layers[model]), range(PLACES)), columns=["layer", "index"])
        own["size"] = np.exp(-own["index"] / (8 + own.layer))
        shape0, shape1 = SHAPES[module]
        parts.append(own.assign(model=model, module=module, effective_rank=900.0, shape0=shape0, shape1=shape1))
    return pd.concat(parts, ignore_index=True)


def _agreement(teacher: int, draw: np.random.Generator) -> pd.DataFrame:
    whole, block = tables.agreement(), tables.agreement().query("about == 'split_half' and what == 'block'").iloc[:1]
    parts = [whole[(whole.about == "split_half") & whole.layer.isna()]]
    for what, layer, module in product(("block", "map"), range(teacher), MODULES):
        parts.append(block.assign(what=what, layer=layer, module=module, value=draw.random()))
    return pd.concat(parts, ignore_index=True).assign(task=TASK)


def _attribution(layers: dict[str, int], draw: np.random.Generator) -> pd.DataFrame:
    parts = []
    for model, seed, kind in product(layers, range(-1, 2), ("attention", "ffn")):
        scores = draw.normal(0.1, 0.5, layers[model])
        own = pd.DataFrame({"layer": range(layers[model]), "score": scores, "summed": 1.2 * scores})
        parts.append(own.assign(task=TASK, model=model, seed=seed, kind=kind))
    return pd.concat(parts, ignore_index=True)
