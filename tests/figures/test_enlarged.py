"""Figures for a talk: no text below 18 pixels, larger marks, the figure that was given untouched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest

from paraknow.figures import cross, deltas, enlarged, heatmaps, ladder, layers, neurons, similarity, tables, weights
from tests.pages import tables as made
from tests.pages.test_pages import rows

NAMES = {"teacher": "a <b>large</b> & old one", "student": "small"}


def panel() -> Any:
    frame = tables.deltas_frame(rows(), {})
    part = frame[frame.group == "shown"]
    return deltas.panel(part, deltas.DELTA, "people: shown", NAMES, deltas.limits(part, deltas.DELTA))


def scored(count: int = 80) -> Any:
    order = pd.DataFrame({"layer": range(count), "score": 1.0, "chosen": True})
    order["student_layer"] = pd.array(range(count), "Int64")
    spread = pd.DataFrame({"layer": range(count), "se": 0.1, "n": 4})
    return layers.scores(order, spread, NAMES["teacher"], NAMES["student"])


def matrix() -> Any:
    block = heatmaps.Rectangle(1, 2, 3, 3)
    return heatmaps.matrix_map(np.linspace(0.1, 1, 48).reshape(6, 8), (6, 8), "a matrix", block)


def crossed() -> Any:
    found = made.crossed()
    return cross.matrix(cross.cells(found), found["tasks"], "Seeking", "all")


def calibrated() -> Any:
    return ladder.shares(*ladder.tables(made.calibration()), {}, False, ["transport", "seeking"])


def paired() -> Any:
    table = made.cka().query("task == 'demo:people' and module == 'q'")
    return similarity.pair_map(table, "cka", NAMES, "CKA of q", pairs={(0, 0)})


def mapped() -> Any:
    table = pd.DataFrame({"layer": [0, 1], "module": "q"}).assign(mean=0.1, sum=0.2, max=0.3, share=0.5)
    return heatmaps.layer_map(table, "share", (0.1, 1.0), NAMES["teacher"], None)


FIGURES = {
    "panel": panel,
    "scores": scored,
    "matrix": matrix,
    "cross": crossed,
    "ladder": calibrated,
    "geometry": lambda: weights.geometry(made.weights(), "cos", NAMES),
    "neurons": lambda: neurons.sublayers(made.attribution().query("model == 'teacher'"), "a"),
    "modules": lambda: similarity.modules(made.cka(), NAMES, {(0, 0)}),
    "pairs": paired,
    "layer map": mapped,
}


def sizes(part: Any, key: str = "") -> Iterator[float]:
    """Every size of text that a figure's description names."""
    if isinstance(part, dict):
        for name, inner in part.items():
            if (name == "size" and "font" in key) or name.endswith("FontSize"):
                yield inner
            yield from sizes(inner, name)
    elif isinstance(part, list | tuple):
        for inner in part:
            yield from sizes(inner, key)


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_is_small_and_what_was_given_stays(name: str) -> None:
    figure = FIGURES[name]()
    before = figure.to_json()
    large, title, _ = enlarged.enlarge(figure)
    assert figure.to_json() == before
    spec = large.to_plotly_json() if hasattr(large, "to_plotly_json") else large.to_dict()
    found = list(sizes({k: v for k, v in spec.items() if k not in ("data", "datasets")})) + list(
        sizes([{k: v for k, v in t.items() if k != "customdata"} for t in spec.get("data", []) if isinstance(t, dict)])
        if isinstance(spec.get("data"), list | tuple)
        else []
    )
    assert found and min(found) >= enlarged.LEAST
    assert title and "<" not in title.replace("<b>large</b>", "")
    assert "height" not in spec.get("layout", {}) and spec.get("height") in (None, "container")


def test_a_heading_is_what_was_typed_and_not_markup() -> None:
    assert "a <b>large</b> & old one" in enlarged.enlarge(scored()).title


def test_marks_grow_and_crowded_names_are_thinned() -> None:
    before, after = panel(), enlarged.enlarge(panel()).figure
    assert after.data[0].marker.size == enlarged.GROWN * before.data[0].marker.size
    assert after.data[0].error_x.thickness == enlarged.GROWN * before.data[0].error_x.thickness
    axis = enlarged.enlarge(scored()).figure.layout.yaxis
    assert len(axis.tickvals) == len(axis.ticktext) <= enlarged.ROWS
    assert axis.ticktext[0] == "0 → 0"
