"""Baseline `pissa`: the student's own principal directions as the LoRA's start (arXiv 2404.02948)."""

from __future__ import annotations

from paraknow.methods.base import Align, Method, Start


def start(align: Align) -> Start:
    """peft's own factors with init_lora_weights='pissa', taken from a copy: the student is not shifted."""
    from paraknow.inject import peft_start

    return Start(peft_start(align, "pissa"))


METHOD = Method(
    name="pissa",
    title="PiSSA",
    paradigm="language-based",
    reference="arXiv 2404.02948",
    needs=(),
    cost="one SVD per student matrix, then fine-tuning",
    start=start,
    copies=True,
)
