from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paraknow.locate import blocks, layers
from tests.reference import blocks_literal


def scores_of(n: int, m: int, seed: int) -> torch.Tensor:
    return torch.rand(n, m, generator=torch.Generator().manual_seed(seed)) ** 4


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 6), st.integers(0, 6), st.integers(0, 10_000))
def test_window_equals_the_loop(n, m, more_rows, more_cols, seed):
    scores = scores_of(n + more_rows, m + more_cols, seed)
    assert blocks.best_window(scores, n, m) == blocks_literal.best_window(scores, n, m)


def test_window_finds_a_planted_block():
    scores = scores_of(60, 50, 0)
    scores[31:41, 7:19] += 5
    assert blocks.best_window(scores, 10, 12) == (31, 7)


def choose(structure: str, module: str = "up", full=(12, 10), shape=(5, 4), seed: int = 0, with_scores: bool = True):
    scores = scores_of(*full, seed=3) if with_scores else None
    generator = torch.Generator().manual_seed(seed)
    return blocks.choose_block(module, (2, 1), scores, full, shape, structure, generator), scores


@pytest.mark.parametrize("structure", ["window", "rows_columns", "random_window", "random_entries"])
def test_cut_gives_entries_of_the_matrix(structure):
    block, scores = choose(structure)
    assert scores is not None
    cut = block.cut(scores)
    assert cut.shape == (5, 4)
    assert torch.isin(cut, scores).all() and len(cut.unique()) == 20
    assert block.share == pytest.approx(float(cut.double().sum() / scores.double().sum()), rel=1e-6)
    again, _ = choose(structure)
    assert torch.equal(again.cut(scores), cut)


def test_rows_and_columns_are_the_best_means_in_index_order():
    block, scores = choose("rows_columns")
    assert scores is not None and block.rows is not None and block.cols is not None
    expected = sorted(sorted(range(12), key=lambda i: -float(scores[i].double().mean()))[:5])
    assert block.rows.tolist() == expected
    expected = sorted(sorted(range(10), key=lambda j: -float(scores[:, j].double().mean()))[:4])
    assert block.cols.tolist() == expected


def test_random_entries_keep_index_order():
    block, _ = choose("random_entries")
    order = torch.arange(120.0).reshape(12, 10)
    flat = block.cut(order).flatten()
    assert torch.equal(flat, flat.sort().values)


def test_embedding_rows_stay():
    for structure in ("window", "rows_columns", "random_window", "random_entries"):
        block, scores = choose(structure, "embed", full=(12, 10), shape=(12, 4))
        assert scores is not None
        cut = block.cut(scores)
        columns = [next(j for j in range(10) if torch.equal(scores[:, j], cut[:, k])) for k in range(4)]
        assert columns == sorted(columns)


def test_refusals():
    with pytest.raises(ValueError, match="smaller"):
        choose("window", shape=(13, 4))
    with pytest.raises(ValueError, match="needs sensitivities"):
        choose("window", with_scores=False)
    with pytest.raises(ValueError, match="unknown structure"):
        choose("diagonal")


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 20), st.integers(2, 20), st.integers(1, 20), st.integers(0, 1000))
def test_factors_are_the_best_of_their_rank(n, m, rank, seed):
    rank = min(rank, n, m)
    matrix = torch.randn(n, m, generator=torch.Generator().manual_seed(seed))
    found = blocks.factor(matrix, rank)
    values = torch.linalg.svdvals(matrix.double())
    expected = float((values[rank:].square().sum() / values.square().sum()).sqrt())
    assert found.b.shape == (n, rank) and found.a.shape == (rank, m)
    assert found.residual == pytest.approx(expected, abs=2e-4)
    torch.testing.assert_close(found.a @ found.a.T, torch.eye(rank), atol=1e-4, rtol=0)


def test_large_matrices_use_the_fast_factors():
    torch.manual_seed(0)
    decay = torch.linspace(1, 0.01, 1100)
    left, right = torch.linalg.qr(torch.randn(1100, 1100))[0], torch.linalg.qr(torch.randn(1100, 1100))[0]
    matrix = (left * decay) @ right.T
    state = torch.get_rng_state()
    found = blocks.factor(matrix, 8)
    assert torch.equal(state, torch.get_rng_state())
    exact = float((decay[8:].square().sum() / decay.square().sum()).sqrt())
    assert found.residual == pytest.approx(exact, abs=2e-3)


def test_the_fast_factors_find_the_right_directions(monkeypatch):
    """In a spectrum that falls slowly; and a rank that leaves no room to search is exact."""
    monkeypatch.setattr(blocks, "EXACT_SIDE", 64)
    torch.manual_seed(0)
    left, right = torch.linalg.qr(torch.randn(400, 400))[0], torch.linalg.qr(torch.randn(500, 500))[0]
    values = torch.arange(1.0, 401.0) ** -0.25
    matrix = (left * values) @ right[:, :400].T
    cosines = torch.linalg.svdvals(left[:, :16].T @ torch.nn.functional.normalize(blocks.factor(matrix, 16).b, dim=0))
    assert float(cosines.min()) > 0.9999
    torch.testing.assert_close(blocks.factor(matrix, 397).b.norm(dim=0), values[:397], atol=1e-4, rtol=0)


def test_factor_refuses_a_rank_above_the_side():
    with pytest.raises(ValueError, match="rank 5"):
        blocks.factor(torch.ones(4, 9), 5)


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=40),
    st.data(),
    st.sampled_from(["sensitivity", "first", "last", "even", "random"]),
)
def test_layer_choices_are_distinct_and_in_order(scores, drawn, by):
    count = drawn.draw(st.integers(1, len(scores)))
    chosen = layers.choose_layers(scores, count, by)
    assert len(chosen) == count and chosen == sorted(set(chosen)) and chosen[-1] < len(scores)


def test_layer_choices_by_hand():
    scores = [3.0, 9.0, 1.0, 7.0, 5.0]
    assert layers.choose_layers(scores, 3, "sensitivity") == [1, 3, 4]
    assert layers.choose_layers(scores, 2, "first") == [0, 1]
    assert layers.choose_layers(scores, 2, "last") == [3, 4]
    assert layers.choose_layers(scores, 3, "even") == [0, 2, 4]
    assert layers.choose_layers(scores, 1, "even") == [0]
    with pytest.raises(ValueError, match="6 of 5"):
        layers.choose_layers(scores, 6, "first")
