"""Baseline `gaussian`: plain LoRA as peft initialises it: A Gaussian, B zero (arXiv 2106.09685)."""

from __future__ import annotations

from paraknow.methods.base import Align, Method, Start


def start(align: Align) -> Start:
    """peft's own factors with init_lora_weights='gaussian'."""
    from paraknow.inject import peft_start

    return Start(peft_start(align, "gaussian"))


METHOD = Method(
    name="gaussian",
    title="Plain LoRA",
    paradigm="language-based",
    reference="arXiv 2106.09685",
    needs=(),
    cost="fine-tuning alone",
    start=start,
    copies=True,
)
