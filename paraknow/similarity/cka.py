"""Linear CKA in minibatches with the unbiased HSIC estimator, streaming (METHODS 3.1).

Nguyen, Raghu, Kornblith, arXiv 2010.15327; HSIC1 of Song et al. 2012. Notation: a batch has n rows (tokens); K and
L are the (n, n) Gram matrices of the teacher's and the student's features; K̃ is K after U-centring (diagonal 0,
rows and columns sum to 0), which gives HSIC1(K, L) = Σ_ij K̃_ij L̃_ij / (n(n − 3)).
Over batches b: CKA = Σ n_b·HSIC1(K_b, L_b) / √(Σ n_b·HSIC1(K_b, K_b) · Σ n_b·HSIC1(L_b, L_b)).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from paraknow.errors import InputError, RunError

DEFINED = 0.95  # share of resamples that must have a CKA for an interval to be shown


@dataclass(frozen=True)
class CKAResult:
    """Arrays (L_T, L_S), float64; NaN where the outputs of a layer are constant, so that CKA is undefined.

    `lo`, `hi`: 95 % interval, examples resampled; NaN where too few rows leave it undefined. `null`: mean over
    permutations of the student's rows, with the band `null_lo` to `null_hi` in which a single permutation lies;
    `null_position`: permuted among rows that have read about equally much. All but `cka` are NaN where they were
    not asked for.
    """

    cka: np.ndarray
    lo: np.ndarray
    hi: np.ndarray
    null: np.ndarray
    null_lo: np.ndarray
    null_hi: np.ndarray
    null_position: np.ndarray
    rows: int
    batches: int
    examples: int


def u_centred(features: Sequence[torch.Tensor]) -> torch.Tensor:
    """K̃ of the linear kernel of each layer's features (n, p): (layers, n, n), float64 for float64, else float32.

    Features are centred first, which changes nothing but keeps small differences beside a large mean. The first row
    goes before the mean: then constant features are zeros, not rounding.
    """
    first, n = features[0], len(features[0])
    kind = torch.float64 if first.dtype == torch.float64 else torch.float32
    grams = torch.empty(len(features), n, n, dtype=kind, device=first.device)
    for x, gram in zip(features, grams, strict=True):
        x = x.to(kind)
        x = x - x[0]
        x -= x.mean(0)
        torch.mm(x, x.T, out=gram)
    grams.diagonal(dim1=1, dim2=2).zero_()
    sums = grams.sum(2)
    shift = sums / (n - 2) - sums.sum(1, keepdim=True) / (2 * (n - 1) * (n - 2))
    grams.sub_(shift[:, :, None]).sub_(shift[:, None, :])
    grams.diagonal(dim1=1, dim2=2).zero_()
    return grams


def permuted(grams: torch.Tensor, order: np.ndarray) -> torch.Tensor:
    """Rows and columns of every matrix of grams (layers, n, n) in that order (n,).

    numpy copies them in half the time that torch takes for it on a CPU.
    """
    if grams.device.type == "cpu":
        return torch.from_numpy(grams.numpy().take(order, axis=1).take(order, axis=2))
    places = torch.from_numpy(order).to(grams.device)
    return grams[:, places][:, :, places]


class Stream:
    """CKA of one kind of output: all teacher layers against all student layers, batch by batch.

    Sums are float64; memory does not grow with the number of tokens. Intervals resample examples (Bayesian
    bootstrap) through each row's own share of HSIC: to first order HSIC changes by twice the change of its mean
    row share, and what centring adds vanishes.
    """

    def __init__(
        self, teacher_layers: int, student_layers: int, resamples: int = 400, permutations: int = 20, seed: int = 0
    ):
        self.resamples, self.permutations = resamples, permutations
        shape = (teacher_layers, student_layers)
        # Sums over batches: cross (L_T, L_S), own (L_T,) and (L_S,); with a leading axis for resamples.
        self._sums = [torch.zeros(s, dtype=torch.float64) for s in (shape, shape[:1], shape[1:])]
        self._resampled = [torch.zeros(resamples, *s, dtype=torch.float64) for s in (shape, shape[:1], shape[1:])]
        self._weight = torch.zeros(resamples, dtype=torch.float64)
        self._permuted = torch.zeros(permutations, *shape, dtype=torch.float64)
        self._placed = torch.zeros(max(1, permutations // 4), *shape, dtype=torch.float64)
        self._draw = np.random.default_rng(seed)
        self._shuffle = np.random.default_rng(seed + 1)
        self._weights = np.empty((0, resamples))
        self._rows = self._batches = 0
        self._owners: set[int] = set()

    def add(
        self,
        xs: Sequence[torch.Tensor],
        ys: Sequence[torch.Tensor],
        owners: Sequence[int] | None = None,
        offsets: Sequence[int] | None = None,
    ) -> None:
        """One batch: a feature matrix (n, p) per teacher layer, one (n, q) per student layer, rows in one order.

        `owners` (n,) are the numbers of the examples that rows come from, `offsets` (n,) how much of the text each
        row has read. Raises InputError (n ≤ 3), RunError (NaN or infinity, with the layer).
        """
        n = len(xs[0])
        if n <= 3:
            raise InputError(f"similarity: {n} rows in a batch are too few; CKA needs at least 4 different examples.")
        owners = list(range(n)) if owners is None else list(owners)
        k, m = u_centred(xs), u_centred(ys)
        # Every row's share of n·HSIC: (n, L_T, L_S), (n, L_T), (n, L_S)
        cross = torch.bmm(k.transpose(0, 1), m.permute(1, 2, 0))
        own = [torch.linalg.vector_norm(g, dim=2).T.double().square() for g in (k, m)]
        shares = [s.cpu().double() / (n - 3) for s in (cross, *own)]
        for name, share in zip(("teacher", "student"), shares[1:], strict=True):
            bad = (~torch.isfinite(share).all(0)).nonzero()
            if len(bad):
                raise RunError(f"the output of layer {int(bad[0])} of the {name} is NaN or infinite.")
        for total, share in zip(self._sums, shares, strict=True):
            total += share.sum(0)
        if self.resamples:
            weights = torch.from_numpy(self._weights_of(owners))  # (resamples, n)
            self._weight += weights.sum(1)
            for total, share in zip(self._resampled, shares, strict=True):
                total += (weights @ share.flatten(1)).reshape(total.shape)
        if self.permutations:
            offsets = [0] * n if offsets is None else list(offsets)
            self._permute(k, m, np.asarray(offsets))
        self._rows += n
        self._batches += 1
        self._owners.update(owners)

    def _weights_of(self, owners: Sequence[int]) -> np.ndarray:
        if (lacking := max(owners) + 1 - len(self._weights)) > 0:
            drawn = self._draw.exponential(size=(max(lacking, 64), self.resamples))
            self._weights = np.concatenate([self._weights, drawn])
        return self._weights[np.asarray(owners)].T

    def _permute(self, k: torch.Tensor, m: torch.Tensor, offsets: np.ndarray) -> None:
        n, flat = len(offsets), k.flatten(1)
        free = [self._shuffle.permutation(n) for _ in self._permuted]
        placed = [self._neighbours(offsets) for _ in self._placed]
        sums = torch.stack([flat @ permuted(m, order).flatten(1).T for order in (*free, *placed)])
        sums = sums.cpu().double() / (n - 3)
        self._permuted += sums[: len(free)]
        self._placed += sums[len(free) :]

    def _neighbours(self, offsets: np.ndarray) -> np.ndarray:
        """A permutation that gives each row another one that has read as much, or next to as much."""
        line = np.lexsort((self._shuffle.random(len(offsets)), offsets))
        order = np.empty(len(offsets), dtype=np.int64)
        order[line] = np.roll(line, 1)
        return order

    def result(self) -> CKAResult:
        """CKA so far. Raises InputError where no batch was added."""
        if not self._batches:
            raise InputError("similarity: no batch of 4 rows could be filled; CKA needs at least 4 different examples.")
        value = _ratio(*self._sums)
        missing = np.full(value.shape, np.nan)
        lo = hi = null = null_lo = null_hi = null_position = missing
        if self.resamples:
            parts = []
            for total, resampled in zip(self._sums, self._resampled, strict=True):
                mean = total / self._rows
                weight = self._weight.reshape(-1, *[1] * total.ndim)
                parts.append(2 * resampled / weight - mean)
            lo, hi = _percentiles(_ratio(*parts))
        if self.permutations:
            scattered = _ratio(self._permuted, *self._sums[1:])
            null, spread = scattered.mean(0), 1.96 * scattered.std(0, ddof=1)
            null_lo, null_hi = null - spread, null + spread
            null_position = _ratio(self._placed, *self._sums[1:]).mean(0)
        counts = (self._rows, self._batches, len(self._owners))
        return CKAResult(value, lo, hi, null, null_lo, null_hi, null_position, *counts)


def _ratio(cross: torch.Tensor, teacher: torch.Tensor, student: torch.Tensor) -> np.ndarray:
    """cross / √(teacher · student); NaN where one of them is not positive."""
    product = teacher[..., :, None] * student[..., None, :]
    sound = (teacher[..., :, None] > 0) & (student[..., None, :] > 0)
    return torch.where(sound, cross / product.clamp_min(1e-300).sqrt(), torch.nan).numpy()


def _percentiles(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """2.5 and 97.5 % of resamples (k, L_T, L_S); missing where CKA is undefined in more than 5 % of them.

    With some dozen rows a resample of the unbiased HSIC(K, K) can fall below 0; an interval from the rest would
    then be too narrow.
    """
    defined = np.isfinite(values).mean(0) >= DEFINED
    low, high = np.nanpercentile(np.where(defined, values, 0.0), [2.5, 97.5], axis=0)
    return np.where(defined, low, np.nan), np.where(defined, high, np.nan)
