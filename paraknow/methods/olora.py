"""Baseline `olora`: an orthonormal basis of the student's own weights as the LoRA's start (arXiv 2406.01775).

W = Q·R; B = the first r columns of Q, A = the first r rows of R.
"""

from __future__ import annotations

from paraknow.methods.base import Align, Method, Start


def start(align: Align) -> Start:
    """peft's own factors with init_lora_weights='olora', taken from a copy: the student is not shifted."""
    from paraknow.inject import peft_start

    return Start(peft_start(align, "olora"))


METHOD = Method(
    name="olora",
    title="OLoRA",
    paradigm="language-based",
    reference="arXiv 2406.01775",
    needs=(),
    cost="one QR decomposition per student matrix, then fine-tuning",
    start=start,
    copies=True,
)
