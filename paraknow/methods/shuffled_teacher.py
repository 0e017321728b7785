"""Control `shuffled_teacher`: the method with the teacher's layers in another order (METHODS 2.5).

The same layers feed the student, none of them its own place: what is moved is the teacher's in every number, and only
where it goes is wrong.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from paraknow.errors import InputError
from paraknow.methods.base import Align, Method, Start

if TYPE_CHECKING:
    from paraknow.checkpoints import Checkpoint


def check(teacher: Checkpoint, student: Checkpoint, settings: Any) -> None:
    """Raises InputError for a student of one layer, which leaves nothing to permute."""
    if student.architecture.layers < 2:
        raise InputError("controls: shuffled_teacher needs a student of at least two layers.")


def start(align: Align) -> Start:
    """The examined method's start with the chosen layers permuted so that none feeds its own student layer.

    Raises InputError for a student of one layer, which leaves nothing to permute.
    """
    if own := align.method.variants.get("shuffled_teacher"):
        return own(align)
    order = derangement(align.student.architecture.layers, align.seed)
    moved = [
        block if block.module in ("embed", "lm_head") else replace(block, student_layer=order[block.student_layer])
        for block in align.blocks
    ]
    return align.method.start(align.other(blocks=sorted(moved, key=lambda b: b.student_layer)))


def derangement(count: int, seed: int) -> list[int]:
    """A random order of 0 … count−1 that leaves nothing in its place. Raises InputError for count < 2."""
    import torch

    if count < 2:
        raise InputError("controls: shuffled_teacher needs a student of at least two layers.")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed + 3_000_003)).tolist()
    # one cycle through a random order: every place gets its neighbour's
    return [dict(zip(order, [*order[1:], order[0]], strict=True))[place] for place in range(count)]


METHOD = Method(
    name="shuffled_teacher",
    title="The teacher's layers in another order",
    paradigm="control",
    reference="METHODS 2.5",
    needs=("a student of at least two layers",),
    cost="as the method it stands beside",
    start=start,
    locates=True,
    check=check,
)
