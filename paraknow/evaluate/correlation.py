"""Rank correlation over pairs of models, of which several runs may exist (no torch).

Runs of one pair of models are not independent: a pair counts once, however many runs were made of it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import rankdata

Floats = NDArray[np.float64]

FEWEST = 4  # pairs: below that, no interval of a rank correlation is defined


@dataclass(frozen=True)
class Correlation:
    """Spearman's ρ over `pairs` (means of `points`) with its 95 % interval; `missing` says why there is none."""

    rho: float | None
    lo: float | None
    hi: float | None
    pairs: int
    points: int
    missing: str | None = None

    @property
    def words(self) -> str:
        """The correlation in a sentence."""
        n = f"{self.pairs} pair{'s' * (self.pairs != 1)} of models"
        if self.rho is None or self.lo is None or self.hi is None:
            return f"{n}: {self.missing}."
        rho, lo, hi = (f"{round(v, 2) + 0.0:+.2f}".replace("-", "−") for v in (self.rho, self.lo, self.hi))
        if self.lo > 0:
            said = "the more alike a pair, the more arrived"
        elif self.hi < 0:
            said = "the more alike a pair, the less arrived"
        else:
            said = "whether the two go together cannot be told"
        return f"{n}: rank correlation {rho} ({lo} to {hi}): {said}."


def over_pairs(
    x: Sequence[float], y: Sequence[float], pairs: Sequence[Hashable], seed: int = 0, resamples: int = 2000
) -> Correlation:
    """Spearman's rank correlation of x and y over pairs of models, with a 95 % interval.

    Both are averaged within each pair first; ρ is that of the n means. The interval is the wider one, on either side,
    of two: percentiles of a bootstrap over pairs, and tanh(atanh ρ ± z·√((1 + ρ²/2)/(n − 3))) (Bonett & Wright,
    Psychometrika 65, 2000). The bootstrap alone covers too rarely where pairs are few or most values are tied (74 % at
    four pairs), the formula alone where the relation is strong and most shares are near 0. A ρ of ±1 says no more
    than that no two of n ranks were exchanged: the formula is fed 1 − 12/(n(n² − 1)), one exchange, in its place.
    Simulated (4 to 45 pairs, normal values, ties, most shares near 0): it covers 94 % and more, at four pairs nearly
    always.

    Args: x, y: (points,), in any unit; a point that lacks one of them is left out. pairs: (points,) which pair each
        point belongs to. seed: of the bootstrap.
    Returns: ρ with its interval; None with a reason for fewer than four pairs, or where x or y does not vary.
    Raises: ValueError for lengths that differ.
    """
    if not len(x) == len(y) == len(pairs):
        raise ValueError(f"over_pairs: got {len(x)} x, {len(y)} y and {len(pairs)} pairs; they must agree.")
    frame = pd.DataFrame({"x": np.asarray(x, float), "y": np.asarray(y, float), "pair": list(pairs)})
    frame = frame.replace([np.inf, -np.inf], np.nan).dropna(subset=["x", "y"])
    means = frame.groupby("pair", sort=True)[["x", "y"]].mean().to_numpy()
    n, points = len(means), len(frame)
    if n < FEWEST:
        return Correlation(None, None, None, n, points, f"too few to tell; {FEWEST} are needed")
    rho = float(spearman(means[:, 0][None], means[:, 1][None])[0])
    if not np.isfinite(rho):
        return Correlation(None, None, None, n, points, "one of the two does not vary, so nothing can be told")
    low, high = bonett_wright(rho, n)
    drawn = np.random.default_rng(seed).integers(0, n, (resamples, n))
    draws = spearman(means[:, 0][drawn], means[:, 1][drawn])
    draws = draws[np.isfinite(draws)]  # a draw of one pair alone has no correlation
    if len(draws):
        ends = np.quantile(draws, [0.025, 0.975])
        low, high = min(low, float(ends[0])), max(high, float(ends[1]))
    return Correlation(rho, low, high, n, points)


def spearman(x: Floats, y: Floats) -> Floats:
    """Spearman's ρ of every row: Pearson's of the ranks, ties sharing theirs. (rows, n) each; NaN where one is flat."""
    a, b = rankdata(x, axis=1), rankdata(y, axis=1)
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        found: Floats = (a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    return np.clip(found, -1.0, 1.0)


def bonett_wright(rho: float, n: int) -> tuple[float, float]:
    """The formula's 95 % interval, which always holds ρ itself. Raises ValueError for fewer than four pairs."""
    if n < FEWEST:
        raise ValueError(f"bonett_wright: needs at least {FEWEST} pairs, got {n}.")
    most = 1 - 12 / (n * (n * n - 1))
    inner = min(max(rho, -most), most)
    half = float(ndtri(0.975)) * np.sqrt((1 + inner * inner / 2) / (n - 3))
    centre = np.arctanh(inner)
    return min(rho, float(np.tanh(centre - half))), max(rho, float(np.tanh(centre + half)))
