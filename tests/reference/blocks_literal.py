"""Block choice as a loop over all offsets, in float64."""

from __future__ import annotations

import torch


def best_window(scores: torch.Tensor, n: int, m: int) -> tuple[int, int]:
    scores = scores.double()
    best, where = -float("inf"), (0, 0)
    for row in range(scores.shape[0] - n + 1):
        for col in range(scores.shape[1] - m + 1):
            total = float(scores[row : row + n, col : col + m].sum())
            if total > best:
                best, where = total, (row, col)
    return where
