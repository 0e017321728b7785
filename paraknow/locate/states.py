"""What a model's layers do at the last position before the answer's last content token (METHODS 1.4).

Notation: x_l the layer's input, u the input of o_proj (h·e), m the input of down_proj (f), h the last layer's output,
c = (mean(h²) + eps)^(−1/2).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from paraknow.data import Encoded
from paraknow.errors import InputError, RunError
from paraknow.models import Loaded
from paraknow.progress import Progress, silent


@dataclass
class States:
    """What the seeds leave at the position before their word, float32: (seeds, L, ·); c and words are (seeds,)."""

    x: torch.Tensor
    attention: torch.Tensor
    ffn: torch.Tensor
    u: torch.Tensor
    m: torch.Tensor
    c: torch.Tensor
    words: torch.Tensor
    skipped: list[int]


def content_position(ids: Sequence[int], answer_start: int, tokenizer: Any) -> int | None:
    """Index in `ids` of the answer's last token that holds a letter or digit, or None.

    Special tokens (the end token among them) never count.
    """
    special = set(tokenizer.all_special_ids)
    for position in range(len(ids) - 1, answer_start - 1, -1):
        if ids[position] not in special and any(c.isalnum() for c in tokenizer.decode([ids[position]])):
            return position
    return None


@contextmanager
def _reading(loaded: Loaded, taken: dict[str, list[torch.Tensor]]) -> Iterator[None]:
    """Hooks that append the last position's states of every layer to `taken`, in order of layers."""
    a, handles = loaded.architecture, []

    def keep(name: str, value: Any) -> None:  # returns nothing: a hook's result would replace the value
        value = value[0] if isinstance(value, tuple) else value
        taken[name].append(value[0, -1].to(torch.float32, copy=True))  # a view would keep the whole text's values

    def into(name: str) -> Any:
        return lambda _, inputs: keep(name, inputs[0])

    def out_of(name: str) -> Any:
        return lambda _, __, output: keep(name, output)

    try:
        for layer in range(a.layers):
            block = loaded.model.get_submodule(f"model.layers.{layer}")
            handles.append(block.register_forward_pre_hook(into("x")))
            for module, name, inner in (("o", "attention", "u"), ("down", "ffn", "m")):
                matrix = loaded.model.get_submodule(a.path(module, layer))
                handles.append(matrix.register_forward_pre_hook(into(inner)))
                handles.append(matrix.register_forward_hook(out_of(name)))
        handles.append(block.register_forward_hook(out_of("h")))
        yield
    finally:
        for handle in handles:
            handle.remove()


def collect(loaded: Loaded, items: Sequence[Encoded], progress: Progress = silent) -> States:
    """Run the model on every seed up to its last content token and keep what its layers did there.

    Raises InputError (no seed has a content token, or the head caps its logits), RunError (NaN, with the layer).
    """
    if getattr(loaded.model.config, "final_logit_softcapping", None):
        raise InputError(f"attribution: {loaded.checkpoint.spec!r} caps its logits, which the lens cannot follow.")
    positions = [content_position(item.ids, item.answer_start, loaded.tokenizer) for item in items]
    kept = [(item, p) for item, p in zip(items, positions, strict=True) if p is not None]
    if not kept:
        raise InputError(
            "attribution: no seed's answer holds a token with a letter or digit, so no word can be traced."
        )
    names = ("x", "attention", "ffn", "u", "m")
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in (*names, "h")}
    training = loaded.model.training
    try:
        loaded.model.eval()
        for number, (item, position) in enumerate(kept):
            taken: dict[str, list[torch.Tensor]] = {name: [] for name in rows}
            with torch.no_grad(), _reading(loaded, taken):
                # What follows the position is of no consequence to it, and left out.
                loaded.model.model(input_ids=torch.tensor([item.ids[:position]], device=loaded.device), use_cache=False)
            for name, values in taken.items():
                rows[name].append(torch.stack(values))
            progress(number + 1, len(kept))
    finally:
        loaded.model.train(training)
    stacked = {name: torch.stack(values) for name, values in rows.items()}
    for name, what in (("x", "input"), ("attention", "attention output"), ("ffn", "FFN output")):
        bad = (~torch.isfinite(stacked[name])).any(-1).any(0).nonzero()
        if len(bad):
            raise RunError(f"attribution: the {what} of layer {int(bad[0])} is NaN or infinite.")
    last = stacked.pop("h")[:, 0]
    c = (last.square().mean(-1) + loaded.model.config.rms_norm_eps).rsqrt()
    words = torch.tensor([item.ids[p] for item, p in kept], device=loaded.device)
    return States(**stacked, c=c, words=words, skipped=[i for i, p in enumerate(positions) if p is None])
