"""A small finished run written by hand, and ways to pack it wrongly."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from paraknow import config as configs
from paraknow import files
from paraknow.evaluate import deltas
from paraknow.runs import store
from paraknow.runs.store import Run

CONFIG = {
    "name": "made by hand",
    "pair": {"teacher": "demo:teacher", "student": "demo:student"},
    "task": "demo:people",
    "method": {"name": "seeking", "rank": 8},
    "baselines": [],
    "controls": ["zero"],
}
MODELS = ("teacher", "student", "seeking", "zero")


def items(
    task: str = "demo:people", right: dict[str, str] | None = None, seeds: tuple[int, ...] = (0,)
) -> pd.DataFrame:
    """Eight items; `right` says per model which are answered ('11110000')."""
    right = {"teacher": "1" * 8, "student": "10000000", "seeking": "11110000", "zero": "10000000", **(right or {})}
    rows = [
        {"task": task, "group": "shown", "doc_id": doc, "doc_hash": f"hash {doc}", "model": model, "seed": seed}
        | {"prompt": f"Question {doc}", "target": "a", "answer": "a" if correct == "1" else "b"}
        | {"correct": correct == "1", "logprob": -1.0, "answer_tokens": 1, "candidates": ["a", "b"]}
        | {"candidate_logprobs": [-1.0, -2.0]}
        for model, answers in right.items()
        for seed in ((-1,) if model in ("teacher", "student") else seeds)
        for doc, correct in enumerate(answers)
    ]
    return pd.DataFrame(rows)


def finished(root: Path, environment: dict[str, Any] | None = None, **changes: Any) -> Run:
    """A run that is done, with a table, maps, items and deltas. `changes` are those of the config."""
    config = configs.parse({**CONFIG, **changes})
    run = store.create(config, root)
    run.update(state="done", stages=["load", "locate"], started=1.0, finished=2.0, pid=7, host="my-laptop")
    named = {"teacher": config.pair.teacher, "student": config.pair.student}
    models = {m: {"title": m, "spec": spec, "layers": 2, "sha256": m[0] * 64} for m, spec in named.items()}
    facts = {"versions": {"paraknow": "0.1.0"}, "device": "cpu", "seeds": [0], "models": models}
    files.write_json(run.path("environment.json"), facts | {"data": {config.task[0]: "d" * 64}} | (environment or {}))
    run.event(stage="tune", step=1, total=2, message="seeking, seed 0", loss=2.0)
    layers = {"task": config.task[0], "model": "teacher", "layer": [0, 1], "by": "sensitivity", "score": 1.0}
    files.write_table(
        run.path("locate", "layers.parquet"), pd.DataFrame({**layers, "chosen": True, "student_layer": [0, 1]})
    )
    maps = {"teacher/0/q": np.ones((4, 4), np.float16)}
    notes = {"maps": json.dumps({k: {"shape": [8, 8], "max": 0.5, "pooling": "max"} for k in maps})}
    save_file(maps, run.path("locate", "maps.safetensors"), metadata=notes)
    measured(run, items(config.task[0]))
    return run


def measured(run: Run, table: pd.DataFrame) -> None:
    """Put items into a run, and the rows made of them."""
    files.write_table(run.path("evaluate", "items.parquet"), table)
    rows = deltas.rows(table, {"seeking": ["zero"]}, resamples=200)
    files.write_json(run.path("evaluate", "deltas.json"), {"run": run.id, "rows": rows})


def adapter(run: Run, base: str) -> None:
    """An adapter as peft writes it."""
    folder = run.path("adapters", "seeking", "0")
    folder.mkdir(parents=True)
    folder.joinpath("adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base, "r": 8}))
    folder.joinpath("paraknow.json").write_text(json.dumps({"schema_version": 1, "method": "seeking"}))
    save_file({"a": np.zeros((2, 2), np.float32)}, folder / "adapter_model.safetensors")


def repacked(bundle: Path, target: Path, change: Callable[[dict[str, bytes]], None], honest: bool = True) -> Path:
    """A bundle with other content; `honest`: bundle.json lists what is there."""
    import hashlib

    with zipfile.ZipFile(bundle) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    change(content)
    if honest and "bundle.json" in content:
        about = json.loads(content["bundle.json"])
        about["files"] = [
            {"path": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in content.items()
            if name != "bundle.json"
        ]
        content["bundle.json"] = json.dumps(about).encode()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return target


def parquet(table: pd.DataFrame) -> bytes:
    stream = io.BytesIO()
    table.to_parquet(stream, index=False)
    return stream.getvalue()


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, and every folder, with content."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"/" for p in sorted(folder.rglob("*"))}
