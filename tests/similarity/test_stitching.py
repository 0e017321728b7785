from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from paraknow.errors import InputError
from paraknow.similarity import stitching
from paraknow.similarity.stitching import RIDGES, _Ridge, pair_layers, stitch
from tests.reference import stitching_literal


def rows(draw, n, *widths):
    return [torch.tensor(draw.normal(size=(n, p)) + draw.normal(size=p)) for p in widths]


@pytest.mark.parametrize("shape", [(40, 6), (12, 30)])
@pytest.mark.parametrize("strength", [1e-3, 1.0, 100.0])
def test_the_ridge_map_equals_the_normal_equations(shape, strength):
    draw = np.random.default_rng(0)
    x, y, new = (draw.normal(size=s) + 3 for s in (shape, (shape[0], 4), (7, shape[1])))
    ours = _Ridge(torch.tensor(x), torch.tensor(y)).predict(torch.tensor(new), strength)
    assert np.allclose(ours.numpy(), stitching_literal.ridge(x, y, new, strength), atol=1e-6)


def test_the_table_equals_the_literal_version():
    """The same held-out examples and the λ that was chosen: R² by the normal equations."""
    draw = np.random.default_rng(1)
    (x,) = rows(draw, 120, 8)
    y = x @ torch.tensor(draw.normal(size=(8, 5))) + torch.tensor(draw.normal(size=(120, 5)))
    owners = np.repeat(np.arange(30), 4)
    row = stitch([x], [y], owners.tolist(), seed=3).iloc[0]
    order = np.random.default_rng(3).permutation(30)
    held = np.isin(owners, order[:6])
    predicted = stitching_literal.ridge(x.numpy()[~held], y.numpy()[~held], x.numpy()[held], row.ridge)
    assert row.n == held.sum() == 24
    assert row.r2 == pytest.approx(stitching_literal.r2(y.numpy()[held], predicted), abs=1e-9)
    assert row.lo < row.r2 < row.hi and row.ridge in RIDGES


@pytest.mark.parametrize("width", [6, 300])
def test_a_linear_map_is_found(width):
    draw = np.random.default_rng(2)
    hidden = torch.tensor(draw.normal(size=(200, 6)))
    x, y = (hidden @ torch.tensor(draw.normal(size=(6, w))) for w in (width, 9))
    (noise,) = rows(draw, 200, 9)
    table = stitch([x], [y, noise], list(range(200)))
    assert table.r2[0] > 0.999 and table.r2[1] < 0.05
    assert (table.null < 0.05).all() and table.lo[1] <= 0.05


def test_examples_are_never_split(monkeypatch):
    """Rows that are copies of their example's others would be foretold for nothing."""
    draw = np.random.default_rng(3)
    x, y = (torch.tensor(np.repeat(draw.normal(size=(40, 50)), 5, 0)) for _ in range(2))
    owners = np.repeat(np.arange(40), 5).tolist()
    assert stitch([x], [y], owners).r2[0] < 0.05
    assert stitch([x], [y], list(range(200))).r2[0] > 0.9  # what it would look like


def test_the_strength_is_chosen_on_other_examples():
    """Copies of fitted rows in a fold would be foretold best by a weak ridge; other examples ask for a strong one."""
    draw = np.random.default_rng(7)
    x = torch.tensor(np.repeat(draw.normal(size=(60, 80)), 4, 0))
    y = torch.tensor(np.repeat(draw.normal(size=(60, 6)), 4, 0))
    assert stitch([x], [y], np.repeat(np.arange(60), 4).tolist()).ridge[0] >= 10
    assert stitch([x], [y], list(range(240))).ridge[0] <= 0.1  # what it would look like


def test_intervals_resample_examples():
    """Rows of one example miss alike, so the interval is wider than that of as many free rows."""
    draw = np.random.default_rng(8)
    x = torch.tensor(np.repeat(draw.normal(size=(100, 5)), 6, 0))
    own = draw.normal(size=(100, 3)) * draw.exponential(size=(100, 1))
    y = x[:, :3] + torch.tensor(np.repeat(own, 6, 0))
    row = stitch([x], [y], np.repeat(np.arange(100), 6).tolist(), resamples=1000).iloc[0]
    order = np.random.default_rng(0).permutation(100)
    held = np.isin(np.repeat(np.arange(100), 6), order[:20])
    predicted = stitching_literal.ridge(x.numpy()[~held], y.numpy()[~held], x.numpy()[held], row.ridge)
    truth, by = y.numpy()[held], np.arange(120).reshape(20, 6)
    assert row.r2 == pytest.approx(stitching_literal.r2(truth, predicted), abs=1e-9)
    drawn = [by[draw.integers(0, 20, 20)].ravel() for _ in range(1000)]
    low, high = np.percentile([stitching_literal.r2(truth[i], predicted[i]) for i in drawn], [2.5, 97.5])
    assert row.hi - row.lo == pytest.approx(high - low, rel=0.35)


@pytest.mark.parametrize("width", [8, 300])
def test_what_is_unrelated_is_near_zero_with_its_null(width):
    draw = np.random.default_rng(9)
    tables = [stitch(rows(draw, 200, width), rows(draw, 200, 6), list(range(200)), k, 100) for k in range(5)]
    for table in tables:
        assert -0.15 < table.r2[0] < 0.05 and -0.15 < table.null[0] < 0.05


def test_layers_that_match_are_paired():
    draw = np.random.default_rng(4)
    xs = rows(draw, 150, 10, 10, 10, 10)
    ys = [xs[k] @ torch.tensor(draw.normal(size=(10, 6))) for k in (1, 3)]
    table = stitch(xs, ys, list(range(150)))
    paired = table[table.paired]
    assert list(zip(paired.teacher_layer, paired.student_layer, strict=True)) == [(1, 0), (3, 1)]
    assert list(table.columns) == "teacher_layer student_layer r2 lo hi null ridge n paired".split()


def test_constant_outputs_are_missing():
    draw = np.random.default_rng(5)
    x, y = rows(draw, 60, 4, 4)
    table = stitch([x], [y, torch.ones(60, 3, dtype=torch.float64)], list(range(60)))
    assert np.isfinite(table.r2[0]) and np.isnan(table.r2[1]) and not table.paired.any()


def test_too_few_examples():
    x, y = rows(np.random.default_rng(6), 40, 4, 4)
    with pytest.raises(InputError, match="9 examples are too few to stitch"):
        stitch([x], [y], [k % 9 for k in range(40)])


@given(arrays.arrays(float, st.tuples(st.integers(1, 7), st.integers(1, 4)), elements=st.floats(-1, 1)))
@settings(max_examples=60, deadline=None)
def test_pairings_are_the_best_of_all(scores):
    pairs = pair_layers(scores)
    if scores.shape[0] < scores.shape[1]:
        assert pairs == []
        return
    assert pairs == sorted(set(pairs)) and len(pairs) == scores.shape[1]
    best, _ = stitching_literal.best_pairing(scores)
    assert sum(scores[t, s] for s, t in enumerate(pairs)) == pytest.approx(best, abs=1e-9)


def test_missing_scores_are_not_paired():
    scores = np.array([[0.5, np.nan], [np.nan, 0.4], [0.1, 0.2]])
    assert pair_layers(scores) == [0, 1]
    assert pair_layers(np.array([[0.5, np.nan], [0.4, np.nan]])) == []
    assert stitching.HELD_OUT < 0.5
