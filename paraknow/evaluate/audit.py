"""The knowledge audit: how many bits a model knows about facts with ground truth, and what share arrived.

Notation. n items; item i has C candidates, x_j the summed log-probability (nats) a model gives candidate j, a its
answer. p_β(j) ∝ exp(β·x_j) over the item's candidates. Bits: log2 C + log2 p_β(a); 0 is a guess among C, log2 C
is certainty of the right answer. β is fitted per model, suite and group, because raw log-probabilities reward a
model for merely being unsure: one that knows nothing but is confident would score far below zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paraknow.evaluate.statistics import Floats, average_seeds, paired_bootstrap, percentiles, weighted_means

LARGEST_BETA = 2.0**30  # in units of one over the typical gap between candidates: any ranking is decided long before
HALVINGS = 60  # of the bracket around β: to the last bit of float64
ROUNDING = 1e-9  # bits; smaller differences between models are rounding, not knowledge


@dataclass(frozen=True)
class Share:
    """Share of the teacher's surplus knowledge that arrived: 0 none, 1 all; can lie outside.

    value, lo, hi: the share and its 95 % interval, None where it is missing. missing: why, else None.
    """

    value: float | None
    lo: float | None
    hi: float | None
    missing: str | None = None


def bits(
    log_probabilities: Sequence[ArrayLike] | NDArray[np.floating],
    answer: ArrayLike,
    folds: int = 5,
    seed: int = 0,
) -> Floats:
    """Bits of knowledge per item: log2 C + log2 p_β(answer), β ≥ 0 cross-fitted.

    β maximises the likelihood of the answers on the other folds; the log-likelihood is concave in β, so the fit
    is exact (bisection on its slope), and β = 0 where the best slope at 0 is not positive. Upper bound: β grows
    no further once the mean loss on the m fitting items is down to 1/(m+1) nats. It binds only where they are
    answered (nearly) without fault: the likelihood then grows for ever, and one wrong item held out would cost
    any number of bits; the bound lets it cost about log2 m, as the rule of succession would.

    Adding a constant to an item's log-probabilities, or multiplying all of them by c > 0, changes nothing.

    Args:
        log_probabilities: per item its C candidates' summed log-probabilities in nats, end token included: a list
            of (C,) arrays, where C may differ between items, or one (items, C) array. −inf: a candidate the model
            holds impossible; it has probability 0 and still counts in C.
        answer: (items,) index of the right candidate.
        folds: parts for cross-fitting. Under 2·folds items each item is its own fold (leave one out); a single
            item leaves nothing to fit on, so β = 0.
        seed: of the random assignment to folds; the same seed and n give every model the same folds.
    Returns: (items,) bits.
    Raises: ValueError for no items, fewer than two folds, a length or an answer that does not fit, and for NaN,
        +inf or an infinite answer, naming the item.
    """
    if folds < 2:
        raise ValueError(f"bits: folds must be at least 2, got {folds}.")
    scores, candidates = _padded(log_probabilities)
    chosen = _answers(answer, scores, candidates)
    n = len(scores)
    possible = np.isfinite(scores)
    # Only gaps within an item matter; with the largest at 0 no exponential can overflow.
    gaps = np.where(possible, scores - scores.max(axis=1, keepdims=True), 0.0)  # (items, C), ≤ 0
    fold = _folds(n, folds, seed)
    beta = np.zeros(n)
    for held_out in range(int(fold.max()) + 1):
        fitting = fold != held_out
        if fitting.any():
            beta[~fitting] = _fit(gaps[fitting], possible[fitting], chosen[fitting])
    log_p, _ = _log_likelihood(gaps, possible, chosen, beta)
    return np.log2(candidates) + log_p / np.log(2)


def share(
    method_bits: ArrayLike, student_bits: ArrayLike, teacher_bits: ArrayLike, seed: int = 0, resamples: int = 2000
) -> Share:
    """Share that arrived: (mean method − mean student)/(mean teacher − mean student), in bits on the same items.

    The interval resamples items (and seeds) as `paired_bootstrap` does, with the same weights above and below the
    fraction bar. Where the gain is not 0 item by item, both ends then move outwards by 1/(4n) nats over the mean
    surplus: β, fitted on these n items, shifts all bits of a model together by about 1/(2n) nats, or not at all where
    it is held at 0, and resampling finished bits cannot show that. It is a thousandth of the surplus at n = 75;
    without it the interval leaves out 0 in 10 % of the worlds in which a model knows nothing.

    Missing where the denominator's own 95 % interval contains 0 (there is nothing, or not certainly anything, to
    transfer) or lies below it (the student knows more than the teacher).

    Args: method_bits: (items,) or (seeds, items). student_bits, teacher_bits: (items,).
    Raises: ValueError for no items, items that do not agree, or bits that are not finite.
    """
    method = np.atleast_2d(np.asarray(method_bits, dtype=np.float64))
    student, teacher = (np.asarray(b, dtype=np.float64) for b in (student_bits, teacher_bits))
    if student.ndim != 1 or student.shape != teacher.shape or method.ndim != 2 or method.shape[1:] != student.shape:
        raise ValueError(
            "share: method_bits must be (items,) or (seeds, items), student_bits and teacher_bits (items,) with the "
            f"same items; got {np.shape(method_bits)}, {student.shape} and {teacher.shape}."
        )
    if student.size == 0:
        raise ValueError("share: there are no items.")
    gain, surplus = method - student, teacher - student  # (seeds, items), (items,)
    if not (np.isfinite(gain).all() and np.isfinite(surplus).all()):
        raise ValueError("share: bits must be finite.")
    gain = np.where(np.abs(gain) < ROUNDING, 0.0, gain)
    surplus = np.where(np.abs(surplus) < ROUNDING, 0.0, surplus)

    lo, hi = paired_bootstrap(surplus, seed, resamples)
    if lo <= 0 <= hi:
        return Share(None, None, None, f"the teacher's surplus over the student ({lo:.2g} to {hi:.2g} bits) may be 0")
    if hi < 0:
        return Share(None, None, None, f"the student knows more than the teacher (by {-hi:.2g} to {-lo:.2g} bits)")
    rng = np.random.default_rng(seed)
    means = weighted_means(np.concatenate([gain, surplus[None]]), rng, resamples)  # (resamples, seeds + 1)
    # In a rare resample the surplus may vanish: the ratio is then huge with the sign of the gain, never flipped.
    below = np.maximum(means[:, -1], ROUNDING)
    low, high = percentiles(average_seeds(means[:, :-1], rng) / below, items=len(student))
    fitted = 1 / (4 * len(student) * np.log(2)) / surplus.mean() if gain.any() else 0.0
    return Share(float(gain.mean() / surplus.mean()), float(low - fitted), float(high + fitted))


def _padded(log_probabilities: Sequence[ArrayLike] | NDArray[np.floating]) -> tuple[Floats, NDArray[np.int64]]:
    """(items, widest C) scores, −inf beyond an item's own C; (items,) C. Raises ValueError naming the item."""
    if isinstance(log_probabilities, np.ndarray) and log_probabilities.dtype != object:
        if log_probabilities.ndim != 2:
            raise ValueError(f"bits: log_probabilities must be (items, C), got shape {log_probabilities.shape}.")
        scores = log_probabilities.astype(np.float64)
        candidates = np.full(len(scores), scores.shape[1], dtype=np.int64)
    else:
        rows = [np.asarray(row, dtype=np.float64) for row in log_probabilities]
        if bad := [i for i, row in enumerate(rows) if row.ndim != 1]:
            raise ValueError(f"bits: item {bad[0]}'s log-probabilities must be (C,), got shape {rows[bad[0]].shape}.")
        candidates = np.array([len(row) for row in rows], dtype=np.int64)
        scores = np.full((len(rows), int(candidates.max(initial=0))), -np.inf)
        if scores.size:
            scores[np.arange(scores.shape[1]) < candidates[:, None]] = np.concatenate(rows)
    if len(scores) == 0:
        raise ValueError("bits: there are no items.")
    broken = np.flatnonzero((np.isnan(scores) | (scores == np.inf)).any(axis=1))
    if broken.size:
        raise ValueError(f"bits: item {broken[0]} has a log-probability that is NaN or +inf.")
    return scores, candidates


def _answers(answer: ArrayLike, scores: Floats, candidates: NDArray[np.int64]) -> NDArray[np.int64]:
    chosen = np.asarray(answer)
    if chosen.shape != candidates.shape or not np.issubdtype(chosen.dtype, np.integer):
        raise ValueError(f"bits: answer must be {len(candidates)} integers, got {chosen.dtype} of {chosen.shape}.")
    outside = np.flatnonzero((chosen < 0) | (chosen >= candidates))
    if outside.size:
        i = outside[0]
        raise ValueError(f"bits: item {i}'s answer is {chosen[i]}, but it has {candidates[i]} candidates.")
    impossible = np.flatnonzero(~np.isfinite(scores[np.arange(len(scores)), chosen]))
    if impossible.size:
        raise ValueError(f"bits: item {impossible[0]}'s answer has an infinite log-probability.")
    return chosen.astype(np.int64)


def _folds(n: int, folds: int, seed: int) -> NDArray[np.int64]:
    """(items,) the fold of each item; sizes differ by one at most."""
    if n < 2 * folds:
        return np.arange(n)
    return np.random.default_rng(seed).permutation(np.arange(n) % folds)


def _log_likelihood(
    gaps: Floats, possible: NDArray[np.bool_], answer: NDArray[np.int64], beta: float | Floats
) -> tuple[Floats, Floats]:
    """(items,) ln p_β(answer), and its slope in β: the answer's gap minus the expected gap."""
    scaled = np.reshape(beta, (-1, 1)) * gaps
    weights = np.where(possible, np.exp(scaled), 0.0)  # at least one is 1
    total = weights.sum(axis=1)
    item = np.arange(len(gaps))
    return scaled[item, answer] - np.log(total), gaps[item, answer] - (weights * gaps).sum(axis=1) / total


def _fit(gaps: Floats, possible: NDArray[np.bool_], answer: NDArray[np.int64]) -> float:
    """β ≥ 0 of greatest likelihood, or where the mean loss first falls to 1/(m+1), whichever is smaller."""
    # In units of the typical gap, so that β absorbs the scale of the scores, whatever it is.
    scale = -gaps.sum() / max(1, int(possible.sum()))
    if scale == 0:
        return 0.0
    unit = gaps / scale

    def far_enough(beta: float) -> bool:
        # One change only, from false to true: the likelihood rises until its slope is 0, the slope only falls.
        log_p, slope = _log_likelihood(unit, possible, answer, beta)
        return bool(slope.sum() <= 0 or log_p.mean() >= -1 / (len(unit) + 1))

    if far_enough(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while not far_enough(high):
        low, high = high, 2 * high
        if high >= LARGEST_BETA:  # a tie with the answer in every item: more changes nothing
            return high / scale
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if far_enough(middle) else (middle, high)
    return high / scale
