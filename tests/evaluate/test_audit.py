"""Bits of knowledge and the share that arrived: against literal versions, invariances, and planted answers."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paraknow.evaluate import audit

_PATH = Path(__file__).parents[1] / "reference" / "statistics_literal.py"
_SPEC = importlib.util.spec_from_file_location("statistics_literal", _PATH)
literal = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(literal)

FEW_EXAMPLES = settings(max_examples=40, deadline=None)
random_seeds = st.integers(0, 2**31)


def model(n: int, candidates: int, knowledge: float, confidence: float = 1.0, seed: int = 0):
    """Scores of a model whose answer stands out by `knowledge`, all multiplied by `confidence`; and the answers."""
    rng = np.random.default_rng(seed)
    answer = rng.integers(0, candidates, n)
    scores = rng.normal(size=(n, candidates))
    scores[np.arange(n), answer] += knowledge
    return confidence * scores - 20, answer


def ragged(n: int, seed: int, knowledge: float = 1.0):
    rng = np.random.default_rng(seed)
    rows = [rng.normal(scale=2, size=rng.integers(2, 7)) for _ in range(n)]
    answer = np.array([rng.integers(0, len(row)) for row in rows])
    for row, a in zip(rows, answer, strict=True):
        row[a] += knowledge
    return rows, answer


@pytest.mark.parametrize(("n", "knowledge"), [(7, 1.0), (24, 0.0), (24, 2.0), (25, 8.0), (30, -2.0)])
def test_bits_equal_the_literal_version(n, knowledge):
    rows, answer = ragged(n, seed=n, knowledge=knowledge)
    fold = list(range(n)) if n < 10 else list(np.random.default_rng(0).permutation(np.arange(n) % 5))
    expected = literal.bits([list(map(float, r)) for r in rows], list(answer), fold, largest=8.0)
    assert audit.bits(rows, answer) == pytest.approx(np.array(expected), abs=1e-5)


def test_fitted_beta_is_the_maximum_of_the_likelihood():
    scores, answer = model(300, 5, knowledge=1.0, confidence=3.0)
    gaps = scores - scores.max(axis=1, keepdims=True)
    beta = audit._fit(gaps, np.ones_like(gaps, bool), answer)
    losses = [literal.mean_loss(scores.tolist(), answer.tolist(), b) for b in (beta * 0.99, beta, beta * 1.01)]
    assert losses[1] < min(losses[0], losses[2])
    # Candidates drawn with unit spread and the answer raised by 1: the model's own odds are right at β·3 = 1.
    assert beta == pytest.approx(1 / 3, rel=0.2)


@FEW_EXAMPLES
@given(random_seeds, st.integers(2, 60), st.floats(-3, 5))
def test_a_constant_per_item_changes_nothing(seed, n, knowledge):
    rows, answer = ragged(n, seed, knowledge)
    shift = np.random.default_rng(seed + 1).normal(scale=30, size=n)
    moved = [row + s for row, s in zip(rows, shift, strict=True)]
    assert audit.bits(moved, answer) == pytest.approx(audit.bits(rows, answer), abs=1e-6)


@FEW_EXAMPLES
@given(random_seeds, st.integers(2, 60), st.floats(-3, 5), st.floats(1e-3, 1e3))
def test_a_common_factor_is_absorbed(seed, n, knowledge, factor):
    rows, answer = ragged(n, seed, knowledge)
    scaled = [factor * row for row in rows]
    assert audit.bits(scaled, answer) == pytest.approx(audit.bits(rows, answer), abs=1e-6)


@FEW_EXAMPLES
@given(random_seeds, st.integers(1, 60), st.floats(-3, 5))
def test_bits_never_exceed_certainty(seed, n, knowledge):
    rows, answer = ragged(n, seed, knowledge)
    assert np.all(audit.bits(rows, answer) <= np.log2([len(row) for row in rows]) + 1e-12)


def test_list_and_array_agree():
    scores, answer = model(40, 4, 1.0)
    assert np.array_equal(audit.bits(list(scores), answer), audit.bits(scores, answer))


def test_knowing_nothing_with_confidence_is_worth_about_nothing():
    scores, answer = model(400, 8, knowledge=0.0, confidence=20.0)
    raw = np.mean(literal.bits_at(scores.tolist(), answer.tolist(), 1.0))
    assert raw < -20
    assert abs(audit.bits(scores, answer).mean()) < 0.02


def test_a_model_that_ranks_the_answer_last_gets_no_bits():
    scores, answer = model(60, 4, knowledge=-9.0)
    assert audit.bits(scores, answer) == pytest.approx(np.zeros(60), abs=1e-12)


def test_knowing_everything_is_worth_all_bits():
    scores, answer = model(400, 8, knowledge=40.0)
    assert 2.98 < audit.bits(scores, answer).mean() <= 3


def test_one_wrong_item_among_many_right_costs_little():
    scores, answer = model(200, 8, knowledge=40.0)
    answer[17] = (answer[17] + 1) % 8
    found = audit.bits(scores, answer)
    # Unbounded, β would grow until this item costs hundreds of bits and drowns the 199 others.
    assert -20 < found[17] < -3 and found.mean() > 2.85


def test_impossible_candidates_count_but_get_nothing():
    scores, answer = model(40, 4, knowledge=-9.0)
    scores[np.arange(40), (answer + 1) % 4] = -np.inf
    # β is 0: even odds among the three that are left of four.
    assert audit.bits(scores, answer) == pytest.approx(np.full(40, math.log2(4 / 3)))


def test_ties_and_single_candidates():
    assert audit.bits(np.zeros((12, 3)), np.zeros(12, int)) == pytest.approx(np.zeros(12))
    assert audit.bits([np.array([-3.0])] * 4, np.zeros(4, int)) == pytest.approx(np.zeros(4))
    # The answer always shares first place: two of four candidates can be ruled out, one bit.
    tied = np.tile([0.0, 0.0, -5.0, -7.0], (40, 1))
    assert audit.bits(tied, np.zeros(40, int)) == pytest.approx(np.ones(40), abs=1e-6)


def test_one_item_alone_is_a_guess():
    assert audit.bits([np.array([-1.0, -9.0])], np.array([0])) == pytest.approx([0.0])


@pytest.mark.parametrize(
    ("scores", "answer", "message"),
    [
        ([], [], "no items"),
        ([[0.0, -1.0], [0.0, np.nan]], [0, 0], "item 1 .*NaN"),
        ([[0.0, -1.0], [0.0, -1.0], [0.0, -np.inf]], [0, 0, 1], "item 2's answer has an infinite"),
        ([[0.0, -1.0], [0.0]], [0, 1], "item 1's answer is 1, but it has 1"),
        ([[0.0, -1.0], []], [0, 0], "item 1's answer is 0, but it has 0"),
        ([[0.0, -1.0], [[0.0], [1.0]]], [0, 0], "item 1's log-probabilities"),
        ([[0.0, -1.0]], [0, 1], "must be 1 integers"),
        ([[0.0, -1.0]], [0.5], "integers"),
        (np.zeros(3), [0, 0, 0], r"\(items, C\)"),
    ],
)
def test_bits_refuses(scores, answer, message):
    with pytest.raises(ValueError, match=message):
        audit.bits(scores, np.array(answer, dtype=int if not answer or isinstance(answer[0], int) else float))


def test_bits_refuses_a_single_fold():
    with pytest.raises(ValueError, match="folds"):
        audit.bits(np.zeros((20, 2)), np.zeros(20, int), folds=1)


@pytest.mark.parametrize("factor", [4.0, 3.0])
def test_a_student_made_less_sure_has_learnt_nothing(factor):
    scores, answer = model(120, 8, knowledge=0.3, confidence=3.0)
    teacher, _ = model(120, 8, knowledge=6.0)
    student = audit.bits(scores, answer)
    found = audit.share(audit.bits(scores / factor, answer), student, audit.bits(teacher, answer))
    assert found.missing is None and found.value == pytest.approx(0, abs=1e-6)
    assert found.lo <= 0 <= found.hi


def test_a_student_made_less_sure_and_a_little_noisier_has_learnt_nothing():
    scores, answer = model(120, 8, knowledge=0.0, confidence=8.0)
    teacher, _ = model(120, 8, knowledge=6.0)
    noise = np.random.default_rng(5).normal(scale=0.5, size=scores.shape)
    found = audit.share(audit.bits(scores / 4 + noise, answer), audit.bits(scores, answer), audit.bits(teacher, answer))
    assert found.lo <= 0 <= found.hi and abs(found.value) < 0.05


@FEW_EXAMPLES
@given(random_seeds, st.floats(0, 1))
def test_a_planted_share_is_found(seed, arrived):
    rng = np.random.default_rng(seed)
    student = rng.normal(0, 0.3, 80)
    teacher = student + 2 + rng.normal(0, 0.5, 80)
    found = audit.share(student + arrived * (teacher - student), student, teacher, resamples=300)
    fitted = 1 / (4 * 80 * np.log(2)) / (teacher - student).mean() if arrived * (teacher - student).max() > 1e-9 else 0
    assert (found.value, found.lo, found.hi) == pytest.approx((arrived, arrived - fitted, arrived + fitted), abs=1e-7)
    three = audit.share(np.tile(teacher, (3, 1)), student, teacher, resamples=300)
    assert (three.value, three.lo, three.hi) == pytest.approx((1, 1, 1), abs=3e-3)


def test_share_covers_and_widens_with_seeds():
    rng = np.random.default_rng(9)
    covered = 0
    for trial in range(400):
        student, teacher = rng.normal(0, 1, 60), rng.normal(2, 1, 60)
        found = audit.share(rng.normal(0.8, 1, 60), student, teacher, seed=trial, resamples=500)
        covered += found.lo <= 0.4 <= found.hi
    assert 0.92 <= covered / 400 <= 0.98
    method = np.array([[0.2], [0.8], [1.4]]) + rng.normal(0, 0.1, (3, 60))
    several, mean = (audit.share(m, student, teacher) for m in (method, method.mean(axis=0)))
    assert several.value == pytest.approx(mean.value)
    assert several.hi - several.lo > 1.3 * (mean.hi - mean.lo)


def test_share_is_missing_where_there_is_nothing_to_transfer():
    rng = np.random.default_rng(2)
    student = rng.normal(0, 1, 50)
    same = audit.share(student + 1, student, student)
    noise = audit.share(student + 1, student, rng.normal(0, 1, 50))
    worse = audit.share(student + 1, student, student - 2)
    single = audit.share(np.ones(1), np.zeros(1), np.ones(1))
    for found in (same, noise, worse, single):
        assert (found.value, found.lo, found.hi) == (None, None, None) and found.missing
    assert "may be 0" in same.missing and "may be 0" in noise.missing and "student knows more" in worse.missing


def test_share_refuses():
    for arguments, message in (
        ((np.zeros(3), np.zeros(4), np.zeros(4)), "same items"),
        ((np.zeros(3), np.zeros(3), np.zeros((1, 3))), "same items"),
        ((np.zeros(0), np.zeros(0), np.zeros(0)), "no items"),
        ((np.array([np.nan]), np.zeros(1), np.ones(1)), "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            audit.share(*arguments)
