"""Adapters written and read, against peft's own."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.measure import Ratio, require_same, slow_down
from benchmarks.models import SMALLER, llama
from benchmarks.training import starts
from paraknow import inject
from paraknow.models import Loaded

TIMES = 5  # in a round: one takes milliseconds


def peft_save(wrapped: Any, folder: Path) -> None:
    """peft's way to one adapter of what is active: a twin is concatenated first."""
    name = inject.MOVING
    if inject.FROZEN in wrapped.peft_config:
        name = "both"
        twins = [inject.MOVING, inject.FROZEN]
        wrapped.add_weighted_adapter(twins, [1.0, 1.0], name, combination_type="cat")
    wrapped.save_pretrained(str(folder), selected_adapters=[name], save_embedding_layers=False)
    if name == "both":
        wrapped.delete_adapter(name)


def peft_load(student: Loaded, folder: Path) -> None:
    """peft's way of loading an adapter and taking it off again."""
    from peft import PeftModel

    PeftModel.from_pretrained(student.model, str(folder), use_safetensors=True).unload()
    vars(student.model).pop("peft_config", None)  # else peft warns of a second adapter


def size(folder: Path) -> int:
    """Bytes of the weights in a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*.safetensors"))


def adapter_cost(device: torch.device) -> list[Ratio]:
    """An adapter of rank 16 on all seven matrices of every layer: written, against peft's `save_pretrained` (with a
    frozen twin: `add_weighted_adapter` of both, then that); loaded on the plain student and taken off again, against
    `PeftModel.from_pretrained` and `unload`; its bytes on the disk against peft's. Logits of both files, loaded by
    peft, agree to 1e-5.
    """
    made = []
    for name, start in starts(llama(device, **SMALLER)):
        student = llama(device, **SMALLER)
        with TemporaryDirectory() as scratch:
            place = Path(scratch)
            with inject.attached(student, start) as wrapped:

                def export(wrapped: Any = wrapped, place: Path = place) -> None:
                    for number in range(TIMES):
                        inject.export(wrapped, place / f"ours{number}", "benchmark", {})

                def save(wrapped: Any = wrapped, place: Path = place) -> None:
                    for number in range(TIMES):
                        peft_save(wrapped, place / f"theirs{number}")

                more = "the folder is written beside and put in place as a whole"
                made.append(slow_down(f"export, {name}", "peft's save_pretrained", export, save, 1.2, 6, more))
            own, theirs = place / "ours0", next((place / "theirs0").rglob("adapter_config.json")).parent
            ids = torch.arange(1, 17, device=device)
            logits = []
            for folder in (own, theirs):
                with inject.adapted(student, folder) as loaded:
                    logits.append(inject.probe_logits(loaded, ids))
            require_same(f"export, {name}", float((logits[0] - logits[1]).abs().max()), 1e-5)

            def adapt(student: Loaded = student, own: Path = own) -> None:
                for _ in range(TIMES):
                    with inject.adapted(student, own):
                        pass

            def load(student: Loaded = student, theirs: Path = theirs) -> None:
                for _ in range(TIMES):
                    peft_load(student, theirs)

            more = "every key of the file is held against the model's, because peft passes over a misspelled one"
            made.append(slow_down(f"loading, {name}", "PeftModel.from_pretrained", adapt, load, 1.2, 6, more))
            bytes_over = size(own) / size(theirs)
            made.append(Ratio(f"bytes, {name}", "peft's file", bytes_over, 1.01, False, [bytes_over]))
    return made
