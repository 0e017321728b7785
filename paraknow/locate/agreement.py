"""Do the seeds agree, and do the tasks? Overlaps and rank correlations, each beside what chance would give.

With few seeds a block may be chosen by noise. So the seeds are halved and each half chooses for itself (METHODS 1.2,
1.3); two tasks are held against each other in the same way. Everything is computed on the grids of at most 512²
cells that `Sensitivity.halves` keeps: for smaller matrices that is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import hypergeom, rankdata

from paraknow.locate.blocks import best_lines, best_window
from paraknow.locate.layers import choose_layers
from paraknow.locate.sensitivity import Place, Sensitivity

SPLITS = 200  # random halvings behind the correlation of layer scores
DRAWS = 2000  # random windows behind the overlap expected by chance
COLUMNS = "about model task other what module layer value chance lo hi n".split()


def rank_correlations(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each row of two arrays (k, n) or (n,); NaN where a row is constant or n < 3."""
    one, other = np.atleast_2d(one), np.atleast_2d(other)
    if one.shape[1] < 3:
        return np.full(len(one), np.nan)
    a, b = (rankdata(x, axis=1) - (x.shape[1] + 1) / 2 for x in (one, other))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))


def rank_correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    """The same of two tensors of one shape; on a GPU it is worked out there, for sorting is most of it."""
    if not one.is_cuda:
        return float(rank_correlations(one.flatten().numpy(), other.flatten().numpy())[0])
    a, b = (ranks(x.flatten()) - (x.numel() + 1) / 2 for x in (one, other))
    return float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt()) if len(a) > 2 else np.nan


def ranks(values: torch.Tensor) -> torch.Tensor:
    """Ranks from 1 on of (n,) numbers, float64; equal ones share the mean of theirs."""
    ordered = values.sort().values
    below, up_to = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    return (below + up_to + 1).double() / 2


def split_half(table: pd.DataFrame, layers: int, seed: int = 0) -> tuple[float, float, float, int]:
    """Correlation of layer scores between random halves of the seeds: mean, 2.5 and 97.5 %, seeds.

    `table` is one model's and task's part of locate/sensitivity.parquet. NaN under two seeds or three layers.
    """
    own = table[(table.seed >= 0) & (table.layer >= 0) & (table.layer < layers)]
    scores = own.groupby(["seed", "layer"])["sum"].sum().unstack("layer").to_numpy()  # (seeds, L)
    seeds = len(scores)
    if seeds < 2 or layers < 3:
        return np.nan, np.nan, np.nan, seeds
    draw = np.random.default_rng(seed)
    order = draw.permuted(np.tile(np.arange(seeds), (SPLITS, 1)), axis=1)
    sides = [scores[order[:, part]].sum(1) for part in (slice(seeds // 2), slice(seeds // 2, None))]
    values = rank_correlations(*sides)
    low, high = np.percentile(values, [2.5, 97.5])
    return float(values.mean()), float(low), float(high), seeds


def overlap_of_layers(one: Sequence[int], other: Sequence[int], layers: int) -> tuple[float, float]:
    """Jaccard overlap of two choices of equally many layers, and its mean for random choices among `layers`."""
    count, both = len(one), len(set(one) & set(other))
    common = np.arange(count + 1)
    chances = hypergeom(layers, count, count).pmf(common)
    return both / (2 * count - both), float((chances * common / (2 * count - common)).sum())


def overlap_of_blocks(
    one: torch.Tensor, other: torch.Tensor, shape: tuple[float, float], structure: str, seed: int = 0
) -> tuple[float, float]:
    """Intersection over union of the blocks that two maps (R, C) choose, and its mean for random blocks.

    `shape` is the block's size as shares of the rows and columns.
    """
    rows, cols = one.shape
    n, m = max(1, round(shape[0] * rows)), max(1, round(shape[1] * cols))
    if structure == "window":
        corners = [best_window(x, n, m) for x in (one, other)]
        shared = [max(0, side - abs(a - b)) for side, a, b in zip((n, m), *corners, strict=True)]
        draw = np.random.default_rng(seed)
        sides = ((rows, n), (cols, m))
        gaps = [np.abs(np.subtract(*draw.integers(0, whole - side + 1, (2, DRAWS)))) for whole, side in sides]
        chance = np.prod([np.maximum(0, side - gap) for gap, side in zip(gaps, (n, m), strict=True)], 0)
    else:
        lines = [[set(best_lines(x, count, axis).tolist()) for x in (one, other)] for axis, count in ((0, n), (1, m))]
        shared = [len(a & b) for a, b in lines]
        chance = np.array([n * n / rows * m * m / cols])
    inner = shared[0] * shared[1]
    return inner / (2 * n * m - inner), float((chance / (2 * n * m - chance)).mean())


def _layer_sums(maps: dict[Place, torch.Tensor], layers: int) -> list[float]:
    sums = torch.stack([values.sum(dtype=torch.float64).cpu() for values in maps.values()]).tolist()
    return [sum(s for (layer, _), s in zip(maps, sums, strict=True) if layer == k) for k in range(layers)]


def agreement(
    model: str,
    parts: dict[str, Sensitivity],
    layers: int,
    chosen: Sequence[int] = (),
    shapes: dict[str, tuple[float, float]] | None = None,
    structure: str = "window",
    seed: int = 0,
    device: torch.device | None = None,
) -> pd.DataFrame:
    """All that can be said about one model: halves of the seeds per task, and every pair of tasks.

    `chosen` are the layers that are cut, `shapes` the blocks' sizes per module as shares of the teacher's matrix
    (the teacher alone has them). Maps are compared on `device`, or where they lie. Columns: about (split_half, tasks),
    model, task, other, what (layer_scores, chosen_layers, map, block), module, layer, value, chance, lo, hi, n (seeds).
    See docs/METHODS.md 1.2.
    """
    rows: list[dict[str, Any]] = []

    def add(about: str, task: str, other: str, what: str, value: float, chance: float = np.nan, **more: Any) -> None:
        rows.append({"about": about, "model": model, "task": task, "other": other, "what": what, "module": ""})
        rows[-1] |= {"layer": None, "value": value, "chance": chance, "lo": np.nan, "hi": np.nan, **more}

    def compare(about: str, names: tuple[str, str], maps: Sequence[dict[Place, torch.Tensor]], n: int) -> None:
        scores = [_layer_sums(x, layers) for x in maps]
        if shapes and len(chosen) <= layers:
            first, second = (choose_layers(s, len(chosen), "sensitivity") for s in scores)
            add(about, *names, "chosen_layers", *overlap_of_layers(first, second, layers), n=n)
        for layer, module in ((k, m) for m in shapes or () for k in chosen):
            one, other = (x[(layer, module)].to(device or x[(layer, module)].device) for x in maps)
            add(about, *names, "map", rank_correlation(one, other), 0.0, module=module, layer=layer, n=n)
            if not structure.startswith("random"):
                both = overlap_of_blocks(one, other, shapes[module], structure, seed)  # type: ignore[index]
                add(about, *names, "block", *both, module=module, layer=layer, n=n)

    for task, found in parts.items():
        value, lo, hi, n = split_half(found.table, layers, seed)
        add("split_half", task, "", "layer_scores", value, 0.0, lo=lo, hi=hi, n=n)
        if found.halves:
            halves = [{place: both[k] for place, both in found.halves.items()} for k in (0, 1)]
            compare("split_half", (task, ""), halves, n)
    whole = {task: {p: h[0] + h[1] for p, h in found.halves.items()} for task, found in parts.items() if found.halves}
    for one, other in combinations(whole, 2):
        n = min(len(parts[task].losses) for task in (one, other))
        value = float(rank_correlations(*(np.array(parts[task].layer_scores(layers)) for task in (one, other)))[0])
        add("tasks", one, other, "layer_scores", value, 0.0, n=n)
        compare("tasks", (one, other), [whole[one], whole[other]], n)
    return pd.DataFrame(rows, columns=COLUMNS).astype({"layer": "Int64"})
