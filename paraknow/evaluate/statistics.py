"""Paired statistics: the same items for every model, so every difference is taken item by item.

Notation. n items; S seeds (repeats of one method); arrays are (items,) or (seeds, items). An item's difference
is d = correct under the method − correct under the reference, in {−1, 0, 1}. gained, lost: items with d > 0 and
with d < 0 (the discordant pairs); δ: mean difference, a share of items in [−1, 1]. level: coverage asked for;
α = 1 − level; z, t: quantiles of the normal and of Student's distribution. All arithmetic is float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, bdtrc, gammaln, ndtr, ndtri, stdtrit, xlogy

Floats = NDArray[np.float64]

CHUNK_BYTES = 32 * 2**20  # weights held at once by the bootstrap; working copies stay under twice this
FEW = 10  # under this many items that flipped, intervals are widened
REST = 5  # and under this many that did not flip the more common way
HALVINGS = 54  # of a bracket of width 2 at most: to the last bit of a difference
UNKNOWN_DISCORDANT = 0.5  # see `detectable`


@dataclass(frozen=True)
class Comparison:
    """A method against a reference on the same items.

    n: items. delta: mean difference, in [−1, 1]. lo, hi: its 95 % interval, by the named `interval`; `widened`: by
    Bonett–Price, since hardly any flipped or hardly any did not. p_mcnemar: two-sided, exact. gained, lost: items
    answered better and worse than by the reference.
    """

    n: int
    delta: float
    lo: float
    hi: float
    p_mcnemar: float
    gained: int
    lost: int
    interval: Literal["tango", "bootstrap"]
    widened: bool


def wilson(correct: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Score interval of one model's accuracy (Wilson, JASA 22, 1927; Newcombe, Stat. Med. 17, 1998, method 3).

    (p + z²/2n ± z·√(p(1−p)/n + z²/4n²)) / (1 + z²/n), p the share of correct items.

    Args: correct: (items,) boolean. level: in (0, 1).
    Returns: (lo, hi), each in [0, 1].
    Raises: ValueError for no items, more than one axis, or values other than true and false.
    """
    answers = _booleans(correct, "correct")
    if answers.ndim != 1:
        raise ValueError(f"wilson: correct must be (items,), got shape {answers.shape}.")
    n, z = answers.size, _z(level)
    p = answers.sum() / n
    centre = p + z * z / (2 * n)
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At p = 0 and p = 1 one end is exactly 0 or 1; rounding must not leave it a hair away.
    lo = 0.0 if p == 0 else float((centre - half) / (1 + z * z / n))
    hi = 1.0 if p == 1 else float((centre + half) / (1 + z * z / n))
    return lo, hi


def bonett_price(gained: ArrayLike, lost: ArrayLike, n: int, level: float = 0.95) -> tuple[Floats, Floats]:
    """Adjusted Wald interval of a paired difference of proportions (Bonett & Price, JEBS 37, 2012).

    One pseudo-item is added to either kind of flip: p₊ = (gained+1)/(n+2), p₋ = (lost+1)/(n+2);
    (p₊ − p₋) ± z·√((p₊ + p₋ − (p₊ − p₋)²)/(n+2)), cut to [−1, 1]. The sign is that of (gained − lost)/n.

    Args: gained, lost: items flipped either way, of any common shape (fractions of items are allowed, see
        `compare`). n: items of each comparison.
    Returns: (lo, hi) of that shape, in shares of items.
    Raises: ValueError for n < 1, negative counts, or more flips than items.
    """
    up, down, z = *_flips(gained, lost, n), _z(level)
    better, worse = (up + 1) / (n + 2), (down + 1) / (n + 2)
    centre = better - worse
    half = z * np.sqrt((better + worse - centre**2) / (n + 2))
    return np.maximum(-1.0, centre - half), np.minimum(1.0, centre + half)


def tango(gained: ArrayLike, lost: ArrayLike, n: int, level: float = 0.95) -> tuple[Floats, Floats]:
    """Score interval of a paired difference of proportions (Tango, Stat. Med. 17, 1998).

    All δ with |gained − lost − nδ| ≤ z·√(n(2q + δ(1 − δ))), where q is the share of losses of greatest likelihood
    given δ: the larger root of 2n·q² − (gained + lost − (2n − gained + lost)δ)·q − lost·δ(1 − δ) = 0.
    It contains 0 where McNemar's test without continuity correction does not reject: (gained − lost)² ≤ z²·flips.

    Args, Returns and Raises: as `bonett_price`.
    """
    up, down, z = *_flips(gained, lost, n), _z(level)
    return -_tango_end(down, up, n, z), _tango_end(up, down, n, z)


def _tango_end(gained: Floats, lost: Floats, n: int, z: float) -> Floats:
    """The upper end, by bisection between the estimate and 1; the lower one is that of the flips swapped."""
    inside = np.asarray((gained - lost) / n)
    outside = np.ones_like(inside)
    for _ in range(HALVINGS):
        delta = (inside + outside) / 2
        b, c = -gained - lost + (2 * n - gained + lost) * delta, lost * delta * (1 - delta)
        root = np.sqrt(np.maximum(b * b + 8 * n * c, 0.0))
        with np.errstate(divide="ignore", invalid="ignore"):  # either form of the root loses its digits on one side
            q = np.where(b > 0, 2 * c / (b + root), (root - b) / (4 * n))
        spread = np.sqrt(np.maximum(n * (2 * q + delta * (1 - delta)), 0.0))
        beyond = n * delta - (gained - lost) > z * spread
        inside, outside = np.where(beyond, inside, delta), np.where(beyond, delta, outside)
    return outside


def few(gained: ArrayLike, lost: ArrayLike, n: int) -> NDArray[np.bool_]:
    """True where hardly any item flipped (under 10), or hardly any did not flip the more common way (under 5)."""
    up, down = _flips(gained, lost, n)
    return (up + down < FEW) | (n - np.maximum(up, down) < REST)


def flip_interval(gained: ArrayLike, lost: ArrayLike, n: int, level: float = 0.95) -> tuple[Floats, Floats]:
    """The interval of a difference between two models, one seed each: `tango`'s, widened by `bonett_price`'s.

    Tango's interval alone covers too rarely (84 %) where all but a handful of items flip the same way, and its
    test says more than the exact one where a handful flip (4 gained, 0 lost). There (`few`) the wider end of the
    two is taken on either side. Coverage, summed exactly over all outcomes: `python -m benchmarks.statistics`.

    Args, Returns and Raises: as `bonett_price`.
    """
    lo, hi = tango(gained, lost, n, level)
    low, high = bonett_price(gained, lost, n, level)
    widened = few(gained, lost, n)
    return np.where(widened, np.minimum(lo, low), lo), np.where(widened, np.maximum(hi, high), hi)


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided McNemar test (McNemar, Psychometrika 12, 1947; exact form: Binomial(gained + lost, ½)).

    Args: gained, lost: items flipped either way.
    Returns: p in (0, 1]; 1.0 where nothing flipped.
    Raises: ValueError for negative counts.
    """
    _flips(gained, lost)
    if gained + lost == 0:
        return 1.0
    return min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5)))


def paired_bootstrap(
    differences: ArrayLike,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
    bounds: tuple[float, float] | None = None,
) -> tuple[float, float]:
    """Interval of the mean of paired differences, by resampling items and, where there are several, seeds.

    Items are reweighted rather than drawn with replacement: Dirichlet(1, …, 1) weights, the Bayesian bootstrap
    (Rubin, Ann. Statist. 9, 1981). Mean and variance are those of drawing with replacement, but the resampled
    mean is continuous, so its tails do not fall on the coarse lattice k/n. The ends are percentiles.

    - `bounds` given (the least and the greatest value an item can take): one pseudo-item at each bound joins
      the items, as in Bonett & Price (2012), and plain percentiles are read. Without the pseudo-items one-sided
      flips are covered too rarely, also with BCa or expanded percentiles.
    - else the percentiles are expanded: a weighted mean varies by s²(n−1)/(n(n+1)) instead of s²/n and its
      tails are normal, so α/2 becomes Φ(√((n+1)/(n−1))·t(α/2; n−1)) (after Hesterberg, Am. Stat. 69, 2015).

    Several seeds: each resample also draws S seeds with replacement, with the same item weights for all of
    them, since seeds share items (pigeonhole bootstrap: Owen, Ann. Appl. Stat. 1, 2007). What the drawn seeds
    add is stretched by √(S/(S−1)), which makes their variance unbiased. Simulated: where the seed has no effect
    the interval is wide (97 to 100 % at S = 2 to 5); where seeds differ by a standard deviation of 10 points it
    covers 92 to 97 % at S = 3 to 5 and 90 to 97 % at S = 2, since two seeds cannot show how far seeds differ.

    Args: differences: (items,) or (seeds, items), in any unit. seed: of the random generator. resamples: draws.
    Returns: (lo, hi), in the unit of the differences. The order of items does not matter. One item without
        bounds says nothing about the spread: (−inf, inf).
    Raises: ValueError for no items, values that are not finite or outside the bounds, or resamples < 1.
    """
    values = _finite_rows(differences, "differences")
    if bounds is not None:
        low, high = bounds
        if not low < high or values.min() < low or values.max() > high:
            raise ValueError(f"paired_bootstrap: differences must lie within bounds {bounds}.")
        values = np.concatenate([values, np.broadcast_to(np.array(bounds, float), (len(values), 2))], axis=1)
    elif values.shape[1] == 1:
        return -np.inf, np.inf
    rng = np.random.default_rng(seed)
    draws = average_seeds(weighted_means(values, rng, resamples), rng)
    return percentiles(draws, level, items=None if bounds is not None else values.shape[1])


def compare(method: ArrayLike, reference: ArrayLike, seed: int = 0, resamples: int = 2000) -> Comparison:
    """A method's accuracy against a reference's on the same items, in the same order.

    One seed each: gained and lost are the items flipped from wrong to right and from right to wrong,
    δ = (gained − lost)/n, McNemar's test is the exact one.

    Several seeds: an item counts as gained (lost) where the share of seeds that answer it is above (below) the
    reference's; McNemar's test is then the sign test on these items, and says nothing about the spread over
    seeds. δ is the mean over seeds and items. Where both have seeds they are paired in order.

    The interval: one seed each, `flip_interval`. Several seeds, `paired_bootstrap` with bounds (−1, 1), widened
    where `few` items flipped or did not: both are counts of a rare event, which resampling cannot widen.
    Bonett–Price then gets the mean size of the gains and of the losses in items, so that it is centred on δ.

    Args: method, reference: boolean, (items,) or (seeds, items); a single seed is compared with all of the other.
    Raises: ValueError for no items, shapes that do not fit, or values other than true and false.
    """
    ours, theirs = (np.atleast_2d(_booleans(a, name)) for a, name in ((method, "method"), (reference, "reference")))
    if ours.shape[1] != theirs.shape[1]:
        raise ValueError(f"compare: method has {ours.shape[1]} items, reference {theirs.shape[1]}; they must agree.")
    if len(ours) != len(theirs) and 1 not in (len(ours), len(theirs)):
        raise ValueError(f"compare: method has {len(ours)} seeds, reference {len(theirs)}; they must agree or be one.")
    differences = ours.astype(np.int64) - theirs.astype(np.int64)  # (seeds, items)
    seeds, n = differences.shape
    change = differences.sum(axis=0)  # integers: no rounding decides what flipped
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    up, down = change[change > 0].sum() / seeds, -change[change < 0].sum() / seeds
    widened = bool(few(gained, lost, n))
    interval: Literal["tango", "bootstrap"] = "tango" if seeds == 1 else "bootstrap"
    if seeds == 1:
        lo, hi = (float(end) for end in flip_interval(gained, lost, n))
    else:
        lo, hi = paired_bootstrap(differences, seed, resamples, bounds=(-1.0, 1.0))
        if widened:
            low, high = bonett_price(up, down, n)
            lo, hi = min(lo, float(low)), max(hi, float(high))
    delta = int(change.sum()) / (seeds * n)
    return Comparison(n, delta, lo, hi, mcnemar(gained, lost), gained, lost, interval, widened)


@lru_cache(maxsize=1024)
def detectable(n: int, discordant: float | None = None, level: float = 0.95, power: float = 0.8) -> float | None:
    """The smallest true difference that a comparison of n items, one seed each, shows with probability `power`.

    Shown: `flip_interval` lies wholly on the difference's side of 0. With a share D of discordant pairs and a
    difference δ, items gain with probability (D + δ)/2 and lose with (D − δ)/2; flips are Binomial(n, D), gains
    among k flips Binomial(k, (1 + δ/D)/2), so the power is an exact sum. A difference needs as many flips: D is at
    least δ. The smallest δ is found by bisection, to 1e-6.

    Args: n: items. discordant: share of items that flip either way, as observed. None: ½, what two models show
        that are right half the time each, independently; models that agree more often than that show smaller
        differences. Only models that contradict each other on most items would show less.
    Returns: a share of items in (0, 1]; None where not even a difference of 1 would be shown (too few items).
    Raises: ValueError for n < 1, or shares and probabilities outside [0, 1] and (0, 1).
    """
    if n < 1:
        raise ValueError(f"detectable: needs at least one item, got n = {n}.")
    share = UNKNOWN_DISCORDANT if discordant is None else discordant
    if not (0 <= share <= 1 and 0 < power < 1):
        raise ValueError(f"detectable: discordant must lie in [0, 1] and power in (0, 1), got {share} and {power}.")
    z = _z(level)
    flips = np.arange(n + 1)
    # The lead (gained − lost) that must be exceeded: Tango's, and Bonett–Price's where that widens the interval.
    lead = z * np.sqrt(flips)
    wider = np.maximum(lead, z * np.sqrt((flips + 2) / (1 + z * z / (n + 2))))
    most = (flips + lead) / 2
    lead = np.where((flips < FEW) | (n - most < REST), wider, lead)
    needed = np.floor((flips + lead) / 2)  # more gains than this

    def shown(delta: float) -> float:
        rate = max(share, delta)
        reach = 9 * np.sqrt(n * rate * (1 - rate)) + 9  # beyond it, flips have no probability to speak of
        k = flips[max(0, int(n * rate - reach)) : int(n * rate + reach) + 2]
        log_p = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1) + xlogy(k, rate) + xlogy(n - k, 1 - rate)
        above = np.minimum(needed[k], k)
        return float(np.exp(log_p) @ np.where(needed[k] >= k, 0.0, bdtrc(above, k, min(1.0, (1 + delta / rate) / 2))))

    if shown(1.0) < power:
        return None
    low, high = 0.0, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if shown(middle) >= power else (middle, high)
    return high


def detectable_from(lo: float, hi: float, level: float = 0.95, power: float = 0.8) -> float | None:
    """The same from a symmetric interval, whatever made it: (hi − lo)/2 · (1 + z(power)/z(level)).

    z(power): the one-sided normal quantile; z(level): the two-sided one. Returns None where that is beyond 1.
    """
    found = (hi - lo) / 2 * (1 + float(ndtri(power)) / _z(level))
    return found if found <= 1 else None


def holm(p_values: ArrayLike) -> Floats:
    """Holm's step-down correction over many comparisons (Holm, Scand. J. Stat. 6, 1979).

    Sorted ascending, p₍ᵢ₎ becomes max over j ≤ i of min(1, (m − j + 1)·p₍ⱼ₎), m the tests that are not NaN.

    Args: p_values: (tests,), NaN where a comparison is missing.
    Returns: (tests,) adjusted p values in the given order; NaN stays NaN and is not counted.
    Raises: ValueError for more than one axis or values outside [0, 1].
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1:
        raise ValueError(f"holm: p_values must be (tests,), got shape {p.shape}.")
    present = np.flatnonzero(~np.isnan(p))
    if np.any((p[present] < 0) | (p[present] > 1)):
        raise ValueError("holm: p values must lie in [0, 1].")
    ascending = present[np.argsort(p[present], kind="stable")]
    factors = np.arange(len(ascending), 0, -1)
    adjusted = np.full(p.shape, np.nan)
    adjusted[ascending] = np.minimum(1.0, np.maximum.accumulate(factors * p[ascending]))
    return adjusted


def weighted_means(values: Floats, rng: np.random.Generator, resamples: int) -> Floats:
    """Means of each row under random item weights, the same for all rows (Bayesian bootstrap, Rubin 1981).

    Args: values: (rows, items). Returns: (resamples, rows). Raises: ValueError for resamples < 1.
    """
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}.")
    # Equal items are drawn as one: the sum of m exponential weights is Gamma(m). Accuracy differences have a
    # handful of patterns over seeds, so this is what makes thousands of comparisons cheap; and sorted patterns
    # make the result independent of the order of items.
    patterns, counts = np.unique(values, axis=1, return_counts=True)
    rows = max(1, CHUNK_BYTES // (8 * len(counts)))
    means = np.empty((resamples, len(values)))
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        weights = rng.standard_gamma(counts.astype(np.float64), size=(stop - start, len(counts)))
        means[start:stop] = (weights @ patterns.T) / weights.sum(axis=1, keepdims=True)
    return means


def average_seeds(means: Floats, rng: np.random.Generator) -> Floats:
    """One number per resample from its seeds' means, drawing seeds with replacement (see `paired_bootstrap`).

    Args: means: (resamples, seeds). Returns: (resamples,).
    """
    resamples, seeds = means.shape
    if seeds == 1:
        return means[:, 0]
    drawn = rng.integers(0, seeds, size=(resamples, seeds))
    centre = means.mean(axis=1)
    return centre + np.sqrt(seeds / (seeds - 1)) * (np.take_along_axis(means, drawn, axis=1).mean(axis=1) - centre)


def percentiles(draws: Floats, level: float = 0.95, items: int | None = None) -> tuple[float, float]:
    """Central interval of resampled values; expanded for `items` items where given (see `paired_bootstrap`).

    Raises: ValueError for a level outside (0, 1).
    """
    tail = float(ndtr(-_z(level)))
    if items is not None:
        tail = float(ndtr(np.sqrt((items + 1) / (items - 1)) * stdtrit(items - 1, tail)))
    lo, hi = np.quantile(draws, [tail, 1 - tail])
    return float(lo), float(hi)


def _z(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}.")
    return float(ndtri((1 + level) / 2))


def _flips(gained: ArrayLike, lost: ArrayLike, n: int | None = None) -> tuple[Floats, Floats]:
    up, down = np.asarray(gained, dtype=np.float64), np.asarray(lost, dtype=np.float64)
    if not (np.all(up >= 0) and np.all(down >= 0)):
        raise ValueError(f"gained and lost are counts of items, got {up} and {down}.")
    if n is not None and n < 1:
        raise ValueError(f"an interval needs at least one item, got n = {n}.")
    if n is not None and np.any(up + down > n * (1 + 1e-12)):
        raise ValueError(f"{up} gained and {down} lost are more than the {n} items.")
    return up, down


def _booleans(values: ArrayLike, name: str) -> NDArray[np.bool_]:
    array = np.asarray(values)
    if array.ndim not in (1, 2):
        raise ValueError(f"{name} must be (items,) or (seeds, items), got shape {array.shape}.")
    if array.size == 0:
        raise ValueError(f"{name} holds no items.")
    if array.dtype != bool and not np.all((array == 0) | (array == 1)):
        raise ValueError(f"{name} must hold only true and false.")
    return array.astype(bool)


def _finite_rows(values: ArrayLike, name: str) -> Floats:
    array = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"{name} must be (items,) or (seeds, items) with at least one item, got shape {array.shape}.")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds values that are not finite.")
    return array
