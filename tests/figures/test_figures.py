"""Figures show what they are given: values, intervals, missing as missing; colours can be told apart."""

from __future__ import annotations

import base64
import json

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from paraknow.figures import deltas, heatmaps, layers, losses, tables, theme

NAMES = {"teacher": "big", "student": "small"}


def row(model: str, group: str = "shown", accuracy: float = 0.5, delta: float | None = 0.4, **more) -> dict:
    return {
        "model": model,
        "suite": "facts.jsonl",
        "group": group,
        "n": 40,
        "accuracy": accuracy,
        "ci": [accuracy - 0.1, accuracy + 0.1],
        "delta": delta,
        "delta_ci": None if delta is None else [delta - 0.2, delta + 0.1],
        "against": [],
        "claim": None,
        "share": None,
        "share_ci": None,
        "share_missing": "the teacher's surplus may be 0",
        "loss": 1.5,
        **more,
    }


ROWS = [
    row("teacher", accuracy=1.0, delta=0.9),
    row("student", accuracy=0.1, delta=None),
    row("seeking", claim=False, against=[{"control": "zero"}, {"control": "seeking+noise"}]),
    row("pissa"),
    row("zero", accuracy=0.1, delta=0.0),
    row("seeking+noise"),
]


def luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


ALL_STYLES = [theme.TEACHER, theme.STUDENT, theme.EXAMINED, *theme.BASELINES, *theme.CONTROLS]


@pytest.mark.parametrize("background", [theme.LIGHT, theme.DARK])
def test_every_colour_stands_out_from_both_backgrounds(background: str) -> None:
    for color in [*(s.color for s in ALL_STYLES), theme.NEUTRAL, theme.BLOCK]:
        assert contrast(color, background) >= 3, color


def test_models_differ_without_colour_too() -> None:
    symbols = [s.symbol for s in ALL_STYLES]
    assert len(set(symbols)) == len(symbols)


def test_kinds_come_from_the_rows() -> None:
    assert tables.kinds(ROWS) == {
        "teacher": "teacher",
        "student": "student",
        "seeking": "examined",
        "pissa": "baseline",
        "zero": "control",
        "seeking+noise": "control",
    }


def test_frame_keeps_missing_values_missing() -> None:
    frame = tables.deltas_frame(ROWS, {"zero": "Nothing moved"})
    student = frame[frame.model == "student"].iloc[0]
    assert np.isnan(student.delta) and np.isnan(student.delta_lo) and frame.share.isna().all()
    assert frame[frame.model == "zero"].title.item() == "Nothing moved (control)"


def test_panel_draws_intervals_and_writes_numbers() -> None:
    frame = tables.deltas_frame(ROWS)
    figure = deltas.panel(frame, deltas.DELTA, "facts", NAMES, deltas.limits(frame, deltas.DELTA))
    assert len(figure.data) == 5  # the student is the reference line
    seeking = next(t for t in figure.data if "seeking" in t.y[0])
    assert seeking.x[0] == pytest.approx(0.4)
    assert (seeking.error_x.arrayminus[0], seeking.error_x.array[0]) == (pytest.approx(0.2), pytest.approx(0.1))
    assert any(a.text == "+0.40 [+0.20, +0.50]" for a in figure.layout.annotations)
    assert "small" in figure.layout.xaxis.title.text and "40 items" in figure.layout.title.subtitle.text


def test_lines_are_chosen_and_sorted() -> None:
    rows = [*ROWS, row("seeking", "never_shown", delta=-0.5, claim=True), row("pissa", "never_shown", delta=0.05)]
    frame = tables.deltas_frame(rows)
    assert set(tables.select(frame, groups=["never_shown"]).model) == {"seeking", "pissa"}
    assert tables.select(frame, claims=True).model.tolist() == ["seeking"]
    apart = tables.select(frame, models=["pissa", "seeking"], apart=True)
    assert apart.delta.tolist() == pytest.approx([0.4, 0.4, -0.5])  # of 0.05 the interval holds 0
    shown = frame[frame.group == "shown"]
    assert tables.ordered(shown, "value", "delta").model.tolist()[-1] == "student"  # missing
    assert tables.ordered(shown, "value", "delta").model.tolist()[0] == "teacher"
    assert tables.ordered(shown, "kind of model", "delta").kind.tolist()[-2:] == ["control", "control"]
    assert tables.ordered(shown, "name", "delta").model.tolist()[0] == "pissa"
    with pytest.raises(ValueError, match="choose of"):
        tables.ordered(shown, "colour", "delta")
    assert tables.leading(shown).model.tolist() == ["teacher", "seeking", "pissa", "seeking+noise"]


def test_the_answer_is_few_models_named_above_their_marks() -> None:
    frame = tables.leading(tables.deltas_frame(ROWS))
    figure = deltas.answer(frame, "facts", NAMES, (-1, 1), tables.kinds(ROWS))
    texts = [a.text for a in figure.layout.annotations]
    assert texts[1] == "<b>seeking</b>  +0.40 [+0.20, +0.50]" and len(texts) == len(figure.data) == 4
    assert [t.y[0] for t in figure.data] == list(figure.layout.yaxis.categoryarray)[::-1]


def test_two_models_of_one_name_have_a_line_each() -> None:
    frame = tables.deltas_frame(ROWS, {"seeking": "same", "pissa": "same"})
    figure = deltas.panel(frame, deltas.DELTA, "facts", NAMES, (-1, 1))
    labels = [t.y[0] for t in figure.data]
    assert len(set(labels)) == len(labels) and "same (2)" in labels


def test_panel_of_missing_values_says_so() -> None:
    frame = tables.deltas_frame(ROWS)
    figure = deltas.panel(frame, deltas.SHARE, "facts", NAMES, deltas.limits(frame, deltas.SHARE))
    assert {a.text for a in figure.layout.annotations} == {theme.MISSING}


def test_names_are_never_read_as_markup() -> None:
    rows = [row("teacher"), row("student", delta=None), row("<b>x</b>")]
    frame = tables.deltas_frame(rows)
    names = {**NAMES, "student": "<a href='x'>$y$</a>"}
    figure = deltas.panel(frame, deltas.DELTA, "<i>facts</i>", names, (-1, 1))
    text = figure.to_json()
    assert "<i>" not in text and "<a href" not in text and "<b>x" not in text and "$y$" not in text


def test_clip_range_ignores_zeros_and_nan() -> None:
    assert heatmaps.clip_range(np.array([0.0, np.nan, np.inf])) is None
    low, high = heatmaps.clip_range(np.array([0.0, 1.0, 2.0, 3.0]), (0, 100)) or (0, 0)
    assert (low, high) == (1.0, 3.0)
    assert heatmaps.clip_range(np.array([2.0])) == (1.0, 4.0)


def test_layer_map_selects_cells_and_leaves_other_parameters_out() -> None:
    table = pd.DataFrame({"layer": [0, 0], "module": ["q", "norm"], "mean": [1e-3, 1.0], "share": [0.1, 0.9]})
    chart = heatmaps.layer_map(table, "mean", (1e-4, 1e-2), "big", (0, "q")).to_dict()
    assert chart["params"][0]["select"]["fields"] == ["layer", "module"]
    assert [r["module"] for r in next(iter(chart["datasets"].values()))] == ["q"]
    assert "big" in chart["title"]["text"] and chart["encoding"]["color"]["scale"]["scheme"] == "cividis"


def test_matrix_map_keeps_the_matrix_own_numbers_when_pooled_and_cut() -> None:
    values = np.arange(1.0, 65.0).reshape(8, 8)
    block = heatmaps.Rectangle(row=20, col=40, rows=30, cols=20)
    figure = heatmaps.matrix_map(values, (80, 160), "m", block)
    assert figure.data[0].dy == 10 and figure.data[0].dx == 20
    assert (figure.layout.shapes[0].y0, figure.layout.shapes[0].x1) == (20, 60)
    cut = heatmaps.matrix_map(values, (80, 160), "m", None, heatmaps.Region(20, 40, 0, 40))
    assert np.array(cut.data[0].customdata).tolist() == values[2:4, 0:2].tolist()
    assert list(cut.layout.yaxis.range) == [40, 20]  # row 0 is on top


@pytest.mark.parametrize(("x", "y"), [((-5, 3.2), (9, 200)), ((7.1, 7.2), (0.5, 0.4))])
def test_a_box_becomes_whole_cells_inside_the_matrix(x: tuple, y: tuple) -> None:
    region = heatmaps.region_of({"x": list(x), "y": list(y)}, (10, 8))
    assert region is not None
    assert 0 <= region.row < region.row_end <= 10 and 0 <= region.col < region.col_end <= 8
    assert region.row_end - region.row >= 2 and region.col_end - region.col >= 2


def test_a_damaged_box_is_no_region() -> None:
    assert heatmaps.region_of({"x": [1]}, (10, 8)) is None


def test_losses_are_numbered_per_model_and_later_values_count() -> None:
    events = [
        {"stage": "locate", "step": 1},
        *({"stage": "tune", "step": s, "message": "a, seed 0", "loss": 3.0 - s} for s in (1, 2)),
        *({"stage": "tune", "step": s, "message": "a+noise, seed 0", "loss": 5.0} for s in (3, 4)),
        {"stage": "tune", "step": 3, "message": "a+noise, seed 0", "loss": 4.0},
    ]
    table = losses.from_events(events)
    assert table[table.label == "a+noise"].step.tolist() == [1, 2]
    assert table[table.label == "a+noise"].loss.tolist() == [4.0, 5.0]
    figure = losses.curves(table, {"a": "examined", "a+noise": "control"}, {"a": "A"})
    assert [t.name for t in figure.data] == ["A", "a+noise"]
    assert losses.from_events([]).empty


def test_long_curves_are_thinned_but_keep_their_end() -> None:
    table = pd.DataFrame({"label": "a", "seed": "0", "step": range(1, 5002), "loss": np.linspace(4, 1, 5001)})
    figure = losses.curves(table, {"a": "examined"}, {})
    (curve,) = figure.data
    assert len(curve.x) <= losses.POINTS + 1 and (curve.y[0], curve.y[-1]) == (4.0, 1.0)
    assert "of more than 400 steps, every 13. and the last are drawn" in figure.layout.xaxis.title.text
    assert losses.curves(table.head(9), {"a": "examined"}, {}).layout.xaxis.title.text == "optimiser step"


def test_losses_taken_in_bit_by_bit_are_the_same() -> None:
    """With steps 4 to 6 made twice, as after a savepoint; of another stage, of a wrong kind: left out."""
    steps = [*range(1, 7), *range(4, 11)]
    events = [
        {"stage": "tune", "step": s, "message": "a, seed 0", "loss": s + number / 100} for number, s in enumerate(steps)
    ]
    events += [{"stage": "align", "step": 1, "message": "a, seed 0", "loss": 1.0}, {"stage": "tune", "loss": 1.0}]
    events += [{"stage": "tune", "step": "x", "message": "a, seed 0", "loss": 1.0}]
    told = losses.Told()
    for event in events:
        told.add([event])
    pd.testing.assert_frame_equal(told.table(), losses.from_events(events))
    assert told.table().step.tolist() == list(range(1, 11)) and told.table().loss[3] == 4.06


def test_layer_scores_name_the_layers_they_feed() -> None:
    sensitivity = pd.DataFrame(
        [("t", "teacher", seed, layer, "q", 1.0 + seed) for seed in (0, 1, 2) for layer in (0, 1)],
        columns="task model seed layer module sum".split(),
    )
    spread = layers.seed_spread(sensitivity, "teacher", "t")
    assert spread.se.tolist() == pytest.approx([3**0.5, 3**0.5]) and spread.n.tolist() == [3, 3]
    table = pd.DataFrame(
        {"layer": [0, 1], "score": [6.0, 6.0], "chosen": [False, True], "student_layer": pd.array([None, 0], "Int64")}
    )
    figure = layers.scores(table, spread, "big", "small")
    assert list(figure.layout.yaxis.ticktext) == ["0", "1 → 0"]
    assert isinstance(figure, go.Figure) and "3 seed" in figure.layout.title.subtitle.text


def test_a_missing_interval_has_no_bar() -> None:
    nan = float("nan")
    made = theme.bars([1.0, 2.0, None, 3.0], [0.5, nan, 0.0, nan], [1.5, nan, 1.0, 4.0])
    assert made is not None and theme.bars([1.0], [nan], [nan]) is None
    figure = go.Figure(go.Scatter(x=[1, 2, 3, 4], error_x=made))
    sent = json.loads(figure.to_json())["data"][0]["error_x"]  # null would be drawn as a bar of length 0, with a cap
    got = [np.frombuffer(base64.b64decode(sent[side]["bdata"])) for side in ("arrayminus", "array")]
    np.testing.assert_array_equal(got, [[0.5, nan, nan, nan]] * 2)


def test_loss_has_no_bars_for_it_has_no_interval() -> None:
    rows = pd.DataFrame([{"model": "m", "title": "m", "kind": "examined", "n": 8, "loss": 1.5}])
    figure = deltas.panel(rows, deltas.LOSS, "t", {"teacher": "T", "student": "S"}, (0.0, 2.0))
    assert [trace.error_x.type for trace in figure.data] == [None]
