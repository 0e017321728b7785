"""Baseline `corda`: the student's weights, decomposed by what their inputs look like (CorDA, arXiv 2406.05223).

C the covariance of a matrix's inputs over examples, W·C = U·Σ·Vᵀ, so W = U·Σ·(Vᵀ·C⁻¹). `ipm` (instruction-previewed)
trains the r directions of largest Σ on the task's own examples; `kpm` (knowledge-preserved) the r of smallest Σ on
text whose knowledge is to stay: what both models know. peft scales every example by its largest input first.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from paraknow.errors import InputError
from paraknow.methods._peft import DataSettings, few, forward, inputs
from paraknow.methods.base import Align, Method, Start


class CordaSettings(DataSettings):
    """Settings of CorDA."""

    mode: Literal["ipm", "kpm"] = Field(
        "ipm",
        description="ipm: start from what matters most on the task. kpm: from what matters least for known text.",
    )


def start(align: Align) -> Start:
    """peft's own factors with init_lora_weights='corda', taken from a copy: the student is not shifted.

    Raises InputError in mode kpm where the task has no examples that both models know.
    """
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    from paraknow.inject import peft_start

    mode = align.settings.mode
    if mode == "kpm" and not align.known:
        raise InputError("method corda: mode kpm needs align examples, and the task has none; mode ipm needs none.")
    items = few(align, align.known if mode == "kpm" else align.train)

    def prepare(model: Any, config: Any) -> None:
        def run() -> None:
            for number, item in enumerate(items):  # peft's covariance takes one example at a time
                forward(model, inputs([item], align))
                align.progress(number + 1, len(items), "CorDA: covariances of the inputs")

        preprocess_corda(model, config, run)

    factors = peft_start(align, "corda", {"corda_config": CordaConfig(corda_method=mode)}, before=prepare)
    return Start(factors, examples=len(items))


METHOD = Method(
    name="corda",
    title="CorDA",
    paradigm="language-based",
    reference="arXiv 2406.05223",
    needs=(),
    cost="one forward pass of the student per example, an inverse and an SVD per matrix, then fine-tuning",
    start=start,
    copies=True,
    settings=CordaSettings,
)
