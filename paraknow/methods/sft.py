"""Baseline `sft`: the selected matrices of the student themselves, fine-tuned on the task's answers.

What language-based transfer does without any adapter: no teacher, no low rank. The first loss is the student's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from paraknow.config import Part
from paraknow.methods._teaching import outcome, used
from paraknow.methods.base import Align, Method, Start

if TYPE_CHECKING:
    from paraknow.checkpoints import Checkpoint


class SftSettings(Part):
    """Settings of full fine-tuning."""

    learning_rate: float | None = Field(
        None,
        gt=0,
        le=1,
        description="AdamW's peak rate. None: a tenth of tune.learning_rate, for AdamW moves every entry by about the "
        "rate, and a full matrix has far more of them than a LoRA's factors, which start at zero besides.",
    )


def holds(teacher: Checkpoint, student: Checkpoint, settings: SftSettings) -> int:
    """Numbers in the copy, its gradients, AdamW's two moments and the best state so far, with all matrices selected."""
    return 5 * student.parameters


def start(align: Align) -> Start:
    """Whole weights (out, in) of every selected matrix of every layer, trained on align.train with align.tune's
    schedule, in a float32 copy of the student (half precision would swallow small steps); returned in its own type.
    """
    import copy

    import torch

    from paraknow import tune

    student, architecture = align.student, align.student.architecture
    chosen = align.locate.selected()
    layers = range(architecture.layers)
    places = {(architecture.layer_of(m, layer), m): architecture.path(m, layer) for m in chosen for layer in layers}
    rate = align.settings.learning_rate or align.tune.learning_rate / 10
    items = align.encode(align.train, student)
    copied = copy.deepcopy(student.model).float().eval().requires_grad_(False)
    weights: dict[tuple[int, str], torch.Tensor] = {p: copied.get_submodule(n).weight for p, n in places.items()}
    for weight in weights.values():
        weight.requires_grad_(True)
    settings = align.tune.model_copy(update={"learning_rate": rate})
    pad = student.tokenizer.pad_token_id or 0
    tuned = tune.fine_tune(copied, items, settings, align.seed, pad, align.progress, savepoint=align.savepoint)
    dtype = student.model.dtype
    return Start(
        matrices={place: weight.detach().to(dtype) for place, weight in weights.items()},
        tuned=False,
        facts={"learning_rate": rate, **outcome(tuned)},
        **used(tuned),
    )


METHOD = Method(
    name="sft",
    title="Full fine-tuning",
    paradigm="language-based",
    reference="METHODS 2.4",
    needs=(),
    cost="fine-tuning of whole matrices: weights, gradients, a copy and AdamW's two moments in float32",
    start=start,
    holds=holds,
    settings=SftSettings,
)
