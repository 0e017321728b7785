"""Seeking: the located teacher block as a LoRA's start (Seeking Neural Nuggets, arXiv 2310.11451; METHODS 2.1)."""

from __future__ import annotations

from paraknow.methods.base import Align, Method, Start


def start(align: Align) -> Start:
    """B0 = U_r Σ_r and A0 = V_rᵀ of every located block. `facts.residual`: mean ‖block − BA‖/‖block‖."""
    from paraknow.locate.blocks import factor

    factors, residuals = {}, []
    for number, block in enumerate(align.blocks):
        matrix = align.teacher.weight(block.module, block.teacher_layer)
        parts = factor(block.cut(matrix), align.settings.rank, align.seed)
        factors[(block.student_layer, block.module)] = (parts.b, parts.a)
        residuals.append(parts.residual)
        align.progress(number + 1, len(align.blocks))
    return Start(factors, facts={"residual": sum(residuals) / len(residuals)})


METHOD = Method(
    name="seeking",
    title="Seeking Neural Nuggets",
    paradigm="post-align",
    reference="arXiv 2310.11451 (ICLR 2024)",
    needs=("teacher gradients on the seeds", "teacher matrices at least as large as the student's"),
    cost="one backward pass of the teacher per seed, one SVD per student matrix, then fine-tuning",
    start=start,
    locates=True,
    blocks=True,
)
