from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paraknow.locate.blocks import factor
from paraknow.similarity import weights
from tests.reference import weights_literal


def parts(seed, n=12, m=9, rank=3):
    draw = np.random.default_rng(seed)
    return [torch.tensor(draw.normal(size=s)) for s in ((n, rank), (rank, m), (n, m))]


@given(st.integers(0, 10**6), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_geometry_equals_the_literal_version(seed, rank):
    b, a, w = parts(seed, rank=rank)
    expected = weights_literal.geometry(b.numpy(), a.numpy(), w.numpy())
    found = weights.geometry(b, a, w)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name


def test_what_is_at_right_angles_has_the_cosine_that_is_expected():
    b, a, w = parts(0)
    delta = b @ a
    w = w - delta * float((w * delta).sum() / (delta * delta).sum())
    found = weights.geometry(b, a, w)
    assert found["cos"] == pytest.approx(0, abs=1e-12)
    assert found["cos_rest"] == pytest.approx(found["cos_rest_expected"], abs=1e-12)


def test_the_students_own_part():
    """PiSSA's choice: its cosine with the whole is its share of the norm, and the rest is at right angles to it."""
    _, _, w = parts(1)
    own = factor(w, 4)
    found = weights.geometry(own.b, own.a, w)
    assert found["cos"] == pytest.approx(found["norm_ratio"], abs=1e-6)
    assert found["cos_rest"] == pytest.approx(0, abs=1e-5)
    assert [found["left_overlap"], found["right_overlap"]] == pytest.approx([1.0, 1.0], abs=1e-5)


def test_nothing_to_compare_is_missing():
    b, a, w = parts(2)
    assert all(np.isnan(v) for v in weights.geometry(b * 0, a, w).values())
    assert all(np.isnan(v) for v in weights.geometry(b, a, w * 0).values())


@pytest.mark.parametrize("shape", [(8, 5), (5, 8), (40, 40)])
def test_spectra(shape, monkeypatch):
    w = torch.randn(shape)
    expected = np.linalg.svd(w.double().numpy(), compute_uv=False)
    assert np.allclose(weights.spectrum(w).numpy(), expected, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(weights, "EXACT_SIDE", 1)  # the way of large matrices
    assert np.allclose(weights.spectrum(w).numpy(), expected, rtol=1e-2, atol=1e-2)


def test_effective_rank_counts_equal_directions():
    assert weights.effective_rank(torch.tensor([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3.0)
    assert weights.effective_rank(torch.tensor([5.0, 0.0])) == pytest.approx(1.0)
    assert np.isnan(weights.effective_rank(torch.zeros(3)))


@given(st.integers(0, 10**6), st.floats(0.3, 0.99))
@settings(max_examples=25, deadline=None)
def test_interference_equals_the_literal_version(seed, energy):
    b, a, _ = parts(seed)
    inputs = torch.tensor(np.random.default_rng(seed).normal(size=(30, 9)) * np.arange(1, 10))
    expected = weights_literal.interference(b.numpy(), a.numpy(), inputs.numpy(), energy)
    found = weights.interference(b, a, inputs, energy)
    assert found["directions"] == expected["directions"]
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-6), name


def test_inside_and_outside_what_is_known():
    inputs = torch.zeros(20, 6, dtype=torch.float64)
    inputs[:, :2] = torch.randn(20, 2, dtype=torch.float64)  # the student only ever uses two directions
    b = torch.randn(5, 1, dtype=torch.float64)
    inside, outside = torch.zeros(2, 1, 6, dtype=torch.float64)
    inside[0, :2], outside[0, 2:] = 1, 1
    assert weights.interference(b, inside, inputs, 1.0)["interference"] == pytest.approx(1.0)
    assert weights.interference(b, outside, inputs, 1.0)["interference"] == pytest.approx(0.0, abs=1e-20)
    assert weights.interference(b, outside, inputs, 1.0)["directions"] == 2
    assert np.isnan(weights.interference(b * 0, inside, inputs)["interference"])
