"""Similarity layer by layer: nearest layers, one pair, all modules in one range."""

from __future__ import annotations

import numpy as np
import pytest

from paraknow.figures import layerwise, similarity
from tests.pages import tables

NAMES = {"teacher": "big", "student": "small"}


def residual():
    table = tables.cka()
    return table[(table.task == "demo:people") & (table.module == "residual")]


def test_nearest_layer_with_interval_null_and_runner_up() -> None:
    found = layerwise.nearest(residual(), "teacher", "untrained")
    assert found.match.tolist() == [0, 1] and found.second.tolist() == [1, 0]
    assert found.cka.tolist() == pytest.approx([0.9, 0.9]) and found.second_cka.tolist() == pytest.approx([0.6, 0.6])
    assert found.held.tolist() == pytest.approx([0.3, 0.3]) and found.lo.tolist() == pytest.approx([0.85, 0.85])
    hollow = residual()
    hollow.loc[hollow.student_layer == 1, "cka"] = np.nan
    found = layerwise.nearest(hollow, "student")
    assert found.match.isna().tolist() == [False, True]
    figure = layerwise.nearest_chart(found, "student", NAMES, "residual", "null", 80)
    assert list(figure.layout.yaxis.ticktext) == ["0 → 0"] and "n = 80" in figure.layout.title.subtitle.text


def test_every_module_has_a_panel_in_one_range() -> None:
    table = tables.cka()
    figure = layerwise.small_multiples(table[table.task == "demo:people"], NAMES, "q")
    assert len(figure.data) == 10 and {t.coloraxis for t in figure.data} == {"coloraxis"}
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 1)
    assert "▸ q" in {a.text for a in figure.layout.annotations}


def test_a_pairs_weights_stand_beside_what_is_expected() -> None:
    table = tables.weights()
    figure = layerwise.cosines(table[table.student_layer == 1], NAMES, 1)
    expected = next(t for t in figure.data if t.name == "expected by arithmetic")
    assert set(expected.x) == {-0.51} and list(expected.y) == ["q", "down"]
    band = next(t for t in figure.data if t.name.startswith("random"))
    assert band.error_x.array[0] == pytest.approx(0.04)
    row = tables.stitching().iloc[0].copy()
    figure = layerwise.stitched(row, NAMES)
    assert figure.data[0].error_x.array[0] == pytest.approx(0.05)
    row["r2"] = np.nan
    assert layerwise.stitched(row, NAMES).data[0].x == (None,)


def test_hovering_tells_the_interval() -> None:
    chart = similarity.pair_map(
        residual(), "cka", NAMES, "CKA", note="n = 80", bounds=("lo", "hi"), beside={"null": "permuted"}
    ).to_dict()
    first = next(iter(chart["datasets"].values()))[0]
    assert first["said"] == "0.900 (0.850 to 0.950)" and first["null"] == "0.001"
    assert chart["title"]["subtitle"] == "n = 80"
