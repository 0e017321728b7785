"""Baseline `lora_ga`: the gradient's own directions as the LoRA's start (LoRA-GA, arXiv 2407.05000).

G = ∂ℓ/∂W = U·Σ·Vᵀ, ℓ the mean loss per answer token over a few examples. A = the first r rows of Vᵀ, B = columns
r+1 to 2r of U, so that the first step follows G's best approximation of rank 2r. peft scales B by Σ and
d_out^(1/4)/√γ (γ = 16), which is not the paper's scale: small gradients give small starts.
"""

from __future__ import annotations

import warnings
from typing import Any

from paraknow.errors import InputError, RunError
from paraknow.methods._peft import DataSettings, even_batches, few, forward, inputs
from paraknow.methods.base import Align, Method, Start


def start(align: Align) -> Start:
    """peft's own factors with init_lora_weights='lora_ga', taken from a copy: the student is not shifted.

    Raises InputError where twice the rank is above a matrix's shorter side.
    """
    from peft import LoraGAConfig
    from peft.tuners.lora.loraga import get_target_modules, preprocess_loraga

    from paraknow.inject import peft_start

    rank = align.settings.rank
    for block in align.blocks:
        if block.module != "embed" and 2 * rank > min(block.shape):
            raise InputError(
                f"method lora_ga: rank {rank} uses {2 * rank} directions of the gradient, and {block.module} "
                f"{tuple(block.shape)} has {min(block.shape)}; method.rank {min(block.shape) // 2} is the most."
            )
    items = few(align, align.train)
    batches = even_batches(items, align.tune.micro_batch)
    tokens = sum(len(item.ids) - item.answer_start for item in items)

    def prepare(model: Any, config: Any) -> None:
        def gradients() -> None:
            from paraknow.tune import answers_alone, cross_entropy

            model.eval()  # peft switches to training mode, where dropout would draw
            for number, batch in enumerate(batches):
                given = inputs(batch, align)
                with answers_alone(model, given["labels"]):
                    logits = forward(model, given)[0]
                loss = cross_entropy(given["input_ids"], given["attention_mask"], given["labels"], logits)
                # peft divides the sum over backward passes by their number: what remains is the gradient of ℓ
                (loss * len(batches) / tokens).backward()
                align.progress(number + 1, len(batches), "LoRA-GA: gradients")

        with warnings.catch_warnings():
            # peft counts backward passes with a hook that remarks on inputs without gradients, such as embeddings
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            preprocess_loraga(model, config, gradients)
        for name, module in get_target_modules(model, config):
            if not hasattr(module, "_peft_loraga_grad"):  # peft would start it at random without a word
                raise RunError(f"lora_ga: no gradient reaches {name}.")

    factors = peft_start(align, "lora_ga", {"lora_ga_config": LoraGAConfig()}, before=prepare)
    return Start(factors, examples=len(items))


METHOD = Method(
    name="lora_ga",
    title="LoRA-GA",
    paradigm="language-based",
    reference="arXiv 2407.05000",
    needs=("twice the rank at most a matrix's shorter side",),
    cost="one backward pass of the student per example, one SVD per matrix, then fine-tuning",
    start=start,
    copies=True,
    settings=DataSettings,
)
