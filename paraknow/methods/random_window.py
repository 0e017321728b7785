"""Control `random_window`: the method on blocks cut at random places of the same matrices (METHODS 2.5)."""

from __future__ import annotations

from paraknow.methods.base import Align, Method, Start


def start(align: Align) -> Start:
    """The examined method's start with every block's window drawn at random; layers stay as chosen."""
    import torch

    from paraknow.locate.blocks import choose_block

    if own := align.method.variants.get("random_window"):
        return own(align)
    generator = torch.Generator().manual_seed(align.seed + 2_000_003)
    blocks = []
    for block in align.blocks:
        full = align.teacher.weight(block.module, block.teacher_layer).shape
        layers = (block.teacher_layer, block.student_layer)
        blocks.append(
            choose_block(block.module, layers, None, (full[0], full[1]), block.shape, "random_window", generator)
        )
    return align.method.start(align.other(blocks=blocks))


METHOD = Method(
    name="random_window",
    title="A random block of the teacher",
    paradigm="control",
    reference="METHODS 2.5",
    needs=(),
    cost="as the method it stands beside",
    start=start,
    locates=True,
)
