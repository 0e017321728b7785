"""Figures of the ladder show what they are given: shares, controls, what lies outside, what is missing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from paraknow.demo.rungs import RUNGS
from paraknow.figures import ladder, likeness, steps, theme
from tests.pages import tables

NAMES = {"zero": "Nothing moved", "noise": "Noise <b>of</b> $size$"}
FOUND = tables.calibration()
ROWS, POOLED = ladder.tables(FOUND)


def trace(figure: go.Figure, name: str) -> go.Scatter:
    (found,) = [t for t in figure.data if t.name == name]
    return found


def test_every_rung_has_a_place_from_kin_to_strangers():
    assert set(ladder.ORDER) == set(RUNGS) and len(ladder.ORDER) == len(RUNGS)
    assert ladder.ordered(["equal", "odd", "stranger", "rotated", "clone", "clone"]) == [
        "clone",
        "rotated",
        "stranger",
        "equal",
        "odd",
    ]
    figure = ladder.shares(ROWS, POOLED, NAMES)
    assert list(figure.layout.xaxis.ticktext) == ["clone", "sibling", "stranger"]
    looks = ladder.rung_styles()
    assert len({(s.color, s.symbol) for s in looks.values()}) == len(RUNGS)
    assert len({looks[r].color for r in ("clone", "sibling", "stranger", "equal")}) == 4


def test_parts_of_a_calibration():
    parts = POOLED.drop_duplicates("model").set_index("model").part
    assert parts["teacher"] == parts["student"] == "pair" and parts["oracle"] == parts["zero"] == "reference"
    assert parts["transport+noise"] == "control" and parts["transport-widen-16"] == "method"
    assert ladder.methods(list(POOLED.model)) == ["transport", "transport-widen-16", "transport-widen-64", "seeking"]


def test_marks_stand_at_their_shares_with_intervals():
    figure = ladder.shares(ROWS, POOLED, NAMES)
    own = trace(figure, "transport")
    assert list(own.y) == pytest.approx([0.4, 0.7, 0.0]) and own.customdata[0].startswith("transport on clone: 0.40 (")
    row = POOLED[(POOLED.rung == "clone") & (POOLED.model == "transport")].iloc[0]
    assert own.error_y.array[0] == pytest.approx(row.hi - 0.4) and own.error_y.arrayminus[0] == pytest.approx(
        0.4 - row.lo
    )
    assert list(trace(figure, "the known answer").y) == pytest.approx([1.0])
    assert sorted({s.y0 for s in figure.layout.shapes if s.y0 == s.y1}) == [0.0, 1.0]
    assert "over up to 3 worlds" in figure.layout.title.subtitle.text and "n = 90" in figure.layout.title.subtitle.text


def test_single_worlds_are_faint_and_controls_muted_beside_their_method():
    figure = ladder.shares(ROWS, POOLED, NAMES)
    faint = [t for t in figure.data if t.showlegend is False and t.mode == "markers"]
    assert {t.marker.opacity for t in faint} == {0.35} and len(faint[0].y) == 9
    noise = next(t for t in figure.data if t.name and t.name.startswith("control: Noise"))
    assert "&lt;b&gt;" in noise.name and "&#36;" in noise.name and noise.marker.opacity < 1
    assert noise.marker.color in {s.color for s in theme.CONTROLS}
    own = trace(figure, "transport")
    xs = [x for x, said in zip(noise.x, noise.customdata, strict=True) if said.startswith("transport+noise")]
    assert all(0 < x - at < 0.1 for x, at in zip(xs, own.x, strict=True))


def test_one_world_says_that_intervals_are_over_items():
    rows, pooled = ladder.tables(tables.calibration(("0",)))
    figure = ladder.shares(rows, pooled, NAMES)
    assert "over items" in figure.layout.title.subtitle.text
    assert not [t for t in figure.data if t.showlegend is False and t.mode == "markers"]


def test_what_lies_far_below_is_an_arrow_with_its_number():
    noise = next(t for t in ladder.shares(ROWS, POOLED, NAMES).data if t.name and "Noise" in t.name)
    at = next(k for k, said in enumerate(noise.customdata) if said.startswith("transport+noise on sibling"))
    assert noise.text[at] == "−1.2" and "arrow-down" in noise.marker.symbol[at] and -0.5 < noise.y[at] < -0.2
    assert np.isnan(noise.error_y.array[at])  # no bar
    whole = ladder.shares(ROWS, POOLED, NAMES, whole=True)
    noise = next(t for t in whole.data if t.name and "Noise" in t.name)
    assert noise.y[at] == pytest.approx(-1.2) and noise.text[at] == "" and whole.layout.yaxis.range[0] < -1.2


def test_missing_shares_are_said_and_not_drawn():
    figure = ladder.shares(ROWS, POOLED, NAMES)
    assert trace(figure, "seeking").y[2] is None
    said = [a.hovertext for a in figure.layout.annotations if a.text == "missing"]
    assert "seeking on stranger: missing (no surplus)" in said and len(said) == 3


def test_methods_can_be_left_out_and_keep_their_look():
    every, some = (ladder.shares(ROWS, POOLED, NAMES, shown=s) for s in ((), ("seeking",)))
    names = [t.name for t in some.data]
    assert "seeking" in names and "transport" not in names and "the known answer" in names
    assert not any(
        "transport+" in str(c) for t in some.data for c in (t.customdata if t.customdata is not None else ())
    )
    assert trace(every, "seeking").marker.color == trace(some, "seeking").marker.color


def test_guessing_is_where_a_student_without_bits_would_be():
    assert ladder.guessing(ROWS) == pytest.approx({"clone": 0.0, "sibling": -1.0, "stranger": 0.0})
    assert ladder.guessing(ROWS.drop(columns="bits")) == {}
    line = trace(ladder.shares(ROWS, POOLED, NAMES), "guessing")
    assert set(line.y) == {0.0, None}  # the sibling's lies below the range
    assert -1.0 in trace(ladder.shares(ROWS, POOLED, NAMES, whole=True), "guessing").y


def test_a_panel_per_measure_in_one_range():
    span = likeness.share_span(ROWS, "transport")
    about = next(p for p in FOUND["predictors"] if p["method"] == "transport" and p["predictor"] == "cka")
    figure = likeness.predictor(ROWS, "transport", "cka", about["correlation"], about["n"], span)
    assert figure.layout.title.text == "CKA" and "n = 9 pairs" in figure.layout.title.subtitle.text
    assert "−0.32" in figure.layout.title.subtitle.text and list(figure.layout.yaxis.range) == list(span)
    assert [t.name for t in figure.data] == ["clone", "sibling", "stranger"]
    assert list(figure.data[0].x) == pytest.approx([0.9, 0.8, 0.7]) and len({t.marker.symbol for t in figure.data}) == 3
    assert "share 0.70" in likeness.describe(ROWS, "transport", "cka", None)


@pytest.mark.parametrize("name", ["kinship", "fit_same"])
def test_a_measure_without_values_is_missing(name):
    figure = likeness.predictor(ROWS, "transport", name, None, 0, (0.0, 1.0))
    assert [a.text for a in figure.layout.annotations] == ["missing"] and {x for t in figure.data for x in t.x} == {
        None
    }
    assert f"correlation {theme.MISSING}, n = 0 pairs" in figure.layout.title.subtitle.text
    assert "missing: no pair" in likeness.describe(ROWS, "transport", name, None)


def test_doses_are_read_from_labels():
    found = likeness.doses(POOLED)
    assert found.series.unique().tolist() == ["transport-widen"] and sorted(found.neurons.unique()) == [16, 64]
    figure = likeness.dose(found)
    clone = next(t for t in figure.data if t.name == "transport-widen on clone")
    assert list(clone.x) == [16, 64] and list(clone.y) == pytest.approx([0.1, 0.3])
    assert figure.data[-1].name.endswith("stranger: missing") and list(figure.data[-1].y) == [None, None]
    assert figure.layout.xaxis.type == "log" and list(figure.layout.xaxis.ticktext) == ["16", "64"]


@pytest.mark.parametrize(
    ("label", "neurons", "series"),
    [
        ("transport-widen-64", "64", "transport-widen"),
        ("transport-64-widen", "64", "transport-widen"),
        ("transport-replace-8-ridge", "8", "transport-replace-ridge"),
        ("transport-8192", None, None),
        ("transport-widen", None, None),
        ("distillation-2.0", None, None),
    ],
)
def test_only_numbers_of_neurons_are_doses(label, neurons, series):
    rows = [{"rung": "clone", "model": label, "share": 0.1, "lo": 0.0, "hi": 0.2, "part": "method"}]
    if neurons:
        rows.append({**rows[0], "model": label.replace(neurons, "4096")})
    found = likeness.doses(pd.DataFrame(rows))
    assert found.series.unique().tolist() == ([series] if series else [])


def test_the_chosen_step_is_ringed_and_a_gap_stays_one():
    figure = steps.scores(tables.steps().assign(seed=0), "LaTen <i>")
    line, ring = figure.data
    assert list(line.y) == [2.0, 1.5, 1.2, None] and (list(ring.x), list(ring.y)) == ([2], [1.2])
    assert "&lt;i&gt;" in figure.layout.title.subtitle.text


def test_the_figure_in_words():
    said = ladder.describe(POOLED)
    assert "clone: zero 0.00" in said and "seeking –" in said and "transport+noise −1.20" in said
