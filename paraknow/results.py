"""What a method made, on disk and in use: an adapter, a checkpoint or a decoder (METHODS part 2).

A start is kept in align/ as safetensors, its kind and numbers in the header. The finished result lies in
adapters/<model>/<seed>/: a plain PEFT adapter, a checkpoint with its tokenizer, or decoder.json.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from paraknow import files, inject, models
from paraknow.config import EMBEDDING, MODULES
from paraknow.errors import InputError, RunError
from paraknow.methods.base import Method, Place, Start
from paraknow.models import Loaded

DECODER_FILE = "decoder.json"
NUMBERS = ("tuned", "decoder", "examples", "steps", "trainable")


def save_start(path: Path, start: Start, **more: Any) -> None:
    """Write a start; `more` is kept beside its numbers. Tables and losses are not part of it."""
    tensors: dict[str, torch.Tensor] = {"empty": torch.zeros(1)}  # safetensors wants at least one tensor
    for (layer, module), (b, a) in start.factors.items():
        tensors[f"{layer}.{module}.B"], tensors[f"{layer}.{module}.A"] = (
            x.detach().float().cpu().contiguous().clone()
            for x in (b, a)  # safetensors wants no memory shared
        )
    for (layer, module), weight in start.matrices.items():
        tensors[f"{layer}.{module}.W"] = weight.detach().cpu().contiguous()
    notes = {name: getattr(start, name) for name in NUMBERS} | more
    with files.replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"start": json.dumps(notes)})


def read_notes(path: Path) -> dict[str, Any]:
    """What was kept beside a start, and its numbers, without its tensors."""
    with safe_open(path, framework="pt") as stream:
        return json.loads(stream.metadata()["start"])


def read_start(path: Path) -> tuple[Start, dict[str, Any]]:
    """A start as `save_start` wrote it, and what was kept beside it."""
    start = Start()
    with safe_open(path, framework="pt") as stream:
        notes = json.loads(stream.metadata()["start"])
        for key in stream.keys():  # noqa: SIM118 (not a dict)
            layer, _, rest = key.partition(".")
            module, _, kind = rest.partition(".")
            if kind == "B":
                pair = (stream.get_tensor(key), stream.get_tensor(f"{layer}.{module}.A"))
                start.factors[(int(layer), module)] = pair
            elif kind == "W":
                start.matrices[(int(layer), module)] = stream.get_tensor(key)
    for name in NUMBERS:
        setattr(start, name, notes.pop(name))
    return start, notes


def unsound(start: Start) -> Place | None:
    """The first place whose values are not all finite."""
    sizes = {p: (b, a) for p, (b, a) in start.factors.items()} | {p: (w,) for p, w in start.matrices.items()}
    return next((p for p, parts in sizes.items() if not all(bool(torch.isfinite(x).all()) for x in parts)), None)


@torch.no_grad()
def rebuilt(student: Loaded, matrices: dict[Place, torch.Tensor]) -> Any:
    """A model of the student's kind with some matrices replaced; FFN and attention may have another size.

    Raises RunError where sizes differ between layers or matrices do not fit together.
    """
    a = student.architecture

    def weight(layer: int, module: str) -> torch.Tensor:
        return matrices.get((layer, module), student.weight(module, layer))

    ffn, heads, kv_heads = weight(0, "gate").shape[0], *(weight(0, m).shape[0] // a.head_dim for m in ("q", "k"))
    wider = replace(a, ffn=ffn, heads=heads, kv_heads=kv_heads)
    for layer, module in ((layer, module) for layer in range(a.layers) for module in MODULES):
        if (shape := tuple(weight(layer, module).shape)) != wider.shape(module):
            raise RunError(
                f"align: {module} of layer {layer} is {shape}, which does not fit the model's other matrices "
                f"({wider.shape(module)}); every layer must get as many neurons and heads."
            )
    for (_, module), new in matrices.items():
        if module in EMBEDDING and tuple(new.shape) != a.shape(module):
            raise RunError(f"align: {module} is {tuple(new.shape)}, and the student's is {a.shape(module)}.")
    if heads % kv_heads:
        raise RunError(f"align: {heads} query heads cannot share {kv_heads} key/value heads evenly.")
    model = copy.deepcopy(student.model)
    for (layer, module), new in matrices.items():
        linear = model.get_submodule(a.path(module, layer))
        linear.weight = torch.nn.Parameter(new.to(linear.weight), requires_grad=False)
        if module not in EMBEDDING:
            linear.out_features, linear.in_features = new.shape
    for layer in range(a.layers):
        model.get_submodule(f"model.layers.{layer}.self_attn").num_key_value_groups = heads // kv_heads
    sizes = {"intermediate_size": ffn, "num_attention_heads": heads, "num_key_value_heads": kv_heads}
    for name, value in {**sizes, "head_dim": a.head_dim}.items():
        setattr(model.config, name, value)
    return model.eval()


def export_checkpoint(student: Loaded, model: Any, folder: Path, facts: dict[str, Any]) -> None:
    """Write a model as an ordinary checkpoint with the student's tokenizer (the folder is replaced as a whole)."""
    with files.replacing_folder(folder) as temporary:
        model.save_pretrained(temporary)
        student.tokenizer.save_pretrained(temporary)
        files.write_json(temporary / "paraknow.json", facts)


def export_decoder(folder: Path, values: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write the values of a result that changes no weights."""
    with files.replacing_folder(folder) as temporary:
        files.write_json(temporary / DECODER_FILE, values)
        files.write_json(temporary / "paraknow.json", facts)


def kind(folder: Path) -> str:
    """`adapter`, `checkpoint` or `decoder`. Raises RunError for none of them."""
    for name, file in (("adapter", "adapter_config.json"), ("checkpoint", "config.json"), ("decoder", DECODER_FILE)):
        if (folder / file).is_file():
            return name
    raise RunError(f"{folder.name} holds no adapter, no checkpoint and no decoder.")


def merge(student: Loaded, folder: Path, out: Path) -> None:
    """Write a finished result as an ordinary checkpoint with its tokenizer.

    Raises InputError for a decoder, which has no weights of its own.
    """
    found = kind(folder)
    if found == "decoder":
        raise InputError("this result mixes two models' logits and changes no weights, so it cannot be exported.")
    if found == "adapter":
        inject.merge(student, folder, out)
        return
    with files.replacing_folder(out) as temporary:
        shutil.copytree(folder, temporary, dirs_exist_ok=True)


class Fused(torch.nn.Module):
    """Both models behind one forward pass: `decode` mixes their logits (rows, tokens, V)."""

    def __init__(self, teacher: Loaded, student: Loaded, method: Method, values: dict[str, Any]):
        super().__init__()
        assert method.decode is not None
        self.teacher, self.student, self.decode, self.values = teacher.model, student.model, method.decode, values
        self.config, self.device = student.model.config, student.device

    def tie_weights(self) -> None:
        """Nothing to tie: lm-eval asks every model to."""

    @torch.no_grad()
    def forward(self, input_ids: torch.Tensor, **more: Any) -> SimpleNamespace:
        both = [m(input_ids=input_ids, use_cache=False, **more).logits.float() for m in (self.teacher, self.student)]
        return SimpleNamespace(logits=self.decode(both[0], both[1], self.values))

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        max_length: int,
        stopping_criteria: Sequence[Any],
        logits_processor: Sequence[Any] = (),
        **more: Any,
    ) -> torch.Tensor:
        """Greedy continuation of left-padded ids (rows, tokens), as lm-eval asks for it; nothing is kept between steps.

        Raises RunError where text is to be drawn at random.
        """
        if more.get("do_sample"):
            raise RunError("evaluate: a decoder writes the likeliest text; this benchmark wants text drawn at random.")
        done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        end, pad = self.config.eos_token_id, more.get("pad_token_id")
        ends = torch.tensor(end if isinstance(end, list) else [-1 if end is None else end], device=input_ids.device)
        while input_ids.shape[1] < max_length and not bool(done.all()):
            scores = self(input_ids, attention_mask=attention_mask).logits[:, -1]
            for process in logits_processor:
                scores = process(input_ids, scores)
            chosen = torch.where(done, pad or 0, scores.argmax(-1))
            input_ids = torch.cat([input_ids, chosen[:, None]], dim=1)
            attention_mask = torch.cat([attention_mask, torch.ones_like(attention_mask[:, :1])], dim=1)
            done = done | torch.isin(chosen, ends)
            for criterion in stopping_criteria:
                done = done | criterion(input_ids, scores)
        return input_ids


@contextmanager
def applied(teacher: Loaded, student: Loaded, method: Method, folder: Path) -> Iterator[Any]:
    """The model that a finished result makes of the student, for the time of the block."""
    found = kind(folder)
    if found == "adapter":
        with inject.adapted(student, folder) as wrapped:
            yield wrapped
    elif found == "checkpoint":
        dtype = str(student.model.dtype).removeprefix("torch.")
        made = models.load(str(folder), dtype, student.device.type, student.layers or "device")
        try:
            yield made.model
        finally:
            del made
            models.release()
    else:
        values = {k: v for k, v in files.read_json(folder / DECODER_FILE).items() if k != "schema_version"}
        yield Fused(teacher, student, method, values)
