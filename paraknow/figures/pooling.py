"""Many weights as one pixel: largest, mean or 99th percentile of every cell of a grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

POOLINGS = {"max": "largest", "mean": "mean", "p99": "99th percentile"}
GRIDS = (256, 128, 64, 32, 16)  # cells a side that a map may be pooled to


def pooled(values: np.ndarray, cells: int, how: str = "max") -> np.ndarray:
    """A matrix (R, C) on a grid of at most cells × cells; what does not divide evenly makes cells one weight larger.

    `how`: max, mean or p99 (99th percentile). Raises ValueError for any other.
    """
    if how not in POOLINGS:
        raise ValueError(f"pooling {how!r}: choose of {', '.join(POOLINGS)}.")
    edges = [np.linspace(0, n, min(cells, n) + 1).astype(int) for n in values.shape]
    (top, left), (rows, cols) = [e[:-1] for e in edges], [np.diff(e) for e in edges]
    made = np.empty((len(rows), len(cols)), np.float32)
    for r in np.unique(rows):
        for c in np.unique(cols):  # at most four sizes of cells, each pooled at once
            at = np.ix_(rows == r, cols == c)
            lines, columns = top[rows == r][:, None] + np.arange(r), left[cols == c][:, None] + np.arange(c)
            cut = values[lines[:, None, :, None], columns[None, :, None, :]]  # (cells down, cells across, r, c)
            made[at] = _one(cut, how)
    return made


def _one(cut: np.ndarray, how: str) -> np.ndarray:
    if how == "p99":
        return np.percentile(cut, 99, axis=(2, 3))
    return cut.max((2, 3)) if how == "max" else cut.mean((2, 3))


def stored(shape: Sequence[int], grid: Sequence[int], pooling: str) -> str:
    """What a stored map of a matrix of `shape` holds, in words; only one that holds every weight can be pooled anew."""
    if list(shape) == list(grid):
        return "The run keeps every weight of this matrix, so it can be pooled as one likes."
    sizes = " × ".join(f"{whole / cells:.3g}" for whole, cells in zip(shape, grid, strict=True))
    name = POOLINGS.get(pooling, pooling)
    return f"The run keeps only the {name} of every {sizes} weights; other poolings would need the model."
