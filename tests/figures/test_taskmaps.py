"""Two tasks held against each other: differences, and overlaps beside what chance would give."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraknow.figures import heatmaps, prompts, taskmaps

NAMES = {"teacher": "big", "student": "small"}


def cells(shares: dict[str, list[float]], model: str = "teacher") -> pd.DataFrame:
    places = [(0, "q"), (0, "k"), (1, "q"), (1, "k")]
    rows = [(t, model, *p, v) for t, values in shares.items() for p, v in zip(places, values, strict=True)]
    return pd.DataFrame(rows, columns="task model layer module share".split())


def test_the_difference_is_share_minus_share() -> None:
    table = cells({"a": [0.4, 0.3, 0.2, 0.1], "b": [0.1, 0.3, 0.2, 0.4]})
    found = taskmaps.difference(table, "a", "b").set_index(["layer", "module"]).difference
    assert found[(0, "q")] == pytest.approx(0.3) and found[(1, "k")] == pytest.approx(-0.3)
    assert found[(0, "k")] == 0 and taskmaps.bound(found.reset_index()) == pytest.approx(0.3)
    only = taskmaps.difference(table[table.task == "a"], "a", "b")
    assert only.difference.isna().all() and taskmaps.bound(only) == 1e-3
    drawn, sides = found.reset_index().assign(one=0, other=0), {"one": "a", "other": "b"}
    (cells_,) = taskmaps.difference_map(drawn, sides, 0.3, "big", "t", "n").to_dict()["layer"]
    assert cells_["encoding"]["color"]["scale"]["domain"] == [-0.3, 0, 0.3]
    assert [t["title"] for t in cells_["encoding"]["tooltip"]][2:4] == ["share, a", "share, b"]


def test_a_prompt_s_map_is_as_low_as_others_and_says_how_many_it_is_of() -> None:
    def shares(layers: int, nudge: float = 0.0) -> pd.DataFrame:
        rows = [("teacher", k, "q", 1 / layers + nudge * (-1) ** k) for k in range(layers)]
        return pd.DataFrame(rows, columns="model layer module share".split())

    for layers, signs in ((80, False), (4, True)):
        table = prompts.differences(shares(layers, 1e-12), shares(layers))
        sides = {"prompt": "this prompt", "task": "facts"}
        spec = taskmaps.difference_map(table, sides, taskmaps.bound(table), "big", "t", prompts.NOTE, True).to_dict()
        assert spec["height"]["step"] == heatmaps.row_height(table) and spec["title"]["subtitle"] == prompts.NOTE
        assert spec["layer"][0]["encoding"]["color"]["scale"]["domain"] == [-1e-3, 0, 1e-3]  # rounding has no colour
        assert {row["sign"] for row in next(iter(spec["datasets"].values()))} == {""}
        assert (len(spec["layer"]) == 2) is signs
    one = prompts.share_map(shares(4), (0.1, 0.5), "big").to_dict()
    assert "n = 1" in one["title"]["subtitle"]


@given(st.integers(2, 7), st.floats(0.05, 0.9))
def test_chance_is_the_mean_over_all_choices(n: int, top: float) -> None:
    scores = np.arange(n, dtype=float)
    found = taskmaps.in_common(scores, scores, top)
    k = found["k"]
    assert found["share"] == 1 and found["n"] == n
    best = set(range(n - k, n))
    mean = np.mean([len(best & set(other)) / k for other in itertools.combinations(range(n), k)])
    assert found["chance"] == pytest.approx(mean)
    assert found["chance_lo"] <= found["chance"] <= found["chance_hi"]


def test_opposite_orders_have_nothing_in_common() -> None:
    assert taskmaps.in_common(np.arange(40.0), -np.arange(40.0))["common"] == 0


def test_matrices_and_neurons_are_counted_for_each_model() -> None:
    table = pd.concat([cells({"a": [4, 3, 2, 1.0], "b": [4, 1, 2, 3.0]}, m) for m in NAMES])
    rows = [(t, "teacher", 0, "ffn", k, float(k)) for t in "ab" for k in range(30)]
    neurons = pd.DataFrame(rows, columns="task model layer kind neuron score".split())
    found = taskmaps.overlap(table, neurons, "a", "b")
    assert found[["model", "of", "common", "k"]].to_numpy().tolist() == [
        ["teacher", "matrices", 1, 1],
        ["teacher", "FFN neurons", 3, 3],
        ["student", "matrices", 1, 1],
    ]
    assert len(taskmaps.overlap(table, pd.DataFrame(), "a", "b")) == 2
    figure = taskmaps.overlap_chart(found, NAMES, "a", "b")
    assert "3 of 3" in figure.data[1].text and "small: matrices" in figure.data[1].y
