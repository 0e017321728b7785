"""SemAlign's training: one student layer at a time learns to put out what the teacher's layers do (METHODS 2.3; no
torch at import).

Notation: h_k a sublayer output of student layer k before the residual add, h the teacher's on the same text, M (d_S,
d_T) the map between the spaces, h* = M·h/‖h‖ the target, z (V,) final logits, y the right token. Loss for layer k:
[1 − cos(h_k, h*)], the mean over both sublayers and positions, + [1 − cos(z, onehot(y))], the mean over answer tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from paraknow.errors import RunError
from paraknow.methods._semantics import (
    HALF_SCALE,
    SUBLAYERS,
    Mix,
    Pairing,
    Rows,
    Text,
    mixed,
    teacher_rows,
)
from paraknow.methods.base import Align
from paraknow.progress import Progress

if TYPE_CHECKING:
    import torch

    from paraknow.models import Loaded


# -- the loss --------------------------------------------------------------------------------------------


def hidden_loss(found: torch.Tensor, targets: Sequence[torch.Tensor]) -> torch.Tensor:
    """Σ over rows of 1 − cos(h_k, h*), averaged over the layer's targets; found and targets (rows, d_S)."""
    import torch

    each = [torch.nn.functional.cosine_similarity(found.float(), target, dim=-1) for target in targets]
    return (1 - torch.stack(each).mean(0)).sum()


def answer_loss(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Σ over rows of 1 − cos(z, onehot(y)); logits (rows, V), tokens (rows,)."""
    logits = logits.float()
    right = logits.gather(1, tokens[:, None])[:, 0]
    return (1 - right / logits.norm(dim=1).clamp_min(1e-8)).sum()


def targets_of(m: torch.Tensor, rows: Rows, mixes: Sequence[Mix], sublayer: str) -> list[torch.Tensor]:
    """h* = M·h/‖h‖ (rows, d_S) in float32 of every target of a student layer, on M's device."""
    import torch

    outputs = [mixed(rows, mix, sublayer).to(m.device) for mix in mixes]
    return [torch.nn.functional.normalize(h, dim=-1) @ m.T for h in outputs]


@contextmanager
def kept_outputs(loaded: Loaded, layer: int) -> Iterator[dict[str, torch.Tensor]]:
    """The layer's sublayer outputs (n, t, d) of the last forward pass, with what leads back to them."""
    taken: dict[str, torch.Tensor] = {}

    def keep(sublayer: str) -> Any:
        return lambda _, __, output: taken.update({sublayer: output})

    handles = []
    try:
        for sublayer in SUBLAYERS:
            matrix = loaded.model.get_submodule(loaded.architecture.path(sublayer, layer))
            handles.append(matrix.register_forward_hook(keep(sublayer)))
        yield taken
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def adapter_off(wrapped: Any, needed: bool) -> Iterator[None]:
    """The plain model, where the teacher is the student itself; peft would let every adapter move afterwards."""
    flags = [(p, p.requires_grad) for p in wrapped.parameters()] if needed else []
    try:
        with wrapped.disable_adapter() if needed else nullcontext():
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@dataclass
class Aligner:
    """The loss of one student layer and its gradients, on the student with its adapters on."""

    align: Align
    wrapped: Any
    m: torch.Tensor
    pairing: Pairing
    modules: Sequence[str]
    pad: int = 0

    def gradients(self, layer: int, batch: Sequence[Text]) -> torch.Tensor:
        """Backward pass of a batch's loss in micro-batches; returns the loss, whose means are the batch's own."""
        import torch

        rows, answers = _counts(batch)
        total, micro = torch.zeros((), device=self.m.device), self.align.tune.micro_batch
        scale = HALF_SCALE if self.align.student.model.dtype == torch.float16 else 1.0
        for first in range(0, len(batch), micro):
            hidden, logits = self.sums(layer, batch[first : first + micro])
            loss = hidden / rows + logits / answers
            (scale * loss).backward()
            total += loss.detach()
        if scale != 1.0:
            with torch.no_grad():
                torch._foreach_div_([p.grad for p in self.moving(layer) if p.grad is not None], scale)
        return total

    def measure(self, layer: int, texts: Sequence[Text]) -> tuple[float, float]:
        """Mean cos(h_k, h*) over both sublayers and the texts' positions, and the loss, without gradients."""
        import torch

        micro = self.align.tune.micro_batch
        with torch.no_grad():
            sums = [torch.stack(self.sums(layer, texts[n : n + micro])) for n in range(0, len(texts), micro)]
            hidden, logits = torch.stack(sums).double().sum(0).tolist()
        rows, answers = _counts(texts)
        return 1 - hidden / rows, hidden / rows + logits / answers

    def sums(self, layer: int, some: Sequence[Text]) -> tuple[torch.Tensor, torch.Tensor]:
        """Both terms, summed over positions and sublayers, and over answer tokens."""
        import torch

        student = self.align.student
        with adapter_off(self.wrapped, self.align.teacher.model is student.model):
            rows = teacher_rows(self.align.teacher, some, len(some))
        ids, at, answers, tokens = self._places(some)
        with kept_outputs(student, layer) as taken:
            states = student.model.model(input_ids=ids, use_cache=False).last_hidden_state
        # only what predicts an answer goes through the head
        logits = answer_loss(student.model.get_output_embeddings()(states[answers]), tokens)
        parts = [
            hidden_loss(taken[sublayer][at], targets_of(self.m, rows, self.pairing[layer], sublayer))
            for sublayer in SUBLAYERS
        ]
        return torch.stack(parts).sum(), logits

    def _places(self, some: Sequence[Text]) -> Any:
        """ids (n, t), padded at the end, where no earlier position looks; the texts' positions; those that predict
        answer tokens; these tokens."""
        import torch

        width = max(len(t.student.ids) for t in some)
        place = self.align.student.device
        ids = torch.tensor([[*t.student.ids, *[self.pad] * (width - len(t.student.ids))] for t in some], device=place)
        at = [(line, column) for line, t in enumerate(some) for column in t.student_at]
        answers = [(n, p - 1) for n, t in enumerate(some) for p in range(t.student.answer_start, len(t.student.ids))]
        tokens = [token for t in some for token in t.student.ids[t.student.answer_start :]]
        positions = [
            tuple(torch.tensor(list(x), device=place) for x in zip(*where, strict=True)) for where in (at, answers)
        ]
        return ids, *positions, torch.tensor(tokens, device=place)

    def moving(self, layer: int) -> list[torch.Tensor]:
        """The layer's adapter parameters."""
        from paraknow.inject import MOVING, _slots

        student = self.align.student
        paths = [student.architecture.path(module, layer) for module in self.modules]
        return [p for path in paths for p in _slots(student.model.get_submodule(path), MOVING)[:2]]


def _counts(texts: Sequence[Text]) -> tuple[int, int]:
    """Rows of the first term, over both sublayers, and answer tokens."""
    rows = len(SUBLAYERS) * sum(len(t.student_at) for t in texts)
    return rows, sum(len(t.student.ids) - t.student.answer_start for t in texts)


# -- training --------------------------------------------------------------------------------------------


@dataclass
class Learned:
    """What training used and came to; loss_layers: the student layer of each loss; kept_step: optimiser steps behind
    the adapters that stay."""

    losses: list[float] = field(default_factory=list)
    loss_layers: list[int] = field(default_factory=list)
    table: list[dict[str, Any]] = field(default_factory=list)
    examples: int = 0
    steps: int = 0
    kept_step: int = 0
    stopped: str | None = None


class _NotFinite(Exception):
    """A loss or a gradient is NaN or infinite."""


class _Kept:
    """A copy of all adapters as the last sound epoch left them."""

    def __init__(self, parameters: list[torch.Tensor]) -> None:
        self.parameters = [p.detach() for p in parameters]
        self.copies = [p.clone() for p in self.parameters]

    def keep(self) -> None:
        import torch

        torch._foreach_copy_(self.copies, self.parameters)

    def put_back(self) -> None:
        import torch

        torch._foreach_copy_(self.parameters, self.copies)


def steps_of(settings: Any, texts: int) -> int:
    """Optimiser steps of one layer."""
    return settings.epochs * math.ceil(texts / settings.batch_size)


def train(aligner: Aligner, texts: Sequence[Text], probe: Sequence[Text], progress: Progress) -> Learned:
    """Layer after layer from the shallowest, `epochs` passes over the texts each; AdamW at a constant rate.

    The order of batches depends on the seed alone. After every epoch the layer is measured on `probe`. Where a loss or
    a gradient is not finite, there or in a step, training stops and the adapters go back to the last epoch after which
    all was finite. Raises RunError where there is none.
    """
    import torch

    align, layers = aligner.align, sorted(aligner.pairing)
    settings, done = align.settings, Learned()
    generator = torch.Generator().manual_seed(align.seed)
    total = len(layers) * steps_of(settings, len(texts))
    every = [p for layer in layers for p in aligner.moving(layer)]
    kept = _Kept(every)
    for layer in layers:
        moving = aligner.moving(layer)
        for parameter in every:
            parameter.requires_grad_(False)
        for parameter in moving:
            parameter.requires_grad_(True)
        optimizer = torch.optim.AdamW(moving, lr=settings.learning_rate, weight_decay=align.tune.weight_decay)
        begun = len(done.losses)
        before = after = aligner.measure(layer, probe)[0]
        try:
            for _ in range(settings.epochs):
                order = torch.randperm(len(texts), generator=generator).tolist()
                for first in range(0, len(order), settings.batch_size):
                    batch = [texts[i] for i in order[first : first + settings.batch_size]]
                    loss = _finite_loss(aligner.gradients(layer, batch), moving)
                    done.losses.append(loss)
                    done.loss_layers.append(layer)
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                    done.examples += len(batch)
                    done.steps += 1
                    progress(done.steps, total, loss=loss)
                cosine, loss = aligner.measure(layer, probe)
                if not math.isfinite(loss):
                    raise _NotFinite
                kept.keep()
                after, done.kept_step = cosine, done.steps
        except _NotFinite:
            _stop(done, layer, total)
            kept.put_back()
        if len(done.losses) > begun:
            done.table.append(_row(aligner, layer, done.losses[begun:], before, after))
        if done.stopped:
            break
    return done


def _finite_loss(loss: torch.Tensor, moving: list[torch.Tensor]) -> float:
    """The loss as a number. Raises _NotFinite for one, or a gradient, that is not finite."""
    import torch

    size = torch.nn.utils.get_total_norm([p.grad for p in moving if p.grad is not None])
    value, norm = torch.stack([loss, size.to(loss)]).tolist()  # the one look at the device in a step
    if not (math.isfinite(value) and math.isfinite(norm)):
        raise _NotFinite
    return value


def _stop(done: Learned, layer: int, total: int) -> None:
    where = f"step {min(done.steps + 1, total)} of {total} (student layer {layer})"
    what = "the loss or its gradient is NaN or infinite"
    if done.kept_step == 0:
        raise RunError(
            f"align: semalign: {what} at {where}, before any epoch was finished; a smaller "
            "method.learning_rate may help."
        )
    done.stopped = f"stopped at {where}, where {what}; the adapters after {done.kept_step} steps are kept."


def _row(aligner: Aligner, layer: int, losses: Sequence[float], before: float, after: float) -> dict[str, Any]:
    """One line of Start.table; layers count from 0."""
    followed = sorted({teacher for mix in aligner.pairing[layer] for teacher in mix})
    return {
        "student_layer": layer,
        "teacher_layers": ", ".join(map(str, followed)),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "cos_before": before,
        "cos_after": after,
    }
