from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr

from paraknow import config, data, models
from paraknow.locate import agreement as agree
from paraknow.locate.located import locate
from paraknow.locate.sensitivity import coarse, sensitivity


def seeds(tokenizer, count):
    return data.encode_all(data.load_task("demo:people").train[:count], tokenizer, 64, "seeds").items


def test_halves_are_the_sums_over_each_half(tiny_pair):
    teacher, _ = tiny_pair
    items = seeds(teacher.tokenizer, 5)
    both, first, second = (sensitivity(teacher, part, halves=True) for part in (items, items[:2], items[2:]))
    for place, halves in both.halves.items():
        torch.testing.assert_close(halves[0], coarse(first.maps[place]), rtol=1e-4, atol=1e-9)
        torch.testing.assert_close(halves[1], coarse(second.maps[place]), rtol=1e-3, atol=1e-7)
    assert sensitivity(teacher, items[:1], halves=True).halves == sensitivity(teacher, items).halves == {}


@pytest.mark.parametrize("shape", [(7, 5), (600, 3), (1025, 513), (512, 512)])
def test_coarse_keeps_the_sum_and_the_place(shape):
    matrix = torch.rand(shape)
    small = coarse(matrix)
    assert small.shape == tuple(min(512, side) for side in shape)
    torch.testing.assert_close(small.sum(), matrix.sum())
    rows, cols = ([i * min(512, n) // n for i in range(n)] for n in shape)
    literal = torch.zeros(small.shape)
    for (i, r), (j, c) in itertools.islice(itertools.product(enumerate(rows), enumerate(cols)), 2000):
        literal[r, c] += matrix[i, j]
    filled = literal > 0
    assert bool((small[filled] >= literal[filled] - 1e-5).all())
    assert small.data_ptr() != matrix.data_ptr()


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_rank_correlations_are_scipys(seed):
    draw = np.random.default_rng(seed)
    one, other = draw.integers(0, 6, (3, 9)).astype(float), draw.normal(size=(3, 9))
    for k, value in enumerate(agree.rank_correlations(one, other)):
        expected = spearmanr(one[k], other[k]).statistic
        assert np.isnan(value) if np.isnan(expected) else value == pytest.approx(expected)
        for row in (one[k], other[k]):
            assert np.array_equal(agree.ranks(torch.from_numpy(row)).numpy(), rankdata(row))


def table(scores: np.ndarray) -> pd.DataFrame:
    rows = [
        {"seed": s, "layer": layer, "module": "q", "sum": value}
        for s, row in enumerate(scores)
        for layer, value in enumerate(row)
    ]
    return pd.DataFrame(rows)


def test_split_half_tells_signal_from_noise():
    draw = np.random.default_rng(0)
    same = np.tile(np.arange(1.0, 9.0), (16, 1)) + 0.01 * draw.random((16, 8))
    value, lo, hi, n = agree.split_half(table(same), 8)
    assert value == pytest.approx(1.0) and lo == hi == pytest.approx(1.0) and n == 16
    value, lo, hi, _ = agree.split_half(table(draw.random((16, 8))), 8)
    assert lo < 0 < hi and abs(value) < 0.7
    assert np.isnan(agree.split_half(table(same[:1]), 8)[0])


def test_overlap_of_layers_by_counting():
    assert agree.overlap_of_layers([0, 1], [2, 3], 6)[0] == 0.0
    value, chance = agree.overlap_of_layers([0, 1, 2], [1, 2, 3], 6)
    assert value == 0.5
    choices = list(itertools.combinations(range(6), 3))
    literal = [len(set(a) & set(b)) / len(set(a) | set(b)) for a in choices for b in choices]
    assert chance == pytest.approx(np.mean(literal))
    assert agree.overlap_of_layers([0, 1], [0, 1], 2) == (1.0, pytest.approx(1.0))


def test_overlap_of_blocks_by_counting():
    one, other = torch.zeros(8, 8), torch.zeros(8, 8)
    one[0:4, 0:4], other[1:5, 2:6] = 1, 1
    value, chance = agree.overlap_of_blocks(one, other, (0.5, 0.5), "window")
    assert value == pytest.approx(6 / 26)  # 3 × 2 shared cells of 16 + 16 − 6
    corners = list(itertools.product(range(5), repeat=2))
    shared = [max(0, 4 - abs(a - c)) * max(0, 4 - abs(b - d)) for a, b in corners for c, d in corners]
    assert chance == pytest.approx(np.mean([s / (32 - s) for s in shared]), rel=0.1)
    value, _ = agree.overlap_of_blocks(one, other, (0.5, 0.5), "rows_columns")
    assert value == pytest.approx(6 / 26)
    assert agree.overlap_of_blocks(one, one, (0.5, 0.5), "window")[0] == 1.0


def test_several_tasks_and_every_choice(tiny_pair):
    teacher, student = tiny_pair
    tasks = [data.load_task(f"demo:{name}") for name in ("people", "sum")]
    found = locate(teacher, student, tasks, config.Locate(seeds=4, max_length=64))
    about = found.agreement
    assert list(about.columns) == agree.COLUMNS
    assert set(about.about) == {"split_half", "tasks", "first_order"} and set(about.model) == {"teacher", "student"}
    pair = about[(about.about == "tasks") & (about.model == "teacher")]
    assert set(pair.what) == {"layer_scores", "chosen_layers", "map", "block"}
    assert set(pair.task) == {"demo:people"} and set(pair.other) == {"demo:sum"}
    blocks = about[about.what == "block"]
    assert blocks.value.between(0, 1).all() and blocks.chance.between(0, 1).all()
    assert len(blocks[blocks.about == "split_half"]) == 2 * len(found.blocks)  # both tasks, every block


@pytest.mark.parametrize("by", ["sensitivity", "first", "last", "even", "random", "matched"])
@pytest.mark.parametrize("structure", ["window", "rows_columns", "random_window", "random_entries"])
def test_every_layer_choice_and_structure(checkpoint, by, structure):
    teacher = models.load(str(checkpoint("llama", num_hidden_layers=3)), device="cpu")
    student = models.load(str(checkpoint("llama", seed=1, hidden_size=16, intermediate_size=24)), device="cpu")
    tasks = [data.load_task("demo:people")]
    few = config.Similarity(examples=40, tokens=2)
    choice = config.Locate(seeds=2, layers=by, structure=structure, neurons="none", max_length=64)
    found = locate(teacher, student, tasks, choice, similarity=few)
    chosen = found.layers[found.layers.chosen]
    assert list(chosen.student_layer) == [0, 1] and sorted(chosen.layer) == list(chosen.layer)
    assert len(found.blocks) == 14 and {b.shape for b in found.blocks if b.module == "up"} == {(24, 16)}
    assert len(found.stitching) == (6 if by == "matched" else 0)
    if by == "matched":
        paired = found.stitching[found.stitching.paired].sort_values("student_layer")
        assert list(paired.teacher_layer) == list(chosen.layer)
    has_blocks = (found.agreement.what == "block").any()
    assert has_blocks == (not structure.startswith("random"))
