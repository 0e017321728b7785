"""Baseline `distillation`: the teacher's distribution over answer tokens, taught to a LoRA of the student (Hinton et
al., Distilling the Knowledge in a Neural Network, arXiv 1503.02531).

Forward KL at temperature τ, weighted by τ² (see `_teaching`). `mix` is the weight of plain cross-entropy beside it;
Hinton et al. found a considerably lower weight than the teacher's to work best. It is 0 here, so that what arrives
came from the teacher; at 1 this is plain LoRA fine-tuning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paraknow.methods._teaching import TeachingSettings, need_one_vocabulary, teach
from paraknow.methods.base import Align, Method, Start

if TYPE_CHECKING:
    from paraknow.checkpoints import Checkpoint


def check(teacher: Checkpoint, student: Checkpoint, settings: Any) -> None:
    """Raises InputError where the vocabularies differ."""
    need_one_vocabulary("distillation", teacher, student)


def start(align: Align) -> Start:
    """A LoRA trained on align.train with align.tune's schedule: the transferred change itself, not tuned again."""
    return teach(align)


METHOD = Method(
    name="distillation",
    title="Logit distillation",
    paradigm="language-based",
    reference="arXiv 1503.02531",
    needs=("one vocabulary",),
    cost="fine-tuning, with a forward pass of the teacher beside every one of the student",
    start=start,
    copies=True,
    settings=TeachingSettings,
    check=check,
)
