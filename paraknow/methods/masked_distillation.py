"""Baseline `masked_distillation`: the teacher teaches where it is surer, elsewhere the student stays as it was (after
the data partitioning of Fantastic Gains and Where to Find Them, arXiv 2310.17653).

Per answer token the target is the teacher's distribution where the teacher is surer than the untouched student, else
the untouched student's own. Surer (at temperature 1): a larger probability of the right token (`answer`), or, without
labels, a larger probability of the likeliest token (`top`). The loss is distillation's (see `_teaching`). The paper
partitions images, we partition tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from paraknow.methods._teaching import TeachingSettings, need_one_vocabulary, teach
from paraknow.methods.base import Align, Method, Start

if TYPE_CHECKING:
    import torch

    from paraknow.checkpoints import Checkpoint


class MaskedSettings(TeachingSettings):
    """Settings of masked distillation."""

    sure_of: Literal["answer", "top"] = Field(
        "answer", description="Surer by the right token's probability, or by the likeliest token's (needs no labels)."
    )


def check(teacher: Checkpoint, student: Checkpoint, settings: Any) -> None:
    """Raises InputError where the vocabularies differ."""
    need_one_vocabulary("masked_distillation", teacher, student)


def surer(teacher: torch.Tensor, student: torch.Tensor, tokens: torch.Tensor, sure_of: str) -> torch.Tensor:
    """Whether the teacher is surer, per token (tokens,); logits (tokens, V) in float32. A tie leaves the student."""

    def sureness(logits: torch.Tensor) -> torch.Tensor:
        top = logits.gather(1, tokens[:, None])[:, 0] if sure_of == "answer" else logits.amax(1)
        return top - logits.logsumexp(1)

    return sureness(teacher) > sureness(student)


def start(align: Align) -> Start:
    """A LoRA trained as in distillation, each token against whoever is surer; `facts.taught`: the teacher's share."""
    return teach(align, lambda t, s, y: surer(t, s, y, align.settings.sure_of))


METHOD = Method(
    name="masked_distillation",
    title="Distillation where the teacher is surer",
    paradigm="language-based",
    reference="arXiv 2310.17653",
    needs=("one vocabulary",),
    cost="fine-tuning, with a forward pass of the teacher and one of the untouched student beside every one",
    start=start,
    copies=True,
    settings=MaskedSettings,
    check=check,
)
