from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes

from paraknow.similarity import maps
from tests.reference import transport_literal as literal

SIDES = [(6, 6), (5, 8), (8, 5)]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(size: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(drawn(size, size, seed=seed))[0]


@pytest.mark.parametrize(("d_x", "d_y"), SIDES)
def test_procrustes_equals_the_literal_one(d_x, d_y):
    x, y = drawn(40, d_x), drawn(40, d_y, seed=1)
    expected = literal.procrustes(x.numpy(), y.numpy())
    np.testing.assert_allclose(maps.procrustes(x, y).numpy(), expected, atol=1e-12)


def test_procrustes_equals_scipys_where_sides_agree():
    x, y = drawn(40, 6), drawn(40, 6, seed=1)
    turn, scale = orthogonal_procrustes(x.numpy(), y.numpy())
    np.testing.assert_allclose(maps.turn(x, y).numpy(), turn, atol=1e-12)
    expected = scale / float(x.square().sum()) * turn
    np.testing.assert_allclose(maps.procrustes(x, y).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(("d_x", "d_y"), SIDES)
def test_no_semi_orthogonal_map_of_another_scale_fits_better(d_x, d_y):
    """s is the best one for its rotation, and where d_X ≤ d_Y nothing near the rotation is better."""
    x, y = drawn(40, d_x), drawn(40, d_y, seed=1)
    best = maps.procrustes(x, y)
    error = (y - x @ best).square().sum()
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert (y - x @ (factor * best)).square().sum() > error
    if d_x <= d_y:
        for seed in range(20):
            step = 1e-2 * drawn(d_y, d_y, seed=seed)
            assert (y - x @ best @ torch.linalg.matrix_exp(step - step.T)).square().sum() >= error - 1e-9


@pytest.mark.parametrize(("d_x", "d_y"), SIDES)
def test_a_planted_scaled_rotation_is_recovered_exactly(d_x, d_y):
    k = min(d_x, d_y)
    planted = 2.5 * rotation(d_x)[:, :k] @ rotation(d_y, 1)[:k]
    # with d_X > d_Y only what the map does not drop can be recovered: x lives there
    x = drawn(60, d_x) if d_x <= d_y else drawn(60, d_y) @ planted.T
    found = maps.procrustes(x, x @ planted)
    torch.testing.assert_close(found, planted, atol=1e-10, rtol=0)
    assert maps.fit(x, x @ planted, found) == pytest.approx(1.0)


def test_without_the_scale_a_cloned_space_would_miss():
    """A doubled stream (METHODS 4.3) is √2 as long: the scale is what makes the map right."""
    x = drawn(60, 4)
    wide = torch.cat([x, x], 1)
    assert maps.fit(x, wide, maps.procrustes(x, wide)) == pytest.approx(1.0)
    assert maps.fit(x, wide, maps.turn(x, wide)) < 0.95


@pytest.mark.parametrize("strength", [0.0, 1e-3, 10.0])
def test_ridge_is_the_closed_form(strength):
    x, y = drawn(50, 6), drawn(50, 4, seed=1)
    (found,) = maps._ridges(x, y, (strength,))
    np.testing.assert_allclose(found.numpy(), literal.ridge(x.numpy(), y.numpy(), strength), atol=1e-9)


def test_ridge_chooses_its_strength_by_what_it_leaves_out():
    x, clean = drawn(60, 12), drawn(60, 5, seed=1)
    exact = x @ drawn(12, 5, seed=2)
    torch.testing.assert_close(maps.ridge(x, exact), torch.linalg.lstsq(x, exact).solution, atol=1e-4, rtol=0)
    # nothing to find: the strongest shrinks most
    assert maps.ridge(x, clean).norm() < 0.1 * torch.linalg.lstsq(x, clean).solution.norm()
    chosen = maps.ridge(x, clean)
    assert any(torch.allclose(chosen, a) for a in maps._ridges(x, clean, maps.RIDGES))


def test_ridge_survives_directions_that_are_never_used():
    x = torch.cat([drawn(40, 4), torch.zeros(40, 3, dtype=torch.float64)], 1)
    found = maps.ridge(x, x[:, :4])
    assert torch.isfinite(found).all() and not found[4:].any()
    torch.testing.assert_close(found[:4], torch.eye(4, dtype=torch.float64), atol=1e-5, rtol=0)


def test_half_precision_rows_give_maps_in_float64():
    x, y = drawn(40, 6).bfloat16(), drawn(40, 6, seed=1).bfloat16()
    for name, fit in maps.MAPS.items():
        found = fit(x, y)
        assert found.dtype == torch.float64 and found.shape == (6, 6), name
        torch.testing.assert_close(found, fit(x.double(), y.double()), atol=1e-12, rtol=0)


def test_identity_needs_one_width():
    assert torch.equal(maps.identity(drawn(9, 3), drawn(9, 3)), torch.eye(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="4 to one of 3"):
        maps.identity(drawn(9, 4), drawn(9, 3))


def test_fit_is_a_share_of_energy_and_says_when_a_map_harms():
    x = drawn(30, 3)
    eye = torch.eye(3, dtype=torch.float64)
    assert maps.fit(x, x, eye) == 1.0
    assert maps.fit(x, x, 0 * eye) == 0.0
    assert maps.fit(x, x, -eye) == pytest.approx(-3.0)
    assert np.isfinite(maps.fit(x, 0 * x, eye))


widths, seeds = st.integers(2, 7), st.integers(0, 2**31 - 1)


@settings(max_examples=25, deadline=None)
@given(widths, widths, seeds, st.floats(0.01, 100), st.floats(0.01, 100))
def test_turning_and_stretching_both_spaces_turns_and_stretches_the_map(d_x, d_y, seed, a, b):
    """A(X·P·a, Y·Q·b) = Pᵀ·A(X, Y)·Q·b/a, for the rotation and for the ridge."""
    x, y = drawn(30, d_x, seed=seed), drawn(30, d_y, seed=seed + 1)
    p, q = rotation(d_x, seed + 2), rotation(d_y, seed + 3)
    for fit in (maps.procrustes, maps.ridge):
        expected = p.T @ fit(x, y) @ q * (b / a)
        torch.testing.assert_close(fit(a * x @ p, b * y @ q), expected, atol=1e-6 * b / a, rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(widths, widths, seeds)
def test_the_order_of_rows_does_not_matter_to_the_rotation(d_x, d_y, seed):
    x, y = drawn(30, d_x, seed=seed), drawn(30, d_y, seed=seed + 1)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(maps.procrustes(x[order], y[order]), maps.procrustes(x, y), atol=1e-8, rtol=1e-8)


@settings(max_examples=25, deadline=None)
@given(widths, widths, seeds)
def test_the_map_is_semi_orthogonal_up_to_its_scale(d_x, d_y, seed):
    found = maps.procrustes(drawn(30, d_x, seed=seed), drawn(30, d_y, seed=seed + 1))
    sizes = torch.linalg.svdvals(found)
    torch.testing.assert_close(sizes, sizes[0].expand_as(sizes), atol=1e-9, rtol=1e-9)
