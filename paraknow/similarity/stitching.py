"""How well one model's residual stream can be read off the other's: ridge maps teacher → student (METHODS 3.3).

Notation: X (N, d_T) and Y (N, d_S) are the two streams at the same N tokens; the map is fitted on some examples,
its strength λ chosen by cross-validation among them, and R² measured on the tokens of the others.
A high R² says that the spaces are alike. It does not say that knowledge crosses.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from paraknow.errors import InputError
from paraknow.progress import Progress, silent

RIDGES = tuple(10.0**k for k in range(-7, 3))  # λ in units of the mean squared singular value of X
FOLDS = 4
HELD_OUT = 0.2


def stitch(
    xs: Sequence[torch.Tensor],
    ys: Sequence[torch.Tensor],
    owners: Sequence[int],
    seed: int = 0,
    resamples: int = 400,
    progress: Progress = silent,
) -> pd.DataFrame:
    """R² of a ridge map for every pair of a teacher layer's (N, d_T) and a student layer's (N, d_S) rows.

    `owners` (N,) name the example of each row: an example's rows are fitted, validated on or held out together.
    Columns: teacher_layer, student_layer, r2 (pooled over dimensions, against the held-out mean), lo, hi (examples
    resampled), null (the same with the fitted rows shuffled), ridge (the λ chosen, relative), n (held-out rows),
    paired (see `pair_layers`). R² is NaN where a layer's held-out outputs are constant.
    Raises InputError under 10 examples.
    """
    draw = np.random.default_rng(seed)
    groups, owner = np.unique(np.asarray(owners), return_inverse=True)
    if len(groups) < 10:
        raise InputError(f"similarity: {len(groups)} examples are too few to stitch; 10 are needed, better 100.")
    part = np.empty(len(groups), dtype=int)  # −1 held out, else the fold
    count = max(1, round(HELD_OUT * len(groups)))
    part[draw.permutation(len(groups))] = [-1] * count + [k % FOLDS for k in range(len(groups) - count)]
    rows, device = part[owner], ys[0].device
    fit, held = (torch.from_numpy(np.flatnonzero(m)).to(device) for m in (rows >= 0, rows < 0))
    fold = torch.from_numpy(rows[rows >= 0]).to(device)
    target = torch.cat([y.to(_kind(y)) for y in ys], 1)
    sizes = [y.shape[1] for y in ys]
    train, test = target[fit], target[held]
    # Shuffled rows take part in every fit as further columns: same map, same λ search, nothing to find.
    train = torch.cat([train, train[torch.from_numpy(draw.permutation(len(train))).to(device)]], 1)
    weights = draw.exponential(size=(resamples, len(groups)))[:, owner[rows < 0]]
    scatter = [part.square().sum(1) for part in (test - test.mean(0)).split(sizes, 1)]
    made = []
    for layer, x in enumerate(xs):
        x = x.to(_kind(x))
        errors = torch.zeros(len(RIDGES), 2 * len(ys), dtype=torch.float64, device=device)
        for k in range(FOLDS):
            errors += _errors(x[fit][fold != k], train[fold != k], x[fit][fold == k], train[fold == k], sizes * 2)
            progress(layer, len(xs), "stitching")
        best = errors.argmin(0).tolist()
        missed = _residuals(x[fit], train, x[held], torch.cat([test, test], 1), sizes * 2, best)
        for s in range(len(ys)):
            spread, wrong, null = (v.double().cpu().numpy() for v in (scatter[s], missed[s], missed[len(ys) + s]))
            sound = spread.sum() > 0
            again = 1 - (weights @ wrong) / (weights @ spread) if sound else np.full(resamples, np.nan)
            made.append(
                {
                    "teacher_layer": layer,
                    "student_layer": s,
                    "r2": 1 - wrong.sum() / spread.sum() if sound else np.nan,
                    "lo": np.percentile(again, 2.5),
                    "hi": np.percentile(again, 97.5),
                    "null": 1 - null.sum() / spread.sum() if sound else np.nan,
                    "ridge": RIDGES[best[s]],
                    "n": len(held),
                }
            )
        progress(layer + 1, len(xs), "stitching")
    table = pd.DataFrame(made)
    pairs = pair_layers(table.r2.to_numpy().reshape(len(xs), len(ys)))
    chosen = {(t, s) for s, t in enumerate(pairs)}
    table["paired"] = [pair in chosen for pair in zip(table.teacher_layer, table.student_layer, strict=True)]
    return table


def _kind(x: torch.Tensor) -> torch.dtype:
    return torch.float32 if x.is_cuda else torch.float64


class _Ridge:
    """Ridge regression of many targets on X (n, d), for any λ: X = U S Vᵀ after centring."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor):
        self.mean, self.offset = x.mean(0), y.mean(0)
        u, self.s, self.vt = torch.linalg.svd(x - self.mean, full_matrices=False)
        self.uy = u.T @ (y - self.offset)

    def predict(self, x: torch.Tensor, ridge: float, columns: slice = slice(None)) -> torch.Tensor:
        """Targets (n, columns) of rows x (n, d); λ = ridge · mean(S²)."""
        shrunk = self.s / (self.s.square() + ridge * self.s.square().mean()).clamp_min(1e-30)
        return ((x - self.mean) @ self.vt.T * shrunk) @ self.uy[:, columns] + self.offset[columns]


def _errors(x: torch.Tensor, y: torch.Tensor, x_new: torch.Tensor, y_new: torch.Tensor, sizes: list[int]):
    """Squared errors (λs, targets' groups) on new rows."""
    ridge = _Ridge(x, y)
    return torch.stack(
        [
            torch.stack(
                [e.square().sum(dtype=torch.float64) for e in (ridge.predict(x_new, r) - y_new).split(sizes, 1)]
            )
            for r in RIDGES
        ]
    )


def _residuals(x, y, x_new, y_new, sizes: list[int], best: list[int]) -> list[torch.Tensor]:
    """Squared error of each new row, per group of targets with its own λ: a list of (rows,)."""
    ridge, edges = _Ridge(x, y), np.cumsum([0, *sizes])
    return [
        (ridge.predict(x_new, RIDGES[b], slice(i, j)) - y_new[:, i:j]).square().sum(1)
        for b, i, j in zip(best, edges[:-1], edges[1:], strict=True)
    ]


def pair_layers(r2: np.ndarray) -> list[int]:
    """The teacher layer of each student layer: one to one, in order, with the largest sum of R² (L_T, L_S).

    Dynamic programming over student layers. Empty where a student layer's R² is missing everywhere, or the
    teacher has fewer layers.
    """
    teacher, student = r2.shape
    if teacher < student or np.isnan(r2).all(0).any():
        return []
    gain = np.where(np.isnan(r2), -1e9, r2)
    best = np.full((student + 1, teacher + 1), -np.inf)  # best[s, t]: student layers < s in teacher layers < t
    best[0] = 0.0
    for s in range(1, student + 1):
        best[s, 1:] = np.maximum.accumulate(best[s - 1, :-1] + gain[:, s - 1])
    pairs, t = [], teacher
    for s in range(student, 0, -1):
        t = int(np.argmax(best[s, 1 : t + 1])) + 1  # the first place where this sum is reached
        pairs.append(t - 1)
        t -= 1
    return pairs[::-1]
