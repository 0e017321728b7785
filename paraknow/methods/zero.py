"""Control `zero`: the student itself, sent through the same export and evaluation (METHODS 2.5)."""

from __future__ import annotations

from paraknow.methods.base import Align, Method, NoSettings, Start


def start(align: Align) -> Start:
    """Rank-1 factors of zeros; nothing is tuned, so any difference from the student is a fault of ours."""
    import torch

    factors = {}
    for block in align.blocks:
        n, m = block.shape
        factors[(block.student_layer, block.module)] = (torch.zeros(n, 1), torch.zeros(1, m))
    return Start(factors, tuned=False)


METHOD = Method(
    name="zero",
    title="Nothing moved",
    paradigm="control",
    reference="METHODS 2.5",
    needs=(),
    cost="none",
    start=start,
    settings=NoSettings,
    stands_alone=True,
)
