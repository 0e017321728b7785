"""Fine-tune what may move (METHODS 2.1): AdamW, linear schedule with warm-up, loss on answers only.

A loss that runs away stops tuning, and the best state so far is put back. Losses are in nats per answer token.
Smoothed: the larger of a step's loss and the mean of the last five. It runs away where that mean lies above three
times the best smoothed loss and above the first loss by a tenth of a nat, for five steps in a row or at the last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from paraknow.config import Tune
from paraknow.data import Encoded, padded
from paraknow.errors import RunError
from paraknow.progress import Progress, silent

WINDOW, PATIENCE, RISE, MARGIN = 5, 5, 3.0, 0.1
COPIES = 20  # the best state is looked for about so many times in a run, and at the end of every epoch

Objective = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class Tuned:
    """What tuning used: losses per step (nats per answer token), examples seen, trainable parameters.

    stopped: the step (counted from 1) at which the loss ran away, else None. kept_step: optimiser steps behind the
    weights that stay; all of them unless it stopped. losses: up to the step it stopped at, finite ones alone.
    """

    losses: list[float]
    examples: int
    trainable: int
    stopped: int | None = None
    kept_step: int = 0

    @property
    def steps(self) -> int:
        """Optimiser steps that were made."""
        return len(self.losses) if self.stopped is None else self.stopped - 1

    @property
    def warning(self) -> str | None:
        """One sentence about a loss that ran away, or None."""
        if self.stopped is None:
            return None
        return (
            f"the loss ran away, so tuning stopped at step {self.stopped} and the weights after {self.kept_step} "
            f"step{'s' * (self.kept_step != 1)} were put back; a smaller learning rate may help."
        )


class _Watch:
    """Follows the losses of a tuning run and keeps a copy of what moves where they were best."""

    def __init__(self, moving: list[torch.Tensor]) -> None:
        self.moving = moving
        self.kept = [p.detach().clone() for p in moving]
        self.kept_step, self.kept_score = 0, math.inf
        self.losses: list[float] = []
        self.best, self.above = math.inf, 0

    def add(self, loss: float, look: bool, last: bool) -> bool:
        """Note the loss of the present state, copy it if `look` and it is the best; whether the loss runs away."""
        self.losses.append(loss)
        recent = self.losses[-WINDOW:]
        mean = sum(recent) / len(recent)
        score = max(loss, mean)
        if look and score < self.kept_score:
            with torch.no_grad():
                torch._foreach_copy_(self.kept, [p.detach() for p in self.moving])
            self.kept_score, self.kept_step = score, len(self.losses) - 1
        self.best = min(self.best, score)
        high = mean > max(self.losses[0] + MARGIN, RISE * self.best)
        self.above = self.above + 1 if high else 0
        return self.above >= PATIENCE or (last and high)

    def put_back(self) -> None:
        with torch.no_grad():
            torch._foreach_copy_([p.detach() for p in self.moving], self.kept)


def steps_of(examples: int, settings: Tune) -> int:
    """Optimiser steps for that many training examples."""
    return settings.epochs * math.ceil(examples / settings.batch_size)


def cross_entropy(ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """−Σ log p(token) over answer tokens, in nats; ids, mask, labels (n, t), logits (n, t, V) of one micro-batch."""
    shifted = logits[:, :-1].float().flatten(0, 1)
    return torch.nn.functional.cross_entropy(shifted, labels[:, 1:].flatten(), reduction="sum")


def answer_logits(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What predicts the answer tokens: logits (tokens, V) in float32 out of (n, t, V), and those tokens (tokens,)."""
    wanted = labels[:, 1:] != -100
    return logits[:, :-1][wanted].float(), labels[:, 1:][wanted]


def fine_tune(
    model: Any,
    items: Sequence[Encoded],
    settings: Tune,
    seed: int,
    pad: int = 0,
    progress: Progress = silent,
    objective: Objective = cross_entropy,
) -> Tuned:
    """Train what requires a gradient in `model`. The order of batches depends on `seed` alone, so that all
    methods of a run see the same data in the same order.

    objective(ids, mask, labels, logits): the loss summed over a micro-batch's answer tokens; see `cross_entropy`.

    Raises RunError naming the step where the loss runs away (or the loss or a gradient stops being finite) before
    any step made it smaller.
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
    watch, every = _Watch(moving), max(1, total // COPIES)
    trainable = sum(p.numel() for p in moving)
    step = seen = 0
    for _ in range(settings.epochs):
        order = torch.randperm(len(items), generator=generator).tolist()
        for first in range(0, len(order), settings.batch_size):
            batch = [items[i] for i in order[first : first + settings.batch_size]]
            tensor = _backward(model, batch, settings.micro_batch, pad, device, objective)
            norm = torch.nn.utils.clip_grad_norm_(moving, 1.0)
            loss, size = torch.stack([tensor, norm.to(tensor)]).tolist()  # the one look at the device in a step
            finite = math.isfinite(loss) and math.isfinite(size)
            look = step % every == 0 or first + settings.batch_size >= len(order)
            if not finite or watch.add(loss, look, step + 1 == total):
                optimizer.zero_grad(set_to_none=True)
                _refuse(watch, finite, step + 1, total)
                watch.put_back()
                return Tuned(watch.losses, seen, trainable, step + 1, watch.kept_step)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            seen += len(batch)
            step += 1
            progress(step, total, loss=loss)
    return Tuned(watch.losses, seen, trainable, None, step)


def _refuse(watch: _Watch, finite: bool, step: int, total: int) -> None:
    """Putting the start itself back would be no result."""
    if watch.kept_step == 0:
        what = "the loss runs away" if finite else "the loss or its gradient is NaN or infinite"
        better = " before any step made it smaller" if step > 1 else ""
        hint = "; a smaller learning rate may help" if step > 1 else ""
        raise RunError(f"tuning: {what} at step {step} of {total}{better}{hint}.")


def _backward(
    model: Any, batch: Sequence[Encoded], micro: int, pad: int, device: torch.device, objective: Objective
) -> torch.Tensor:
    """Gradients of the batch's mean loss per answer token, in micro-batches; returns that loss."""
    tokens = sum(len(item.ids) - item.answer_start for item in batch)
    total = torch.zeros((), device=device)
    for first in range(0, len(batch), micro):
        ids, mask, labels = (torch.tensor(x, device=device) for x in padded(batch[first : first + micro], pad))
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        loss = objective(ids, mask, labels, logits) / tokens
        loss.backward()
        total += loss.detach()
    return total
