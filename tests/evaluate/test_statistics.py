"""Paired statistics against literal versions, published values, properties, and simulated coverage."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paraknow.evaluate import statistics

_PATH = Path(__file__).parents[1] / "reference" / "statistics_literal.py"
_SPEC = importlib.util.spec_from_file_location("statistics_literal", _PATH)
literal = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(literal)

FEW_EXAMPLES = settings(max_examples=60, deadline=None)
pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80)
p_values = st.lists(st.floats(0, 1) | st.just(np.nan), max_size=12)


def split(items: list[tuple[bool, bool]]) -> tuple[np.ndarray, np.ndarray]:
    array = np.array(items, dtype=bool)
    return array[:, 0], array[:, 1]


def flips(gained: int, lost: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    method, reference = np.zeros(n, bool), np.zeros(n, bool)
    method[:gained] = True
    reference[gained : gained + lost] = True
    return method, reference


# Newcombe, Stat. Med. 17 (1998), table I, method 3.
@pytest.mark.parametrize(
    ("right", "n", "expected"),
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_wilson_gives_published_intervals(right, n, expected):
    assert statistics.wilson(np.arange(n) < right) == pytest.approx(expected, abs=5e-5)


@FEW_EXAMPLES
@given(st.lists(st.booleans(), min_size=1, max_size=60), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_wilson_equals_literal_and_stays_in_range(correct, level):
    lo, hi = statistics.wilson(np.array(correct), level)
    assert (lo, hi) == pytest.approx(literal.wilson(correct, level), abs=1e-7)
    assert 0 <= lo <= np.mean(correct) <= hi <= 1


def test_wilson_refuses():
    with pytest.raises(ValueError, match="no items"):
        statistics.wilson(np.array([], dtype=bool))
    with pytest.raises(ValueError, match="true and false"):
        statistics.wilson(np.array([0.3, 1.0]))
    with pytest.raises(ValueError, match="items,"):
        statistics.wilson(np.ones((2, 3), bool))
    with pytest.raises(ValueError, match="level"):
        statistics.wilson(np.ones(3, bool), level=95)


@FEW_EXAMPLES
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 200))
def test_bonett_price_equals_literal_and_is_antisymmetric(gained, lost, rest):
    n = max(1, gained + lost + rest)
    lo, hi = statistics.bonett_price(gained, lost, n)
    assert (lo, hi) == pytest.approx(literal.bonett_price(gained, lost, n), abs=1e-12)
    assert statistics.bonett_price(lost, gained, n) == pytest.approx((-hi, -lo), abs=1e-12)
    assert -1 <= lo <= (gained - lost) / n <= hi <= 1


def test_bonett_price_by_hand():
    # 8 gained, 0 lost, 98 items: p₊ = 0.09, p₋ = 0.01, 0.08 ± 1.96·√((0.1 − 0.0064)/100)
    assert statistics.bonett_price(8, 0, 98) == pytest.approx((0.020037, 0.139963), abs=1e-6)


def test_intervals_of_flips_refuse():
    for interval in (statistics.bonett_price, statistics.tango, statistics.flip_interval):
        for arguments in ((-1, 0, 5), (1, 0, 0), (4, 3, 6), (np.nan, 0, 5)):
            with pytest.raises(ValueError, match="item"):
                interval(*arguments)
        with pytest.raises(ValueError, match="level"):
            interval(1, 0, 5, level=95)


@FEW_EXAMPLES
@given(st.integers(0, 120), st.integers(0, 120))
def test_mcnemar_equals_literal(gained, lost):
    assert statistics.mcnemar(gained, lost) == pytest.approx(literal.mcnemar(gained, lost), rel=1e-9)
    assert statistics.mcnemar(gained, lost) == statistics.mcnemar(lost, gained)


def test_mcnemar_by_hand():
    assert statistics.mcnemar(0, 0) == 1.0
    assert statistics.mcnemar(8, 1) == pytest.approx(2 * (1 + 9) / 512)
    assert statistics.mcnemar(5, 5) == 1.0
    with pytest.raises(ValueError, match="counts"):
        statistics.mcnemar(-1, 2)


@FEW_EXAMPLES
@given(p_values)
def test_holm_equals_literal_and_only_raises(values):
    p = np.array(values, dtype=float)
    adjusted = statistics.holm(p)
    assert adjusted == pytest.approx(np.array(literal.holm(values)), nan_ok=True)
    kept = ~np.isnan(p)
    assert np.array_equal(np.isnan(adjusted), ~kept)
    assert np.all(adjusted[kept] >= p[kept]) and np.all(adjusted[kept] <= 1)
    order = np.argsort(p[kept], kind="stable")
    assert np.all(np.diff(adjusted[kept][order]) >= 0)


def test_holm_by_hand():
    assert statistics.holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        statistics.holm(np.array([0.5, 1.2]))
    with pytest.raises(ValueError, match="tests"):
        statistics.holm(np.ones((2, 2)))


@FEW_EXAMPLES
@given(pairs)
def test_compare_counts_exactly(items):
    method, reference = split(items)
    found = statistics.compare(method, reference, resamples=200)
    gained = sum(m and not r for m, r in items)
    lost = sum(r and not m for m, r in items)
    assert (found.n, found.gained, found.lost) == (len(items), gained, lost)
    assert found.delta == (gained - lost) / len(items)
    assert found.p_mcnemar == pytest.approx(literal.mcnemar(gained, lost))
    assert found.lo <= found.delta <= found.hi
    assert found.interval == "tango"
    assert found.widened == (gained + lost < 10 or len(items) - max(gained, lost) < 5)


@FEW_EXAMPLES
@given(pairs)
def test_compare_is_antisymmetric(items):
    method, reference = split(items)
    there, back = (statistics.compare(*a, resamples=200) for a in ((method, reference), (reference, method)))
    assert there.delta == -back.delta and there.p_mcnemar == back.p_mcnemar
    assert (there.lo, there.hi) == (-back.hi, -back.lo)
    assert (there.gained, there.lost, there.widened) == (back.lost, back.gained, back.widened)


@FEW_EXAMPLES
@given(pairs, st.randoms(use_true_random=False))
def test_order_of_items_does_not_matter(items, random):
    shuffled = list(items)
    random.shuffle(shuffled)
    assert statistics.compare(*split(items), resamples=100) == statistics.compare(*split(shuffled), resamples=100)


@FEW_EXAMPLES
@given(st.integers(1, 4), st.integers(1, 60), st.integers(0, 2**31))
def test_compare_with_seeds(seeds, n, random_seed):
    rng = np.random.default_rng(random_seed)
    method, reference = rng.random((seeds, n)) < 0.6, rng.random(n) < 0.4
    found = statistics.compare(method, reference, resamples=200)
    assert found.delta == pytest.approx(method.mean() - reference.mean(), abs=1e-12)
    assert found.gained == sum(method[:, i].mean() > reference[i] for i in range(n))
    assert found.lost == sum(method[:, i].mean() < reference[i] for i in range(n))
    assert found.lo <= found.delta <= found.hi
    assert found == statistics.compare(method, np.tile(reference, (seeds, 1)), resamples=200)
    # One row of a matrix is one seed.
    one = statistics.compare(method[0], reference, resamples=200)
    again = statistics.compare(method[:1], reference[None], resamples=200)
    assert one == again


def test_seed_noise_widens_the_interval():
    rng = np.random.default_rng(0)
    differences = (rng.random((3, 300)) < 0.5).astype(float)
    apart = np.stack([differences[0] * 0, differences[0], np.ones(300)])
    lo, hi = statistics.paired_bootstrap(differences)
    wide_lo, wide_hi = statistics.paired_bootstrap(apart)
    assert wide_hi - wide_lo > 4 * (hi - lo)


def test_bounded_values_are_resampled_with_two_pseudo_items():
    values = np.repeat([1.0, -1.0, 0.0], [12, 3, 35])
    found = statistics.paired_bootstrap(values, resamples=50_000, bounds=(-1.0, 1.0))
    weights = np.random.default_rng(8).dirichlet([12 + 1, 3 + 1, 35], size=200_000)
    expected = np.quantile(weights[:, 0] - weights[:, 1], [0.025, 0.975])
    assert found == pytest.approx(tuple(expected), abs=0.003)


def test_two_seeds_spread_as_two_seeds_do():
    # All items alike: only seeds vary. Their mean's unbiased standard error is 0.5; drawing two gives ±√2·0.5.
    lo, hi = statistics.paired_bootstrap(np.stack([np.zeros(30), np.ones(30)]))
    assert (lo, hi) == pytest.approx((0.5 - 0.5**0.5, 0.5 + 0.5**0.5))


def test_all_or_nothing_flipping_keeps_a_width():
    for gained in (0, 200):
        found = statistics.compare(*flips(gained, 0, 200))
        assert found.widened and found.lo < found.delta <= found.hi


def test_compare_refuses():
    with pytest.raises(ValueError, match="no items"):
        statistics.compare(np.zeros(0, bool), np.zeros(0, bool))
    with pytest.raises(ValueError, match="3 items, reference 4"):
        statistics.compare(np.zeros(3, bool), np.zeros(4, bool))
    with pytest.raises(ValueError, match="2 seeds, reference 3"):
        statistics.compare(np.zeros((2, 4), bool), np.zeros((3, 4), bool))
    with pytest.raises(ValueError, match="true and false"):
        statistics.compare(np.array([0.5, 1.0]), np.zeros(2, bool))


def test_bootstrap_in_chunks_is_the_same_bootstrap(monkeypatch):
    values = np.random.default_rng(1).normal(size=(2, 40))
    whole = statistics.paired_bootstrap(values, seed=3)
    monkeypatch.setattr(statistics, "CHUNK_BYTES", 4096)
    assert statistics.paired_bootstrap(values, seed=3) == pytest.approx(whole, abs=1e-12)


def test_bootstrap_is_close_to_the_t_interval_on_normal_data():
    values = np.random.default_rng(2).normal(1.0, 2.0, size=400)
    half = 1.966 * values.std(ddof=1) / 20
    lo, hi = statistics.paired_bootstrap(values, resamples=20000)
    assert (lo, hi) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05 * half)


def test_bootstrap_is_in_the_unit_of_the_differences():
    values = np.random.default_rng(4).exponential(size=50)
    lo, hi = statistics.paired_bootstrap(values)
    assert statistics.paired_bootstrap(8 * values) == pytest.approx((8 * lo, 8 * hi))


def test_bootstrap_of_nearly_nothing():
    assert statistics.paired_bootstrap(np.array([0.3])) == (-np.inf, np.inf)
    assert statistics.paired_bootstrap(np.full(9, 0.25)) == pytest.approx((0.25, 0.25))
    for values, more, message in (
        (np.zeros(0), {}, "at least one item"),
        (np.array([1.0, np.nan]), {}, "finite"),
        (np.array([0.0, 2.0]), {"bounds": (-1.0, 1.0)}, "bounds"),
        (np.array([0.0, 2.0]), {"resamples": 0}, "resamples"),
        (np.array([0.0, 2.0]), {"level": 1.0}, "level"),
    ):
        with pytest.raises(ValueError, match=message):
            statistics.paired_bootstrap(values, **more)
