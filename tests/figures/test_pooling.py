"""Pooling of maps for drawing: held against a literal version, and said as it is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraknow.figures import heatmaps, pooling


def literal(values: np.ndarray, cells: int, how: str) -> np.ndarray:
    """Cell by cell."""
    edges = [np.linspace(0, n, min(cells, n) + 1).astype(int) for n in values.shape]
    take = {"max": np.max, "mean": np.mean, "p99": lambda x: np.percentile(x, 99)}[how]
    return np.array(
        [
            [take(values[a:b, c:d]) for c, d in zip(edges[1], edges[1][1:], strict=False)]
            for a, b in zip(edges[0], edges[0][1:], strict=False)
        ]
    )


@given(st.integers(1, 23), st.integers(1, 23), st.integers(1, 25), st.sampled_from(sorted(pooling.POOLINGS)))
def test_pooling_is_what_it_says(rows: int, cols: int, cells: int, how: str) -> None:
    values = np.random.default_rng(rows * 31 + cols).random((rows, cols)).astype(np.float32)
    made = pooling.pooled(values, cells, how)
    assert made.shape == (min(rows, cells), min(cols, cells))
    assert np.allclose(made, literal(values, cells, how), rtol=1e-5)


def test_another_pooling_is_refused() -> None:
    with pytest.raises(ValueError, match="choose of max, mean, p99"):
        pooling.pooled(np.ones((2, 2)), 1, "median")


def test_what_is_stored_is_said() -> None:
    assert "every weight" in pooling.stored([6, 8], (6, 8), "max")
    assert "largest of every 4 × 8 weights" in pooling.stored([24, 64], (6, 8), "max")


def test_a_pooled_matrix_keeps_its_rows_and_columns() -> None:
    values = np.random.default_rng(0).random((40, 80)).astype(np.float32)
    region = heatmaps.Region(10, 30, 0, 80)
    figure = heatmaps.matrix_map(values, (80, 160), "m", None, region, None, 10, "mean", "note")
    heat = figure.data[0]
    assert heat.z.shape == (10, 10) and (heat.y0, heat.dy) == (11, 2) and (heat.x0, heat.dx) == (4, 8)
    assert figure.layout.title.subtitle.text == "note"
    assert heatmaps.pixel((40, 80), (80, 160), region, 10, "mean") == "each pixel is the mean of 2 × 8 weights"
    assert heatmaps.pixel((80, 160), (80, 160), None, None, "max") == "each pixel is one weight"
