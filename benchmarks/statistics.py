"""`python -m benchmarks.statistics [--quick] [--json]`: can the intervals be believed? Coverage, false positives.

One seed: exact sums over all outcomes (gained, lost, neither) of n items on a grid of expected flips and of the share
of them that are losses (0: one-sided, ½: no difference), then 10,000 simulated comparisons a setting. Several seeds
and the share of bits: simulated worlds. Exit code 1 where a number is outside its limit.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.special import bdtr, gammaln, xlogy

from benchmarks import worlds
from paraknow.evaluate import statistics
from paraknow.screen import emit, table

LOST_SHARES = (0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
RARE = (0.05, 0.1, 0.2, 0.5, 1, 2, 5)
LEAST, MOST, WRONG = 0.93, 0.97, 0.055  # coverage, coverage where flips are many, false positives
FLIPS, STAYED = 10, 12  # "many": so many expected to flip, and so many expected not to flip the more common way


class Outcomes:
    """The interval and the exact test of every outcome of n items: (n + 1, n + 1) tables, gained × lost."""

    def __init__(self, n: int):
        self.n = n
        gained, lost = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
        valid = gained + lost <= n
        self.lo, self.hi, p = (np.full(gained.shape, np.nan) for _ in range(3))
        up, down = gained[valid], lost[valid]
        self.lo[valid], self.hi[valid] = statistics.flip_interval(up, down, n)
        p[valid] = np.minimum(1.0, 2 * bdtr(np.minimum(up, down).astype(float), up + down, 0.5))
        self.excludes = (self.lo > 0) | (self.hi < 0)
        self.rejects = p <= 0.05

    def chances(self, p_gain: float, p_loss: float) -> tuple[tuple[slice, slice], np.ndarray]:
        """The part of the tables that has any probability to speak of, and its probabilities."""
        n, cut = self.n, []
        for p in (p_gain, p_loss):
            reach = 8 * np.sqrt(n * p * (1 - p)) + 12
            cut.append(slice(max(0, int(n * p - reach)), min(n, int(n * p + reach)) + 1))
        g, k = np.arange(n + 1)[cut[0], None], np.arange(n + 1)[None, cut[1]]
        rest = np.maximum(n - g - k, 0)
        log_p = gammaln(n + 1) - gammaln(g + 1) - gammaln(k + 1) - gammaln(rest + 1)
        log_p = log_p + xlogy(g, p_gain) + xlogy(k, p_loss) + xlogy(rest, max(0.0, 1 - p_gain - p_loss))
        return (cut[0], cut[1]), np.where(g + k <= n, np.exp(log_p), 0.0)

    def at(self, flips: float, lost_share: float) -> dict[str, float]:
        """One point of the grid: coverage, also given that 10 or more flipped; how often 0 is excluded, by which."""
        p_loss = flips * lost_share / self.n
        p_gain = flips / self.n - p_loss
        part, chance = self.chances(p_gain, p_loss)
        covered = (self.lo[part] <= p_gain - p_loss + 1e-12) & (p_gain - p_loss - 1e-12 <= self.hi[part])
        seen = np.add.outer(np.arange(self.n + 1)[part[0]], np.arange(self.n + 1)[part[1]]) >= FLIPS
        return {
            "flips": flips,
            "lost_share": lost_share,
            "coverage": float(chance[covered].sum()),
            "given": float(chance[covered & seen].sum() / max(chance[seen].sum(), 1e-300)),
            "excluded": float(chance[self.excludes[part]].sum()),
            "against_test": float(chance[(self.excludes & ~self.rejects)[part]].sum()),
            "test_alone": float(chance[(self.rejects & ~self.excludes)[part]].sum()),
        }


def grid(n: int, points: int) -> np.ndarray:
    """Expected flips: rare ones, then evenly in their logarithm, from either end (hardly any, nearly all)."""
    ends = np.geomspace(0.02, n / 2, points)
    return np.unique(np.concatenate([RARE, ends, n - ends]))


def exact(n: int, points: int) -> dict[str, Any]:
    """The worst of the grid at n items, as one row."""
    outcomes = Outcomes(n)
    found = [outcomes.at(m, s) for m in grid(n, points) for s in LOST_SHARES]
    many = [f for f in found if f["flips"] >= FLIPS and n - f["flips"] * (1 - f["lost_share"]) >= STAYED]
    # Where all items flip, gains are Binomial(n, ½), and no whole number of them is at 5 %: one is expected to stay.
    nothing = [outcomes.at(m, 0.5) for m in grid(n, 4 * points) if m <= n - 1]
    least, low, high = (f(x, key=lambda r: r["coverage"]) for f, x in ((min, found), (min, many), (max, many)))
    wrong = max(nothing, key=lambda r: r["excluded"])
    return {
        "n": n,
        "points": len(found),
        "least coverage": least["coverage"],
        "at (flips, lost)": where(least),
        "many flips: least": low["coverage"],
        "most": high["coverage"],
        "at": where(high),
        "given 10 seen": f"{min(f['given'] for f in many):.4f} to {max(f['given'] for f in many):.4f}",
        "false positives": wrong["excluded"],
        "at flips": round(wrong["flips"], 1),
        "excludes 0, p > 0.05": max(f["against_test"] for f in nothing),
        "p ≤ 0.05, contains 0": max(f["test_alone"] for f in found),
        "held": bool(least["coverage"] >= LEAST and high["coverage"] <= MOST and wrong["excluded"] <= WRONG),
    }


def where(point: dict[str, float]) -> str:
    return f"{point['flips']:.3g}, {point['lost_share']:.3g}"


def simulated(n: int, count: int) -> Iterator[dict[str, Any]]:
    """The same by drawing comparisons; one row per setting. Checks the sums, and what `compare` itself returns."""
    rng = np.random.default_rng(n)
    for flips in sorted({0.5, 1, 2, 5, 10, 0.2 * n, 0.5 * n, n - 2, n - 1}):
        for lost_share in (0.0, 0.1, 0.5):
            p_loss = flips * lost_share / n
            p_gain = flips / n - p_loss
            drawn = rng.multinomial(n, [p_gain, p_loss, 1 - p_gain - p_loss], size=count)
            lo, hi = statistics.flip_interval(drawn[:, 0], drawn[:, 1], n)
            gained, lost = (int(x) for x in drawn[0, :2])
            method, reference = np.arange(n) < gained, (np.arange(n) >= gained) & (np.arange(n) < gained + lost)
            found = statistics.compare(method, reference)
            if (found.lo, found.hi) != (lo[0], hi[0]):
                raise AssertionError(f"compare differs from flip_interval at {gained} gained and {lost} lost of {n}.")
            delta = p_gain - p_loss
            coverage = float(((lo <= delta + 1e-12) & (delta - 1e-12 <= hi)).mean())
            noise = 4 * np.sqrt(0.05 * 0.95 / count)  # four standard errors
            yield {
                "n": n,
                "flips": flips,
                "lost share": lost_share,
                "coverage": coverage,
                "excludes 0": float(((lo > 0) | (hi < 0)).mean()),
                "held": bool(coverage >= LEAST - noise and (lost_share != 0.5 or 1 - coverage <= WRONG + noise)),
            }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.statistics", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a coarse grid and few worlds: seconds")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    quick = arguments.quick
    sizes = (50, 200) if quick else (50, 200, 1000)
    parts = {
        "One seed, exact sums": lambda: [exact(n, 8 if quick else 60) for n in sizes],
        "One seed, simulated": lambda: [row for n in sizes for row in simulated(n, 1000 if quick else 10_000)],
        "Several seeds, simulated": lambda: list(worlds.seeds(40 if quick else 1000)),
        "Share of bits, simulated": lambda: list(worlds.shares(15 if quick else 500, 2000 if quick else 10_000)),
    }
    results = {}
    for title, part in parts.items():
        began = time.perf_counter()
        results[title] = part()
        if not arguments.json:
            table([{k: digits(v) for k, v in row.items()} for row in results[title]], title)
        print(f"{title}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    if arguments.json:
        emit({"statistics": results})
    return 0 if all(row.get("held", True) for rows in results.values() for row in rows) else 1


def digits(value: Any) -> Any:
    return f"{value:.4f}" if isinstance(value, float) and value <= 1 else value


if __name__ == "__main__":
    sys.exit(main())
