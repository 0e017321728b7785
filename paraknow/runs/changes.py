"""What tuning made of every model, as numbers that findings rest on: tune/changes.parquet and tune/checks.parquet.

Both are read off what lies in adapters/ and align/, so that a run that was broken off and goes on writes the same.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from safetensors import safe_open

from paraknow import files, results
from paraknow.inject import ADAPTER_FILE
from paraknow.runs.session import Session

CHECKS = ("tuned", "start_difference", "tolerance", "moved", "steps", "kept_step")


def write_changes(session: Session) -> None:
    """tune/changes.parquet: the rows of align/starts.parquet with the size of the change that was saved.

    norm: ‖ΔW‖ of the adapter as saved, its start taken off again where it had one; of a checkpoint the difference
    to the student's matrix, missing where that has another shape.
    """
    starts = pd.read_parquet(session.run.path("align", "starts.parquet"))
    norms = starts.norm.to_numpy(float, copy=True)
    for candidate, seed in session.jobs():
        file = session.adapter(candidate, seed) / ADAPTER_FILE
        if not file.is_file():
            continue  # a checkpoint is not tuned after its start, a decoder changes no weights
        own = starts[(starts.model == candidate.label) & (starts.seed == seed)]
        with safe_open(file, framework="pt") as stream:
            for index, layer, module in zip(own.index, own.layer, own.module, strict=True):
                norms[index] = _norm(stream, session.models["student"].architecture.path(module, int(layer)))
    files.write_table(session.run.path("tune", "changes.parquet"), starts.assign(norm=norms))


def _norm(stream: Any, path: str) -> float:
    """‖B·A‖ without the product: ‖B·A‖² = tr(BᵀB·AAᵀ). The order of an embedding's factors does not change it."""
    kind, weight = ("embedding_", "") if path.endswith("embed_tokens") else ("", ".weight")
    a, b = (stream.get_tensor(f"base_model.model.{path}.lora_{kind}{n}{weight}").double() for n in "AB")
    return float((b.T @ b * (a @ a.T)).sum().clamp_min(0).sqrt())


def write_checks(session: Session, *unfinished: dict[str, Any]) -> None:
    """tune/checks.parquet, one row per model and seed: what was checked of it while it was made.

    tuned; start_difference: the largest difference of its first logits to the student's, and the tolerance for it;
    moved: that of its last logits; steps, kept_step: optimiser steps made, and those behind the weights that stay;
    same: whether a control starts as the method does. Missing where nothing was measured. `unfinished`: the rows of
    models that are refused.
    """
    rows = list(unfinished)
    for candidate, seed in session.jobs():
        file = session.adapter(candidate, seed) / "paraknow.json"
        if not file.is_file():
            continue
        facts, start = files.read_json(file), session.start_file(candidate, seed)
        same = start.is_file() and bool(results.read_notes(start).get("same"))
        rows.append({"model": candidate.label, "seed": seed, "same": same, **{n: facts.get(n) for n in CHECKS}})
    kinds: dict[str, Any] = dict.fromkeys(CHECKS, "float64") | {"tuned": "boolean", "same": "boolean", "seed": "int64"}
    table = pd.DataFrame(rows, columns=["model", "seed", "same", *CHECKS]).astype(kinds)
    files.write_table(session.run.path("tune", "checks.parquet"), table)


def moved(logits: torch.Tensor, plain: torch.Tensor) -> float:
    """The largest difference between two models' logits (tokens, V)."""
    return float((logits - plain).abs().max())
