"""Fine-tune what may move (METHODS 2.1): AdamW, linear schedule with warm-up, loss on answers only.

A loss that runs away stops tuning, and the best state so far is put back. Losses are in nats per answer token.
Smoothed: the larger of a step's loss and the mean of the last five. It runs away where that mean lies above three
times the best smoothed loss and above the first loss by a tenth of a nat, for five steps in a row or at the last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from paraknow.config import Tune
from paraknow.data import Encoded, padded
from paraknow.errors import Cancelled, RunError
from paraknow.progress import Progress, silent
from paraknow.savepoint import Savepoint, fingerprint, log

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


class _Course:
    """A tuning between two steps, to and from a savepoint: all that its next step depends on.

    The order of the data and the learning rate follow from the number of steps alone.
    """

    def __init__(self, savepoint: Savepoint, optimizer: torch.optim.Optimizer, watch: _Watch, given: str) -> None:
        self.savepoint, self.optimizer, self.watch, self.given = savepoint, optimizer, watch, given

    def resume(self) -> tuple[int, int]:
        """Put everything as the savepoint has it; the steps and the examples that lie behind, 0 without one."""
        if (found := self.savepoint.read(self.given)) is None:
            return 0, 0
        tensors, values = found
        watch, moving = self.watch, self.watch.moving
        moments: dict[int, dict[str, torch.Tensor]] = {}
        with torch.no_grad():
            for i, parameter in enumerate(moving):
                parameter.copy_(tensors[f"weight.{i}"])
                watch.kept[i].copy_(tensors[f"kept.{i}"])
                named = {name: tensors[f"{name}.{i}"] for name in values["moments"][i]}
                if named:
                    moments[i] = named
            for name, tensor in self.savepoint.also.items():
                tensor.copy_(tensors[f"also.{name}"])
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        watch.losses = tensors["losses"].tolist()
        watch.kept_step, watch.above = values["kept_step"], values["above"]
        watch.kept_score, watch.best = values["kept_score"], values["best"]
        self.savepoint.spent.update(values["spent"])
        torch.set_rng_state(tensors["random"])
        if "random.device" in tensors and moving[0].is_cuda:
            torch.cuda.set_rng_state(tensors["random.device"], moving[0].device)
        return values["step"], values["seen"]

    def keep(self, step: int, seen: int) -> None:
        """Write down where tuning stands after `step` steps and `seen` examples."""
        watch, moving = self.watch, self.watch.moving
        states = [self.optimizer.state.get(p, {}) for p in moving]
        tensors = {f"weight.{i}": p for i, p in enumerate(moving)} | {f"kept.{i}": p for i, p in enumerate(watch.kept)}
        tensors |= {f"{name}.{i}": value for i, state in enumerate(states) for name, value in state.items()}
        tensors |= {f"also.{name}": value for name, value in self.savepoint.also.items()}
        tensors |= {"losses": torch.tensor(watch.losses, dtype=torch.float64), "random": torch.get_rng_state()}
        if moving[0].is_cuda:
            tensors["random.device"] = torch.cuda.get_rng_state(moving[0].device)
        values = {name: getattr(watch, name) for name in ("kept_step", "kept_score", "best", "above")}
        values |= {"step": step, "seen": seen, "moments": [sorted(state) for state in states]}
        self.savepoint.write(self.given, tensors, values | {"spent": dict(self.savepoint.spent)})


def steps_of(examples: int, settings: Tune) -> int:
    """Optimiser steps for that many training examples."""
    return settings.epochs * math.ceil(examples / settings.batch_size)


def answers(labels: torch.Tensor) -> torch.Tensor:
    """The answer tokens (tokens,) of labels (n, t), row by row."""
    return labels[:, 1:][labels[:, 1:] != -100]


def cross_entropy(ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """−Σ log p(token) over answer tokens, in nats; ids, mask, labels (n, t) of one micro-batch, logits (tokens, V) of
    what predicts its answer tokens."""
    tokens = answers(labels).to(logits.device, non_blocking=True)
    return torch.nn.functional.cross_entropy(logits.float(), tokens, reduction="sum")


@contextmanager
def answers_alone(model: Any, labels: torch.Tensor) -> Iterator[None]:
    """While it lasts, only what predicts an answer token of `labels` (n, t) goes through the model's head: its logits
    are (1, tokens, V), in the order of `answers`. They are the widest activations, and most tokens are no answer."""
    head = model.get_output_embeddings()
    places = (labels[:, 1:] != -100).nonzero(as_tuple=True)
    # before the pass, and not waited for: on a GPU copies made in the hook would wait for all of the pass
    row, column = (place.to(head.weight.device, non_blocking=True) for place in places)

    def choose(_: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        states, *more = given
        return (states[row, column][None], *more)

    handle = head.register_forward_pre_hook(choose)
    try:
        yield
    finally:
        handle.remove()


def fine_tune(
    model: Any,
    items: Sequence[Encoded],
    settings: Tune,
    seed: int,
    pad: int = 0,
    progress: Progress = silent,
    objective: Objective = cross_entropy,
    savepoint: Savepoint | None = None,
) -> Tuned:
    """Train what requires a gradient in `model`. The order of batches depends on `seed` alone, so that all
    methods of a run see the same data in the same order.

    objective(ids, mask, labels, logits): the loss summed over a micro-batch's answer tokens; see `cross_entropy`.
    labels lie in host memory, so that choosing by them waits for no device.

    With a `savepoint`, a tuning that was broken off goes on where it stood: on a CPU it ends with the very bits of one
    that was not. It is written from time to time, where progress raises Cancelled, and at the end where it was
    written before; the caller removes it.

    Raises RunError naming the step where the loss runs away (or the loss or a gradient stops being finite) before
    any step made it smaller.
    """
    device = next(model.parameters()).device
    moving = [p for p in model.parameters() if p.requires_grad]
    group = {"params": moving, "initial_lr": settings.learning_rate}
    optimizer = torch.optim.AdamW([group], lr=settings.learning_rate, weight_decay=settings.weight_decay)
    total = steps_of(len(items), settings)
    warmup = max(1, round(settings.warmup * total))
    generator = torch.Generator().manual_seed(seed)
    watch, every = _Watch(moving), max(1, total // COPIES)
    trainable = sum(p.numel() for p in moving)
    course, done, seen = None, 0, 0
    if savepoint:
        texts = [(item.ids, item.answer_start) for item in items]
        given = fingerprint(moving, settings.model_dump(), seed, pad, texts)
        course = _Course(savepoint, optimizer, watch, given)
        done, seen = course.resume()
        if done:
            log.info("tuning goes on after step %d of %d", done, total)
            progress(done, total, loss=watch.losses[-1])  # said once more: cancelling cut its first report short
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min((s + 1) / warmup, max(0.0, (total - s) / max(1, total - warmup))),
        last_epoch=done - 1,
    )
    step = 0
    for _ in range(settings.epochs):
        order = torch.randperm(len(items), generator=generator).tolist()
        for first in range(0, len(order), settings.batch_size):
            if step < done:
                step += 1
                continue
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
            try:
                progress(step, total, loss=loss)
            except Cancelled:
                if course:
                    course.keep(step, seen)
                raise
            if course and (course.savepoint.kept if step == total else course.savepoint.due()):
                course.keep(step, seen)
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
        ids, mask, labels = (torch.tensor(x) for x in padded(batch[first : first + micro], pad))
        ids, mask = ids.to(device), mask.to(device)
        with answers_alone(model, labels):
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0]
        loss = objective(ids, mask, labels, logits) / tokens
        loss.backward()
        total += loss.detach()
    return total
