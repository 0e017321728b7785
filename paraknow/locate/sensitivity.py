"""Parameter sensitivity |w · ∂L/∂w| (Seeking Neural Nuggets, arXiv 2310.11451; METHODS 1.1).

Notation: θ parameters, ℓ mean cross-entropy over an example's answer tokens, S(θ) = Σ_seeds |θ ⊙ ∂ℓ/∂θ|.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from paraknow.data import Encoded
from paraknow.errors import RunError
from paraknow.models import Loaded, gradients_on
from paraknow.progress import Progress, silent

Place = tuple[int, str]  # (layer, module)
HALF_SCALE = 4096.0  # a teacher that knows the answer has gradients below what float16 can hold
COARSE_SIDE = 512
CHUNK = 2**22  # weights of half precision widened at a time


@dataclass
class Sensitivity:
    """S for every parameter of one model.

    `maps` holds one float32 tensor of the parameter's shape per (layer, module). `table` has the columns
    seed (−1: all seeds together), layer, module, sum, mean, max, share (of the model's total for that seed).
    `losses` holds ℓ per seed, in nats per answer token. `halves` holds S of the first and of the second half of the
    seeds per matrix, two of at most 512², summed over the cells of a grid: enough to see whether they agree, in the
    memory of two pictures. Empty where it was not asked for, or there is one seed.
    """

    maps: dict[Place, torch.Tensor]
    table: pd.DataFrame
    losses: list[float]
    halves: dict[Place, tuple[torch.Tensor, torch.Tensor]]

    def layer_scores(self, layers: int) -> list[float]:
        """Summed S of every layer's parameters, norms and biases included; the model's L layers in order."""
        whole = self.table[self.table.seed == -1].groupby("layer")["sum"].sum()
        return [float(whole[k]) for k in range(layers)]


def sensitivity(
    loaded: Loaded, items: Sequence[Encoded], progress: Progress = silent, halves: bool = False
) -> Sensitivity:
    """S over `items`, one backward pass each: the absolute value forbids batching gradients.

    With `halves`, the first and the second half of the seeds are kept apart as well, on a coarse grid.

    Each gradient is taken in a post-accumulate hook, turned into its score where it lies and freed there, so peak
    memory is the weights, one float32 accumulator and one gradient. Raises RunError naming the first parameter
    whose gradient is not finite, or the example whose loss is not. The model is left as it was found.
    """
    model, places = loaded.model, loaded.architecture.place
    named = list(model.named_parameters())
    total = {name: torch.zeros(p.shape, dtype=torch.float32, device=p.device) for name, p in named}
    # One row per seed, one column per parameter; moved to the host once, at the end.
    sums = torch.zeros(len(items), len(named), dtype=torch.float64, device=loaded.device)
    peaks = torch.zeros(len(items), len(named), dtype=torch.float32, device=loaded.device)
    losses = torch.zeros(len(items), dtype=torch.float32, device=loaded.device)
    first: dict[str, torch.Tensor] = {}
    row = 0
    scale = HALF_SCALE if model.dtype == torch.float16 else 1.0

    def take(column: int, name: str):
        def hook(parameter: torch.Tensor) -> None:
            gradient = parameter.grad
            assert gradient is not None
            parameter.grad = None
            # float32 scores take the gradient's own place; halves are widened piece by piece
            size = gradient.numel() if gradient.dtype == torch.float32 else CHUNK
            parts = [t.reshape(-1).split(size) for t in (parameter.detach(), gradient, total[name])]
            for weight, slope, into in zip(*parts, strict=True):
                score = slope.float().mul_(weight).abs_()
                if scale != 1.0:
                    score.div_(scale)
                into.add_(score)
                whole, most = score.view(-1, _width(score)).sum(1).sum(dtype=torch.float64), score.amax()
                sums[row, column] += whole.to(sums.device)
                peaks[row, column] = torch.maximum(peaks[row, column], most.to(peaks.device))

        return hook

    with gradients_on(model):
        handles = [p.register_post_accumulate_grad_hook(take(c, n)) for c, (n, p) in enumerate(named)]
        try:
            for row, item in enumerate(items):
                loss = answer_loss(loaded, item)
                (loss * scale).backward()
                losses[row] = loss.detach()
                if halves and row + 1 == len(items) // 2:
                    first = {name: coarse(total[name]) for name, p in named if p.ndim == 2}
                progress(row + 1, len(items))
        finally:
            for handle in handles:
                handle.remove()
    _refuse_nan(named, sums, losses)
    entries = [(places(name), p.numel()) for name, p in named]
    whole_max = torch.stack([total[name].max().to(loaded.device) for name, _ in named])
    table = pd.concat(
        [
            _rows(-1, sums.sum(0), whole_max, entries),
            *(_rows(seed, sums[seed], peaks[seed], entries) for seed in range(len(items))),
        ],
        ignore_index=True,
    )
    both = {places(name): (half, (coarse(total[name]) - half).clamp_min_(0)) for name, half in first.items()}
    return Sensitivity({places(name): total[name] for name, _ in named}, table, losses.tolist(), both)


def answer_loss(loaded: Loaded, item: Encoded, reduction: str = "mean", model: Any = None) -> torch.Tensor:
    """ℓ of one example in nats: the mean over its answer's tokens, or with "none" one value per token (tokens,).

    `model` stands in for `loaded.model`.
    """
    ids = torch.tensor([item.ids], device=loaded.device)
    answer = len(item.ids) - item.answer_start
    # Only what predicts the answer goes through the head: logits are the widest activations.
    made = (model or loaded.model)(input_ids=ids, use_cache=False, logits_to_keep=answer + 1)
    logits = made.logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, ids[0, item.answer_start :], reduction=reduction)


def _width(score: torch.Tensor) -> int:
    """A divisor to sum by: pairwise sums of short rows keep what one long float32 sum would lose."""
    return math.gcd(score.numel(), 2**12)


def coarse(matrix: torch.Tensor, side: int = COARSE_SIDE) -> torch.Tensor:
    """Sums over the cells of a grid of at most side × side cells, float32; the matrix itself where it is smaller."""
    for axis in (0, 1):
        length = matrix.shape[axis]
        if length > side:
            cells = torch.arange(length, device=matrix.device) * side // length
            shape = (side, matrix.shape[1]) if axis == 0 else (matrix.shape[0], side)
            matrix = torch.zeros(shape, device=matrix.device).index_add_(axis, cells, matrix)
    return matrix.clone()


def _rows(seed: int, sums: torch.Tensor, peaks: torch.Tensor, entries: list[tuple[Place, int]]) -> pd.DataFrame:
    total = float(sums.sum())
    frame = pd.DataFrame([place for place, _ in entries], columns=["layer", "module"])
    frame.insert(0, "seed", seed)
    frame["sum"] = sums.cpu().numpy()
    frame["mean"] = frame["sum"] / [count for _, count in entries]
    frame["max"] = peaks.cpu().numpy()
    frame["share"] = frame["sum"] / total if total else float("nan")
    return frame


def _refuse_nan(named: list, sums: torch.Tensor, losses: torch.Tensor) -> None:
    bad_loss = (~torch.isfinite(losses)).nonzero()
    if len(bad_loss):
        raise RunError(f"sensitivity: the loss of seed example {int(bad_loss[0])} is NaN or infinite.")
    bad = (~torch.isfinite(sums)).any(0).nonzero()
    if len(bad):
        raise RunError(f"sensitivity: the gradient of {named[int(bad[0])][0]} is NaN or infinite.")
    if not float(sums.sum()):
        raise RunError("sensitivity: every gradient is 0, so nothing can be located; a wider dtype may help.")


def combine(parts: dict[str, Sensitivity]) -> tuple[dict[Place, torch.Tensor], pd.DataFrame]:
    """Maps summed over tasks, and one table with a leading `task` column.

    The sum is made in the first task's own maps: with large models there is no room for another copy.
    """
    first, *others = parts.values()
    for other in others:
        for place, values in other.maps.items():
            first.maps[place] += values
    table = pd.concat([part.table.assign(task=task) for task, part in parts.items()], ignore_index=True)
    return first.maps, table[["task", *[c for c in table.columns if c != "task"]]]
