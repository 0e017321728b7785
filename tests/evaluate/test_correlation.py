"""Rank correlation over pairs of models, against scipy and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from paraknow.evaluate import correlation
from paraknow.evaluate.correlation import bonett_wright, over_pairs

VALUES = st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=4, max_size=20)


@settings(max_examples=25, deadline=None)
@given(VALUES)
def test_one_run_a_pair_is_spearman(points: list[tuple[int, int]]) -> None:
    x, y = (list(map(float, side)) for side in zip(*points, strict=True))
    found = over_pairs(x, y, range(len(x)), resamples=50)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert found.rho is None and "does not vary" in str(found.missing)
        return
    assert found.rho == pytest.approx(spearmanr(x, y).statistic)
    assert -1 <= found.lo <= found.rho <= found.hi <= 1


def test_a_pair_counts_once() -> None:
    """Copies of a run are no more evidence, and their order does not matter."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 8))
    once = over_pairs(x, y, range(8))
    copies = [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 7]
    order = rng.permutation(len(copies))
    many = over_pairs(x[copies][order], y[copies][order], np.array(copies)[order])
    assert (many.rho, many.pairs, many.points) == (pytest.approx(once.rho), 8, 12)
    assert (many.lo, many.hi) == (pytest.approx(once.lo), pytest.approx(once.hi))


def test_too_few_pairs_are_said() -> None:
    found = over_pairs([1, 2, 3, 4, 5], [1, 2, 3, 4, np.nan], ["a", "a", "b", "c", "d"])
    assert found.rho is None and found.words == "3 pairs of models: too few to tell; 4 are needed."
    assert over_pairs([], [], []).words.startswith("0 pairs")
    with pytest.raises(ValueError, match="must agree"):
        over_pairs([1], [1, 2], [1])
    with pytest.raises(ValueError, match="at least 4"):
        bonett_wright(0.5, 3)


def test_a_perfect_order_of_four_proves_little() -> None:
    found = over_pairs([1, 2, 3, 4], [1, 2, 3, 4], "abcd")
    assert found.rho == 1 and found.hi == 1 and found.lo < 0
    assert found.words.endswith("whether the two go together cannot be told.")
    assert "the more alike a pair, the more arrived" in over_pairs(range(20), range(20), range(20)).words
    assert "the less arrived" in over_pairs(range(20), range(0, -20, -1), range(20)).words


@pytest.mark.parametrize(
    ("shape", "strength", "pairs"), [("normal", 0.9, 6), ("mostly nothing", 0.0, 6), ("mostly nothing", 0.9, 20)]
)
def test_intervals_hold_the_truth_as_often_as_they_say(shape: str, strength: float, pairs: int) -> None:
    rng = np.random.default_rng(pairs)

    def drawn(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        x, noise = rng.normal(size=(2, *size))
        y = strength * x + np.sqrt(1 - strength**2) * noise
        return x, y if shape == "normal" else np.where(y > 0.5, y, 0.001 * noise)

    truth = float(correlation.spearman(*drawn((1, 100_000)))[0])
    held = [over_pairs(a, b, range(pairs), resamples=100) for a, b in zip(*drawn((100, pairs)), strict=True)]
    assert np.mean([f.lo <= truth <= f.hi for f in held]) >= 0.88  # 0.95 less three standard errors
