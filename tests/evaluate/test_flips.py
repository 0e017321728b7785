"""Intervals of paired differences and their power: literal versions, properties, and exact sums over all outcomes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paraknow.evaluate import statistics
from tests.reference import statistics_literal as literal

FEW_EXAMPLES = settings(max_examples=60, deadline=None)
flips = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 120)).filter(any)


@settings(max_examples=25, deadline=None)
@given(flips, st.sampled_from([0.8, 0.95, 0.99]))
def test_tango_equals_the_literal_version(drawn, level):
    gained, lost, rest = drawn
    n = gained + lost + rest
    ends = tuple(map(float, statistics.tango(gained, lost, n, level)))
    assert ends == pytest.approx(literal.tango(gained, lost, n, level), abs=1e-7)
    both = tuple(map(float, statistics.flip_interval(gained, lost, n, level)))
    assert both == pytest.approx(literal.flip_interval(gained, lost, n, level), abs=1e-7)


def test_tango_by_hand():
    # Nothing flipped: (nδ)² = z²·nδ(1 − δ) at either end, so δ = z²/(n + z²).
    z2 = 1.959963985**2
    assert statistics.tango(0, 0, 50) == pytest.approx((-z2 / (50 + z2), z2 / (50 + z2)), abs=1e-8)
    # All gained: the likeliest losses fill what δ leaves, q = (1 − δ)/2, so n(1 − δ)² = z²(1 − δ²).
    assert statistics.tango(20, 0, 20) == pytest.approx(((20 - z2) / (20 + z2), 1.0), abs=1e-8)


@FEW_EXAMPLES
@given(flips)
def test_properties(drawn):
    gained, lost, rest = drawn
    n = gained + lost + rest
    for interval in (statistics.tango, statistics.flip_interval):
        lo, hi = map(float, interval(gained, lost, n))
        assert -1 <= lo <= (gained - lost) / n <= hi <= 1
        assert interval(lost, gained, n) == (-hi, -lo)
        low, high = map(float, interval(4 * gained, 4 * lost, 4 * n))
        assert high - low < hi - lo
        wide = interval(gained, lost, n, level=0.99)
        assert wide[0] <= lo and hi <= wide[1]
    # An interval above or below 0 never goes with an exact p that would call it nothing.
    if lo > 0 or hi < 0:
        assert statistics.mcnemar(gained, lost) < 0.08 or n < 10
    elif statistics.mcnemar(gained, lost) <= 0.05:
        raise AssertionError("the exact test sees a difference that the interval does not")


def test_arrays_are_many_comparisons():
    gained, lost = np.array([[0, 3, 40], [9, 9, 50]]), np.array([[0, 0, 1], [9, 2, 0]])
    lo, hi = statistics.flip_interval(gained, lost, 50)
    for place in np.ndindex(gained.shape):
        assert (lo[place], hi[place]) == statistics.flip_interval(gained[place], lost[place], 50)


@pytest.mark.parametrize(("n", "discordant"), [(12, 0.5), (18, 0.0), (18, 0.7)])
def test_detectable_has_the_power_asked_for(n, discordant):
    found = statistics.detectable(n, discordant)
    assert literal.power(n, discordant, found) == pytest.approx(0.8, abs=1e-3)


@pytest.mark.parametrize(("n", "discordant"), [(225, 0.09), (1000, 0.05), (1000, None), (50, None)])
def test_detectable_by_simulation(n, discordant):
    found = statistics.detectable(n, discordant)
    share = max(found, 0.5 if discordant is None else discordant)
    drawn = np.random.default_rng(n).multinomial(n, [(share + found) / 2, (share - found) / 2, 1 - share], size=20_000)
    lo, _ = statistics.flip_interval(drawn[:, 0], drawn[:, 1], n)
    assert (lo > 0).mean() == pytest.approx(0.8, abs=0.015)


def test_detectable_shrinks_with_items_and_agreement():
    assert statistics.detectable(200, 0.2) > statistics.detectable(800, 0.2) > statistics.detectable(800, 0.05)
    assert statistics.detectable(200, 0.2, power=0.9) > statistics.detectable(200, 0.2)
    assert statistics.detectable(3) is None
    from_interval = statistics.detectable_from(*map(float, statistics.flip_interval(40, 40, 400)))
    assert from_interval == pytest.approx(statistics.detectable(400, 0.2), rel=0.05)
    assert statistics.detectable_from(-1, 1) is None
    for arguments in ((0,), (10, 1.2), (10, 0.5, 0.95, 1.0), (10, 0.5, 95)):
        with pytest.raises(ValueError, match=r"detectable|level"):
            statistics.detectable(*arguments)
