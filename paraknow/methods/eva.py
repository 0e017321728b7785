"""Baseline `eva`: the principal directions of a matrix's inputs on the task as the LoRA's A (Explained Variance
Adaptation, arXiv 2410.07170). B is zero.

Ranks are not redistributed (ρ = 1): every method of a comparison has the same rank in every matrix. Inputs are taken
at the answers' tokens, as peft does it. peft's incremental SVD draws twice the rank in directions and goes through
the examples until the directions stand still (cosine 0.99); it would go on for ever where they do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paraknow.errors import InputError, RunError
from paraknow.methods._peft import DataSettings, even_batches, few, forward, inputs
from paraknow.methods.base import Align, Method, Start

if TYPE_CHECKING:
    import torch

PASSES = 100  # over the examples; directions that move after that are not determined by them


def start(align: Align) -> Start:
    """peft's own factors with init_lora_weights='eva', taken from a copy.

    Raises InputError where a matrix's input is narrower than twice the rank or a batch has fewer answer tokens
    than that, RunError where the directions do not come to rest.
    """
    from peft import EvaConfig, initialize_lora_eva_weights

    from paraknow.inject import peft_start

    need = 2 * align.settings.rank
    for block in align.blocks:
        if block.module != "embed" and block.shape[1] < need:
            raise InputError(
                f"method eva: rank {align.settings.rank} needs inputs at least {need} wide, twice the rank; those of "
                f"{block.module} are {block.shape[1]} wide, so method.rank {block.shape[1] // 2} is the most."
            )
    batches = even_batches(few(align, align.train), align.tune.micro_batch)
    fewest = min(sum(len(item.ids) - item.answer_start for item in batch) for batch in batches)
    if fewest < need:
        raise InputError(
            f"method eva: rank {align.settings.rank} needs at least {need} answer tokens, twice the rank, and "
            f"{align.settings.examples} examples have {fewest}; give more examples or a smaller method.rank."
        )
    calls, most = 0, PASSES * len(batches)

    def run(model: Any, batch: dict[str, torch.Tensor]) -> None:
        nonlocal calls
        calls += 1
        if calls > most:
            raise RunError(
                f"eva: the inputs' directions still move after {PASSES} passes over {align.settings.examples} "
                "examples; more examples or a smaller method.rank may help."
            )
        align.progress(calls, most, "EVA: directions of the inputs")
        forward(model, batch)

    def initialise(wrapped: Any) -> None:
        loader = [inputs(batch, align) for batch in batches]
        initialize_lora_eva_weights(wrapped, loader, forward_fn=run, show_progress_bar=False)

    factors = peft_start(align, "eva", {"eva_config": EvaConfig(rho=1.0)}, after=initialise)
    return Start(factors, examples=sum(map(len, batches)))


METHOD = Method(
    name="eva",
    title="EVA",
    paradigm="language-based",
    reference="arXiv 2410.07170",
    needs=("twice the rank at most the narrowest input",),
    cost="a few forward passes of the student over the examples, then fine-tuning",
    start=start,
    copies=True,
    settings=DataSettings,
)
