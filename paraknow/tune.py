"""Fine-tune the moving adapter (METHODS 2.1): AdamW, linear schedule with warm-up, loss on answers only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from paraknow.config import Tune
from paraknow.data import Encoded, padded
from paraknow.errors import RunError
from paraknow.progress import Progress, silent


@dataclass
class Tuned:
    """What tuning used: losses per step (nats per answer token), examples seen, trainable parameters."""

    losses: list[float]
    examples: int
    trainable: int


def steps_of(examples: int, settings: Tune) -> int:
    """Optimiser steps for that many training examples."""
    return settings.epochs * math.ceil(examples / settings.batch_size)


def fine_tune(
    model: Any, items: Sequence[Encoded], settings: Tune, seed: int, pad: int = 0, progress: Progress = silent
) -> Tuned:
    """Train what requires a gradient in `model`. The order of batches depends on `seed` alone, so that all
    methods of a run see the same data in the same order.

    Raises RunError naming the step where the loss or a gradient stops being finite.
    """
    device = next(model.parameters()).device
    moving = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(moving, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    total = steps_of(len(items), settings)
    warmup = max(1, round(settings.warmup * total))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warmup, max(0.0, (total - s) / max(1, total - warmup)))
    )
    generator = torch.Generator().manual_seed(seed)
    losses = torch.zeros(total, device=device)
    step = seen = 0
    for _ in range(settings.epochs):
        order = torch.randperm(len(items), generator=generator).tolist()
        for first in range(0, len(order), settings.batch_size):
            batch = [items[i] for i in order[first : first + settings.batch_size]]
            losses[step] = _backward(model, batch, settings.micro_batch, pad, device)
            norm = torch.nn.utils.clip_grad_norm_(moving, 1.0)
            if not (torch.isfinite(losses[step]) & torch.isfinite(norm)):
                raise RunError(f"tuning: the loss or its gradient is NaN or infinite at step {step + 1} of {total}.")
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            seen += len(batch)
            step += 1
            progress(step, total, loss=float(losses[step - 1]))
    return Tuned(losses.tolist(), seen, sum(p.numel() for p in moving))


def _backward(model: Any, batch: Sequence[Encoded], micro: int, pad: int, device: torch.device) -> torch.Tensor:
    """Gradients of the batch's mean loss per answer token, in micro-batches; returns that loss."""
    tokens = sum(len(item.ids) - item.answer_start for item in batch)
    total = torch.zeros((), device=device)
    for first in range(0, len(batch), micro):
        ids, mask, labels = (torch.tensor(x, device=device) for x in padded(batch[first : first + micro], pad))
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        loss = (
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum") / tokens
        )
        loss.backward()
        total += loss.detach()
    return total
