"""Parameter sensitivity |w · ∂L/∂w| (Seeking Neural Nuggets, arXiv 2310.11451; METHODS 1.1).

Notation: θ parameters, ℓ mean cross-entropy over an example's answer tokens, S(θ) = Σ_seeds |θ ⊙ ∂ℓ/∂θ|.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from paraknow import placing
from paraknow.config import Locate
from paraknow.data import Encoded
from paraknow.errors import RunError
from paraknow.locate import groups
from paraknow.locate.accumulators import accumulating
from paraknow.models import Loaded, gradients_on
from paraknow.progress import Progress, part, silent

Place = tuple[int, str]  # (layer, module)
HALF_SCALE = 4096.0  # a teacher that knows the answer has gradients below what float16 can hold
COARSE_SIDE = 512


@dataclass
class Sensitivity:
    """S for every parameter of one model.

    `maps` holds one float32 tensor of the parameter's shape per (layer, module); empty where they were used up group by
    group. `table` has the columns
    seed (−1: all seeds together), layer, module, sum, mean, max, share (of the model's total for that seed).
    `losses` holds ℓ per seed, in nats per answer token. `halves` holds S of the first and of the second half of the
    seeds per matrix, two of at most 512², summed over the cells of a grid: enough to see whether they agree, in the
    host memory of two pictures. Empty where it was not asked for, or there is one seed.
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
    loaded: Loaded,
    items: Sequence[Encoded],
    progress: Progress = silent,
    halves: bool = False,
    settings: Locate | None = None,
) -> Sensitivity:
    """S over `items`, one backward pass each: the absolute value forbids batching gradients.

    With `halves`, the first and the second half of the seeds are kept apart as well, on a coarse grid. `settings` say
    in how many groups of layers, where the sums lie and whether layers are computed again; no number depends on them.
    Raises RunError naming the first parameter whose gradient is not finite, or the example whose loss is not, and
    ResourceError where sums on disk have no room. The model is left as it was found.
    """
    settings = settings or Locate()
    passes, found = Passes(loaded, items, settings, halves), groups_of(loaded, settings)
    maps: dict[Place, torch.Tensor] = {}
    for number, group in enumerate(found):
        report = part(progress, number * len(items), len(found) * len(items), scale=len(items))
        maps |= passes.over(group, report)
    return passes.result(maps)


def groups_of(loaded: Loaded, settings: Locate) -> list[range]:
    """Layers of a model by the places they have in tables, in groups whose sensitivities are taken together."""
    whole = sum(p.numel() for p in loaded.model.parameters())
    found = groups.split(groups.unit_sizes(loaded.architecture, whole), settings.groups)
    return [range(group.start - 1, group.stop - 1) for group in found]


class Passes:
    """S of one model on one set of seeds, a group of layers at a time.

    Each gradient is taken in a post-accumulate hook, turned into its score where it lies and freed there, so a group's
    passes hold the weights, one float32 accumulator per parameter of the group and one gradient. What outlives them is
    small: numbers per seed and parameter, and the coarse halves, in host memory.
    """

    def __init__(self, loaded: Loaded, items: Sequence[Encoded], settings: Locate, halves: bool = False):
        self.loaded, self.items, self.settings = loaded, items, settings
        self.named = list(loaded.model.named_parameters())
        self.middle = len(items) // 2 if halves else 0
        shape, device = (len(items), len(self.named)), loaded.device
        # One row per seed, one column per parameter; moved to the host once, at the end.
        self.sums = torch.zeros(shape, dtype=torch.float64, device=device)
        self.peaks = torch.zeros(shape, dtype=torch.float32, device=device)
        self.whole_max = torch.zeros(len(self.named), dtype=torch.float32, device=device)
        self.losses = torch.zeros(len(items), dtype=torch.float32, device=device)
        self.halves: dict[Place, tuple[torch.Tensor, torch.Tensor]] = {}

    def over(self, layers: range, progress: Progress = silent) -> dict[Place, torch.Tensor]:
        """S of the parameters of some layers, by place: a forward and a backward pass for each seed, which ends at the
        lowest of them. Raises as `sensitivity` does, which counts steps of `progress` in seeds."""
        loaded, place = self.loaded, self.loaded.architecture.place
        chosen = [(c, n, p) for c, (n, p) in enumerate(self.named) if place(n)[0] in layers]
        scale = HALF_SCALE if loaded.model.dtype == torch.float16 else 1.0
        first: dict[str, torch.Tensor] = {}
        row = 0

        def take(column: int, name: str):
            def hook(parameter: torch.Tensor) -> None:
                gradient = parameter.grad
                assert gradient is not None
                parameter.grad = None
                # float32 scores take the gradient's own place; halves are widened piece by piece
                size = made.pieces(name, gradient)
                parts = [t.reshape(-1).split(size) for t in (parameter.detach(), gradient)]
                for number, (weight, slope) in enumerate(zip(*parts, strict=True)):
                    score = slope.float().mul_(weight).abs_()
                    if scale != 1.0:
                        score.div_(scale)
                    made.add(name, number * size, score)
                    whole, most = score.view(-1, _width(score)).sum(1).sum(dtype=torch.float64), score.amax()
                    self.sums[row, column] += whole.to(self.sums.device)
                    self.peaks[row, column] = torch.maximum(self.peaks[row, column], most.to(self.peaks.device))

            return hook

        recomputed = placing.recomputed(loaded.model) if self.settings.checkpointing else nullcontext()
        with (
            gradients_on(loaded.model, [p for _, _, p in chosen]),
            recomputed,
            accumulating({n: p for _, n, p in chosen}, self.settings.accumulators) as made,
        ):
            handles = [p.register_post_accumulate_grad_hook(take(c, n)) for c, n, p in chosen]
            try:
                for row, item in enumerate(self.items):
                    loss = answer_loss(loaded, item)
                    (loss * scale).backward()
                    self.losses[row] = loss.detach()
                    if row + 1 == self.middle:
                        made.settle()
                        first = {n: self._coarse(made.total[n]) for _, n, p in chosen if p.ndim == 2}
                    progress(row + 1, len(self.items))
                made.settle()
            finally:
                for handle in handles:
                    handle.remove()
        self._refuse_nan([c for c, _, _ in chosen])
        for column, name, _ in chosen:
            self.whole_max[column] = made.total[name].max()
        for name, half in first.items():
            self.halves[place(name)] = (half, (self._coarse(made.total[name]) - half).clamp_min_(0))
        return {place(name): made.total[name] for _, name, _ in chosen}

    def _coarse(self, matrix: torch.Tensor) -> torch.Tensor:
        """A matrix on its coarse grid, in host memory; it is brought to the model's device where it lies elsewhere."""
        return coarse(matrix.to(self.loaded.device)).cpu()

    def _refuse_nan(self, columns: list[int]) -> None:
        bad_loss = (~torch.isfinite(self.losses)).nonzero()
        if len(bad_loss):
            raise RunError(f"sensitivity: the loss of seed example {int(bad_loss[0])} is NaN or infinite.")
        bad = (~torch.isfinite(self.sums[:, columns])).any(0).nonzero()
        if len(bad):
            raise RunError(f"sensitivity: the gradient of {self.named[columns[int(bad[0])]][0]} is NaN or infinite.")

    def result(self, maps: dict[Place, torch.Tensor] | None = None) -> Sensitivity:
        """What the passes of all groups found; `maps`, where they are still there. Raises RunError where it is 0."""
        if not float(self.sums.sum()):
            raise RunError("sensitivity: every gradient is 0, so nothing can be located; a wider dtype may help.")
        entries = [(self.loaded.architecture.place(name), p.numel()) for name, p in self.named]
        seeds = [_rows(s, self.sums[s], self.peaks[s], entries) for s in range(len(self.items))]
        table = pd.concat([_rows(-1, self.sums.sum(0), self.whole_max, entries), *seeds], ignore_index=True)
        return Sensitivity(maps or {}, table, self.losses.tolist(), self.halves)


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


def add_maps(into: dict[Place, torch.Tensor], more: dict[Place, torch.Tensor]) -> dict[Place, torch.Tensor]:
    """Maps summed over tasks, made in those of the first: with large models there is no room for another copy."""
    for place, values in more.items():
        into[place] = into[place].add_(values) if place in into else values
    return into


def joined(parts: dict[str, Sensitivity]) -> pd.DataFrame:
    """The tables of all tasks, with a leading `task` column."""
    table = pd.concat([part.table.assign(task=task) for task, part in parts.items()], ignore_index=True)
    return table[["task", *[c for c in table.columns if c != "task"]]]
