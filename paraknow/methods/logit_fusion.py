"""Baseline `logit_fusion`: both models' logits mixed at every decoding step, no weights changed (after Dynamic Logits
Fusion, arXiv 2406.15480).

z = z_S + a·(z_T − z_S), z_S the student's and z_T the teacher's logits (V,). `weight` fixes a. Otherwise, per
position, a is the smallest number in [0, 1] with KL(z ‖ z_S) = share · KL(z_T ‖ z_S): how far the mixture may leave
the student. On this path KL grows with a (its derivative is a times the variance of z_T − z_S under the mixture), so
bisection finds a, for all positions at once.

The paper has three models: a large one receives the shift between a small expert and that expert's base, and a makes
KL(mixture ‖ large) equal KL(expert ‖ base). Here the student receives and the teacher is the expert; there is no base
of the teacher's, the student stands in for it. The paper's condition would then be share = 1, the teacher alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from paraknow.config import Part
from paraknow.methods._teaching import need_one_vocabulary
from paraknow.methods.base import Align, Method, Start

if TYPE_CHECKING:
    import torch

    from paraknow.checkpoints import Checkpoint

HALVINGS = 20  # a to a millionth, which is finer than float32 logits tell


class FusionSettings(Part):
    """Settings of logit fusion."""

    weight: float | None = Field(
        None, gt=0, le=1, description="The teacher's weight a, the same everywhere. None: by `share`, per position."
    )
    share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Without a weight: the mixture's divergence from the student, as a share of the teacher's.",
    )


def check(teacher: Checkpoint, student: Checkpoint, settings: Any) -> None:
    """Raises InputError where the vocabularies differ."""
    need_one_vocabulary("logit_fusion", teacher, student)


def start(align: Align) -> Start:
    """The values `decode` needs; nothing is trained."""
    settings = align.settings
    values = {"share": settings.share} if settings.weight is None else {"weight": settings.weight}
    return Start(tuned=False, decoder=values)


def decode(teacher: torch.Tensor, student: torch.Tensor, values: dict[str, Any]) -> torch.Tensor:
    """The mixed logits (…, V) in float32 on the student's device, from both models' (…, V).

    values: `weight`, or `share` for a weight per position.
    """
    teacher, student = teacher.to(student.device).float(), student.float()
    shift = teacher - student
    if "weight" in values:
        return student + values["weight"] * shift
    return student + weights(shift, student, values["share"])[..., None] * shift


def weights(shift: torch.Tensor, student: torch.Tensor, share: float) -> torch.Tensor:
    """a (…,) per position: the smallest with KL(a) = share · KL(1), from z_T − z_S and z_S, both (…, V)."""
    import torch

    base = student.log_softmax(-1)

    def divergence(a: torch.Tensor) -> torch.Tensor:
        mixed = (student + a[..., None] * shift).log_softmax(-1)
        return (mixed.exp() * (mixed - base)).sum(-1)

    low = torch.zeros(shift.shape[:-1], device=shift.device)
    high = torch.ones_like(low)
    wanted = share * divergence(high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        reached = divergence(middle) >= wanted
        low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
    return torch.where(wanted > 0, high, torch.zeros_like(high))


METHOD = Method(
    name="logit_fusion",
    title="Logit fusion while decoding",
    paradigm="language-based",
    reference="arXiv 2406.15480",
    needs=("one vocabulary", "the teacher at every answer; there is nothing to export"),
    cost="no training; a forward pass of the teacher with every one of the student",
    start=start,
    settings=FusionSettings,
    check=check,
    decode=decode,
)
