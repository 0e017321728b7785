"""Control `self`: the method with the student as its own teacher (METHODS 2.5): nothing new can arrive."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paraknow.methods.base import Align, Method, Start

if TYPE_CHECKING:
    import pandas as pd


def start(align: Align) -> Start:
    """The examined method's start from the student's own matrices, layer k to layer k."""
    from paraknow.locate.blocks import Block

    student = align.student
    blocks = []
    for block in align.blocks:
        layers = (block.student_layer, block.student_layer)
        blocks.append(Block(block.module, *layers, "window", block.shape, 0, 0, share=1.0))
    # Tables of both models' neurons: the student's stand under both names.
    tables = {name: _as_teacher(getattr(align, name)) for name in ("neurons", "ffn_sensitivity")}
    return align.method.start(align.other(teacher=student, blocks=blocks, **tables))


def _as_teacher(table: pd.DataFrame | None) -> pd.DataFrame | None:
    import pandas as pd

    if table is None:
        return None
    own = table[table.model == "student"]
    return pd.concat([own, own.assign(model="teacher")], ignore_index=True)


METHOD = Method(
    name="self",
    title="The student as its own teacher",
    paradigm="control",
    reference="METHODS 2.5",
    needs=(),
    cost="as the method it stands beside",
    start=start,
    locates=True,
)
