"""Read the outputs of every module of a model at chosen positions, in one pass over the text (METHODS 3.1).

Hooks keep only the rows that are asked for, so memory is counted in positions, not in tokens read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from paraknow import chance, placing
from paraknow.architecture import Architecture
from paraknow.models import Loaded, release
from paraknow.progress import Progress, part, silent
from paraknow.similarity.points import Points

OUTPUTS = ("q", "k", "v", "o", "gate", "up", "down", "residual")
# In the supported families o and down are the last things that attention and FFN do: one tensor, two names.
SAME_OUTPUT = {"attention": "o", "ffn": "down"}
# Matrices that read the same input.
INPUT_OF = {"q": "q", "k": "q", "v": "q", "o": "o", "gate": "gate", "up": "gate", "down": "down"}

Rows = dict[tuple[int, str], torch.Tensor]  # (layer, module) → (rows, features)


@dataclass(frozen=True)
class Batch:
    """Rows of both models at the same places of the text, at most one of each example."""

    owners: list[int]
    offsets: list[int]
    teacher: Rows
    student: Rows


def _where(architecture: Architecture, module: str, layer: int) -> str:
    # The last hidden state that transformers returns is after the final norm: a block's own output is not.
    return f"model.layers.{layer}" if module == "residual" else architecture.path(module, layer)


@contextmanager
def _hooks(loaded: Loaded, modules: Sequence[str], inputs: bool, keep: Callable) -> Iterator[None]:
    handles = []

    def hook(key: tuple[int, str]) -> Any:
        if inputs:
            return lambda _, given: keep(key, given[0])
        return lambda _, __, output: keep(key, output[0] if isinstance(output, tuple) else output)

    try:
        for layer in range(loaded.architecture.layers):
            for module in modules:
                found = loaded.model.get_submodule(_where(loaded.architecture, module, layer))
                register = found.register_forward_pre_hook if inputs else found.register_forward_hook
                handles.append(register(hook((layer, module))))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _empty(loaded: Loaded, modules: Sequence[str], inputs: bool, rows: int) -> Rows:
    """Room for all rows before anything is read: pieces would scatter between a pass's own large tensors, whose memory
    is then never given back, and joining them would take as much again."""
    made, stream = {}, loaded.model.get_input_embeddings().weight.shape[1]
    for layer in range(loaded.architecture.layers):
        for module in modules:
            size = stream
            if module != "residual":  # by the weight itself: a carried matrix may be wider than its layer says
                matrix = loaded.model.get_submodule(_where(loaded.architecture, module, layer)).weight
                size = matrix.shape[1 if inputs else 0]
            made[(layer, module)] = torch.empty(rows, size, dtype=loaded.model.dtype, device=loaded.device)
    return made


@torch.no_grad()
def rows_of(
    loaded: Loaded,
    texts: Sequence[Sequence[int]],
    at: Sequence[Sequence[int]],
    modules: Sequence[str] = OUTPUTS,
    inputs: bool = False,
    forward_batch: int = 16,
    progress: Progress = silent,
) -> Rows:
    """Outputs (or inputs) of every layer's `modules` at positions `at[i]` of `texts[i]`, one text after another.

    Rows are in the model's own type, on its device. The model is left as it was found.
    """
    taken, done = _empty(loaded, modules, inputs, sum(map(len, at))), 0
    place: tuple[torch.Tensor, torch.Tensor]

    def keep(key: tuple[int, str], value: torch.Tensor) -> None:
        taken[key][done : done + len(place[0])] = value[place]

    training, total = loaded.model.training, len(texts)
    try:
        loaded.model.eval()
        with _hooks(loaded, modules, inputs, keep):
            for first in range(0, total, forward_batch):
                some, where = texts[first : first + forward_batch], at[first : first + forward_batch]
                width = max(map(len, some))
                # Padding comes after the text, where no earlier position looks: no mask is needed.
                ids = torch.tensor([[*t, *[0] * (width - len(t))] for t in some], device=loaded.device)
                lines = torch.tensor([i for i, w in enumerate(where) for _ in w], device=loaded.device)
                columns = torch.tensor([p for w in where for p in w], device=loaded.device)
                place = (lines, columns)
                loaded.model.model(input_ids=ids, use_cache=False)
                done += len(lines)
                progress(min(total, first + forward_batch), total)
    finally:
        loaded.model.train(training)
    return taken


def batches(
    teacher: Loaded,
    student: Loaded,
    points: Sequence[Points],
    batch_rows: int = 512,
    modules: Sequence[str] = OUTPUTS,
    forward_batch: int = 16,
    progress: Progress = silent,
) -> Iterator[Batch]:
    """Both models' outputs in batches of at most `batch_rows` rows; each text is read once by each model.

    The examples are split evenly; the k-th batch of a part holds the k-th position of each of its examples, where
    it has one. Batches of fewer than 4 rows are left out: CKA is not defined there.
    """
    parts = -(-len(points) // batch_rows)
    edges = [round(i * len(points) / parts) for i in range(parts + 1)]
    for begin, end in pairwise(edges):
        some = points[begin:end]
        both = []
        for number, (loaded, side) in enumerate(((teacher, "teacher"), (student, "student"))):
            texts = [getattr(p, f"{side}_ids") for p in some]
            at = [getattr(p, f"{side}_at") for p in some]
            report = part(progress, 2 * begin + number * len(some), 2 * len(points), side)
            both.append(rows_of(loaded, texts, at, modules, False, forward_batch, report))
        start, line = [], 0
        for p in some:
            start.append(line)
            line += len(p.offsets)
        for k in range(max(len(p.offsets) for p in some)):
            chosen = [(i, p) for i, p in enumerate(some) if len(p.offsets) > k]
            if len(chosen) < 4:
                continue
            lines = [start[i] + k for i, _ in chosen]
            index = [torch.tensor(lines, device=loaded.device) for loaded in (teacher, student)]
            one_batch = [{key: rows[i] for key, rows in side.items()} for i, side in zip(index, both, strict=True)]
            yield Batch([p.example for _, p in chosen], [p.offsets[k] for _, p in chosen], *one_batch)


@contextmanager
def untrained_pair(teacher: Loaded, student: Loaded, seed: int = 0) -> Iterator[tuple[Loaded, Loaded]]:
    """Two models of the same shapes as they come from initialisation, for the time of the block.

    On a GPU the trained ones wait in host memory meanwhile, so that no more than one pair is there at a time. Layers
    of the untrained models wait where the trained ones' do.
    """
    from transformers import AutoModelForCausalLM

    device, made = teacher.device, []
    with placing.away([loaded.model for loaded in (teacher, student)]):
        try:
            release()
            for number, loaded in enumerate((teacher, student)):
                with chance.drawn_from(seed + number):
                    layers = loaded.layers or (str(device),) * loaded.architecture.layers
                    # a whole model is made where it will be; one that does not fit there is made in host memory
                    with device if set(layers) == {str(device)} else torch.device("cpu"):
                        model = AutoModelForCausalLM.from_config(loaded.model.config, dtype=loaded.model.dtype)
                    model = placing.place(model, device, layers).eval().requires_grad_(False)
                    made.append(Loaded(loaded.checkpoint, model, loaded.tokenizer, layers=layers))
            yield made[0], made[1]
        finally:
            made.clear()
            release()
