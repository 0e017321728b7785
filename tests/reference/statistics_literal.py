"""Slow, literal versions of the paired statistics and of bits: loops over items, float64, formulas as written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist


def normal_quantile(level: float) -> float:
    return NormalDist().inv_cdf(1 - (1 - level) / 2)


def wilson(correct: Sequence[bool], level: float = 0.95) -> tuple[float, float]:
    """Roots of (p̂ − p)² = z²·p(1−p)/n in p: (1 + z²/n)·p² − (2p̂ + z²/n)·p + p̂² = 0."""
    n, right = 0, 0
    for c in correct:
        n += 1
        right += 1 if c else 0
    z, p = normal_quantile(level), right / n
    a, b, c0 = 1 + z * z / n, -(2 * p + z * z / n), p * p
    root = math.sqrt(max(0.0, b * b - 4 * a * c0))
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


def bonett_price(gained: int, lost: int, n: int, level: float = 0.95) -> tuple[float, float]:
    p12, p21 = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = normal_quantile(level) * math.sqrt((p12 + p21 - (p12 - p21) ** 2) / (n + 2))
    return max(-1.0, p12 - p21 - half), min(1.0, p12 - p21 + half)


def most_likely_loss(gained: int, lost: int, n: int, delta: float) -> float:
    """The share of losses q of greatest multinomial likelihood, gains q + δ: ternary search, it has one peak."""

    def likelihood(q: float) -> float:
        total = 0.0
        for count, p in ((gained, q + delta), (lost, q), (n - gained - lost, 1 - 2 * q - delta)):
            if count:
                total += count * math.log(p) if p > 0 else -math.inf
        return total

    low, high = max(0.0, -delta), (1 - delta) / 2
    for _ in range(200):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        low, high = (a, high) if likelihood(a) < likelihood(b) else (low, b)
    return (low + high) / 2


def tango(gained: int, lost: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Where the score test of "the difference is δ" just does not reject: bisection from the estimate to ±1."""
    z, estimate = normal_quantile(level), (gained - lost) / n

    def rejects(delta: float) -> bool:
        q = most_likely_loss(gained, lost, n, delta)
        variance = (2 * q + delta - delta * delta) / n
        return (estimate - delta) ** 2 > z * z * variance

    ends = []
    for outside in (-1.0, 1.0):
        inside = estimate
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if rejects(middle) else (middle, outside)
        ends.append(outside)
    return ends[0], ends[1]


def flip_interval(gained: int, lost: int, n: int, level: float = 0.95) -> tuple[float, float]:
    lo, hi = tango(gained, lost, n, level)
    if gained + lost < 10 or n - max(gained, lost) < 5:
        low, high = bonett_price(gained, lost, n, level)
        return min(lo, low), max(hi, high)
    return lo, hi


def power(n: int, discordant: float, delta: float) -> float:
    """Probability that the interval lies above 0, one outcome after the other."""
    share, total = max(discordant, delta), 0.0
    gain, loss = (share + delta) / 2, (share - delta) / 2
    for gained in range(n + 1):
        for lost in range(n + 1 - gained):
            if gained > lost and flip_interval(gained, lost, n)[0] > 0:
                ways = math.comb(n, gained) * math.comb(n - gained, lost)
                total += ways * gain**gained * loss**lost * (1 - gain - loss) ** (n - gained - lost)
    return total


def mcnemar(gained: int, lost: int) -> float:
    """Probability, under fair coins, of every split no more likely than the one seen (the two tails)."""
    flips = gained + lost
    total = 0
    for heads in range(flips + 1):
        if abs(2 * heads - flips) >= abs(gained - lost):
            total += math.comb(flips, heads)
    return total / 2**flips


def holm(p_values: Sequence[float]) -> list[float]:
    present = [i for i, p in enumerate(p_values) if not math.isnan(p)]
    adjusted = [math.nan] * len(p_values)
    for i in present:
        largest = 0.0
        for j in present:
            if p_values[j] <= p_values[i]:
                at_least = sum(1 for k in present if p_values[k] >= p_values[j])
                largest = max(largest, at_least * p_values[j])
        adjusted[i] = min(1.0, largest)
    return adjusted


def log_p(scores: Sequence[float], answer: int, beta: float) -> float:
    """ln p_β(answer) over one item's candidates; −inf candidates have probability 0 at every β."""
    top = max(scores)
    total = 0.0
    for x in scores:
        if x != -math.inf:
            total += math.exp(beta * (x - top))
    return beta * (scores[answer] - top) - math.log(total)


def bits_at(scores: Sequence[Sequence[float]], answer: Sequence[int], beta: float) -> list[float]:
    return [math.log2(len(x)) + log_p(x, a, beta) / math.log(2) for x, a in zip(scores, answer, strict=True)]


def mean_loss(scores: Sequence[Sequence[float]], answer: Sequence[int], beta: float) -> float:
    """Nats per item."""
    total = 0.0
    for x, a in zip(scores, answer, strict=True):
        total -= log_p(x, a, beta)
    return total / len(scores)


def best_beta(scores: Sequence[Sequence[float]], answer: Sequence[int], largest: float, steps: int = 400) -> float:
    """Grid search, refined four times, for the β in [0, largest] of least loss.

    A β whose loss is under 1/(m+1) on the m items is beyond the bound: the first that reaches it is taken.
    """
    floor = 1 / (len(scores) + 1)
    low, high, best = 0.0, largest, 0.0
    for _ in range(4):
        grid = [low + (high - low) * k / steps for k in range(steps + 1)]
        losses = [mean_loss(scores, answer, beta) for beta in grid]
        at = next((k for k, loss in enumerate(losses) if loss <= floor), losses.index(min(losses)))
        best = grid[at]
        low, high = grid[max(0, at - 1)], grid[min(steps, at + 1)]
    return best


def bits(scores: Sequence[Sequence[float]], answer: Sequence[int], fold: Sequence[int], largest: float) -> list[float]:
    """Cross-fitted bits for a given fold of each item."""
    result = [0.0] * len(scores)
    for held_out in sorted(set(fold)):
        fitting = [i for i in range(len(scores)) if fold[i] != held_out]
        beta = best_beta([scores[i] for i in fitting], [answer[i] for i in fitting], largest)
        for i in range(len(scores)):
            if fold[i] == held_out:
                result[i] = bits_at([scores[i]], [answer[i]], beta)[0]
    return result
