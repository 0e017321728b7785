"""Charts of similarity, weights and neurons show what they are given; missing is missing; names are text."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from paraknow.figures import neurons, similarity, theme, weights
from tests.pages import tables

NAMES = {"teacher": "big <b>one</b>", "student": "small $x$"}


def texts(figure: go.Figure) -> str:
    return str(figure.layout.title.text) + str(figure.layout.title.subtitle.text) + str(figure.layout.xaxis.title.text)


def residual():
    table = tables.cka()
    return table[(table.task == "demo:people") & (table.module == "residual")]


def test_maps_carry_both_names_and_the_pairing():
    spec = similarity.pair_map(residual(), "cka", NAMES, "CKA", pairs={(0, 0), (1, 1)}, chosen=(0, 1)).to_dict()
    cells, *rings = spec["layer"]  # no cell is missing, so no layer of crosses is there
    assert "small $x$" in cells["encoding"]["x"]["title"] and "big <b>one</b>" in cells["encoding"]["y"]["title"]
    scale = cells["encoding"]["color"]["scale"] if "scale" in cells["encoding"]["color"] else str(spec)
    assert "cividis" in str(scale)
    values = next(iter(spec["datasets"].values()))
    assert [v["paired"] for v in values] == [True, False, False, True] and not any(v["missing"] for v in values)
    assert len(rings) == 2
    assert [p["name"] for p in spec["params"]] == [similarity.SELECTION]
    still = similarity.pair_map(residual(), "cka", NAMES, "CKA", clickable=False).to_dict()
    assert "params" not in still


def test_missing_cells_are_marked_not_coloured():
    table = residual().assign(cka=[0.5, np.nan, 0.2, 0.9])
    spec = similarity.pair_map(table, "cka", NAMES, "CKA").to_dict()
    assert spec["layer"][-1]["mark"]["shape"] == "cross"
    values = next(iter(spec["datasets"].values()))
    assert [v["missing"] for v in values] == [False, True, False, False] and values[1]["cka"] is None
    assert similarity.ABSENT in str(spec["layer"][0]["encoding"]["color"])
    assert spec["layer"][0]["mark"]["invalid"] == "show"  # or Vega draws nothing there
    assert spec["layer"][-1]["mark"]["shape"] == "cross"
    assert values[1]["said"].startswith("undefined") and values[0]["said"] == "0.500"


def test_differences_are_diverging_around_zero():
    table = residual().assign(difference=[-0.2, 0.0, 0.1, 0.2])
    spec = str(similarity.pair_map(table, "difference", NAMES, "d", (-0.2, 0.2), True).to_dict())
    assert "'domain': [-0.2, 0, 0.2]" in spec and similarity.DIVERGING[0] in spec and "cividis" not in spec


def test_one_pair_shows_all_that_it_is_held_against():
    row = residual().iloc[0]
    figure = similarity.one_pair(row, NAMES, "residual")
    assert [t.y[0] for t in figure.data] == [
        "CKA",
        *[similarity.NULLS[k] for k in ("untrained", "null_position", "null")],
    ]
    assert figure.data[0].error_x.array[0] == pytest.approx(0.05)
    assert "&lt;b&gt;" in texts(figure) and "&#36;x&#36;" in texts(figure) and "n = 80" in texts(figure)
    row = row.copy()
    row["untrained"] = row["lo"] = np.nan
    figure = similarity.one_pair(row, NAMES, "residual")
    assert figure.data[1].x[0] is None and figure.data[0].error_x.array is None


def test_modules_in_order_with_their_nulls():
    table = tables.cka()
    own = table[table.task == "demo:people"]
    figure = similarity.modules(own, NAMES, {(0, 0), (1, 1)})
    assert [t.name for t in figure.data][:2] == ["mean over all layer pairs", "mean over the layer pairing"]
    assert list(figure.data[0].y) == list(similarity.MODULES) and figure.data[0].x[0] == pytest.approx(0.75)
    assert figure.data[1].x[0] == pytest.approx(0.9) and len(figure.data) == 5
    assert len(similarity.modules(own.assign(untrained=np.nan), NAMES, set()).data) == 3


def test_paired_layers_with_intervals_beside_shuffled():
    figure = similarity.stitched_pairs(tables.stitching(), NAMES)
    assert list(figure.data[0].y) == ["0 → 0", "1 → 1"] and list(figure.data[0].x) == [0.8, 0.8]
    assert figure.data[1].name == "shuffled" and "n = 20" in texts(figure)
    assert len(similarity.stitched_pairs(tables.stitching().assign(paired=False), NAMES).data[0].x) == 0


@pytest.mark.parametrize("quantity", list(weights.QUANTITIES))
def test_geometry_has_a_mark_per_layer_and_what_is_expected(quantity):
    figure = weights.geometry(tables.weights(), quantity, NAMES)
    marks = [t for t in figure.data if t.mode == "markers"]
    assert len(marks) == 3 and all(len(t.x) == 4 for t in marks)
    assert len({t.marker.symbol for t in marks}) == 3  # told apart without colour
    lines = [t for t in figure.data if t.mode == "lines"]
    assert bool(lines) == (weights.QUANTITIES[quantity][1] is not None)
    assert "&lt;b&gt;" in texts(figure)
    missing = weights.geometry(tables.weights().assign(**{quantity: np.nan}), quantity, NAMES)
    assert all(v is None for t in missing.data if t.mode == "markers" for v in t.y)


def test_marks_of_layers_stand_side_by_side_in_order():
    table = tables.weights()
    other = table.assign(student_layer=table.student_layer + 2)
    for number, own in ((2, table), (4, pd.concat([other, table]))):
        marks = next(t for t in weights.geometry(own, "cos", NAMES).data if t.mode == "markers")
        placed = sorted((row[2], x) for row, x in zip(marks.customdata, marks.x, strict=True) if row[0] == "q")
        xs = [x for _, x in placed]
        assert len(set(xs)) == number and xs == sorted(xs) and max(xs) - min(xs) < 0.26
    assert theme.side_by_side([3, 3], 0.2) == {3: 0.0} and theme.side_by_side([], 0.2) == {}


def test_a_tall_figure_keeps_its_legend_near():
    pairs = [{"teacher_layer": k, "student_layer": k, "r2": 0.5, "lo": 0.4, "hi": 0.6, "null": 0.0} for k in range(40)]
    figure = similarity.stitched_pairs(pd.DataFrame(pairs).assign(n=9, paired=True), NAMES)
    assert figure.layout.legend.yref == "container" and figure.layout.height < 1100


def test_spectra_of_both_models():
    figure = weights.spectra(tables.spectra(), "q", NAMES)
    lines = [t for t in figure.data if t.mode == "lines" and t.name]
    assert len(lines) == 2 and lines[0].line.dash != lines[1].line.dash and "(6 × 8)" in lines[0].name
    assert len(weights.spectra(tables.spectra(), "nothing", NAMES).data) == 0


def test_sublayers_with_spread_and_sums():
    table = tables.attribution()
    own = table[table.model == "teacher"]
    figure = neurons.sublayers(own, NAMES["teacher"])
    bars = [t for t in figure.data if t.type == "bar"]
    assert [b.name for b in bars] == ["attention", "FFN"] and list(bars[0].y) == [1.5, 1.5]
    assert list(figure.data[1].y) == [2.0, 2.0] and "n = 2 seed" in texts(figure)
    assert bars[0].marker.pattern.shape != bars[1].marker.pattern.shape


def test_overlaps_stand_beside_chance():
    table = tables.agreement()
    figure = neurons.overlaps(table[table.about == "split_half"], "Do <they>?", "note")
    assert [t.name for t in figure.data] == [
        "overlap of the chosen blocks",
        "expected by chance",
        "rank correlation of the maps",
        "expected by chance",
    ]
    assert set(figure.data[0].y) == {0.4} and figure.data[1].y[0] == pytest.approx(0.3)
    assert "&lt;they&gt;" in texts(figure)
