"""Simulated worlds with a known answer: several seeds of a method, and bits of knowledge that arrived or did not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from paraknow.evaluate import audit, statistics

SAME = 0.5  # chance that an item's draw is the same for all seeds: seeds of one method mostly flip the same items
SEED_SPREAD = 0.1  # standard deviation of the true difference over seeds, where they differ
CANDIDATES = 20


def seeds(count: int) -> Iterator[dict[str, Any]]:
    """Coverage of the true mean difference, and how often 0 is excluded; a row per setting of `count` comparisons."""
    for n in (50, 200):
        for spread in (0.0, SEED_SPREAD):
            for gain, loss in ((0.35, 0.2), (0.25, 0.25), *([] if spread else [(0.03, 0.01)])):
                for number in (1, 2, 3, 5):
                    rng = np.random.default_rng([n, int(100 * spread), int(100 * gain), number])
                    covered = excluded = 0
                    for trial in range(count):
                        shift = rng.normal(0, spread, (number, 1)) / 2
                        drawn = np.where(rng.random(n) < SAME, rng.random(n), rng.random((number, n)))
                        method, reference = drawn < gain + shift, drawn > 1 - loss + shift
                        found = statistics.compare(method, reference, seed=trial)
                        covered += int(found.lo <= gain - loss <= found.hi)
                        excluded += int(found.lo > 0 or found.hi < 0)
                    yield {
                        "n": n,
                        "seeds": number,
                        "spread of seeds": spread,
                        "gained, lost": f"{gain}, {loss}",
                        "coverage": covered / count,
                        "excludes 0": excluded / count,
                    }


def scores(n: int, knowledge: float, answer: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n, candidates) log-probabilities in which the answer stands out by `knowledge` standard deviations."""
    drawn = rng.normal(size=(n, CANDIDATES))
    drawn[np.arange(n), answer] += knowledge
    return drawn


def shares(count: int, large: int) -> Iterator[dict[str, Any]]:
    """How often the share's interval contains the truth; a row per kind of method and number of items.

    `large`: items of the world from which the truth of the planted scores is read.
    """
    truth = planted_truth(large)
    for n in (75, 225):
        found: dict[str, list[audit.Share]] = {}
        for world in range(count):
            rng = np.random.default_rng([n, world])
            answer = rng.integers(0, CANDIDATES, n)
            student, teacher = scores(n, 0.0, answer, rng), scores(n, 6.0, answer, rng)
            arrived = rng.random(n) < 0.3
            methods = {f"student ÷ {k}": 3 * student / k for k in (2, 4, 10, 100)}
            methods |= {
                "student × 4": 12 * student,
                "student ÷ 4, noise on top": 3 * student / 4 + rng.normal(0, 0.5, student.shape),
                "another that knows nothing": scores(n, 0.0, answer, rng),
                "0.3 of the items, scores": np.where(arrived[:, None], teacher, student),
            }
            own, known = audit.bits(3 * student, answer), audit.bits(teacher, answer)
            gained = {name: audit.bits(values, answer) for name, values in methods.items()}
            gained["0.3 of the items, bits"] = np.where(arrived, known, own)
            for name, bits in gained.items():
                found.setdefault(name, []).append(audit.share(bits, own, known, seed=world))
        for name, drawn in found.items():
            value = {"0.3 of the items, scores": truth, "0.3 of the items, bits": 0.3}.get(name, 0.0)
            inside = [s.lo is not None and s.hi is not None and s.lo <= value <= s.hi for s in drawn]
            coverage = float(np.mean(inside))
            yield {
                "n": n,
                "method": name,
                "true share": round(value, 3),
                "mean share": float(np.mean([np.nan if s.value is None else s.value for s in drawn])),
                "inside": coverage,
                "held": bool(coverage >= 0.93 - 3 * np.sqrt(0.05 * 0.95 / count)),
            }


def planted_truth(n: int) -> float:
    """What 0.3 of the items with the teacher's scores are worth in bits, with one β for all: from one large world."""
    rng = np.random.default_rng(0)
    answer = rng.integers(0, CANDIDATES, n)
    student, teacher = scores(n, 0.0, answer, rng), scores(n, 6.0, answer, rng)
    mixed = np.where(np.arange(n)[:, None] % 10 < 3, teacher, student)
    own, known, got = (audit.bits(x, answer).mean() for x in (student, teacher, mixed))
    return float((got - own) / (known - own))
