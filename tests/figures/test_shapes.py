"""Shapes of two models: drawn to one scale, with text that is no markup."""

from __future__ import annotations

from paraknow import pairing
from paraknow.figures import shapes


def box(trace) -> tuple[float, float]:
    return max(trace.x) - min(trace.x), max(trace.y) - min(trace.y)


def test_towers_have_the_models_sizes():
    found = pairing.look("demo:teacher", "demo:student")
    figure = shapes.towers(vars(found.teacher), vars(found.student))
    sizes = {trace.name: box(trace) for trace in figure.data if trace.name}
    assert sizes == {
        "teacher: FFN size": (512, 6),
        "teacher: hidden size": (192, 6),
        "student: FFN size": (256, 4),
        "student: hidden size": (96, 4),
    }


def test_matrices_keep_their_sizes_and_do_not_overlap():
    rows = [
        {"module": "q", "teacher": (8, 6), "student": (4, 3), "fits": True, "share": 0.25},
        {"module": "up", "teacher": (4, 6), "student": (9, 3), "fits": False, "share": None},
    ]
    figure = shapes.matrices(rows, "<b>t</b> $x$", "s")
    assert [tuple(map(round, box(trace))) for trace in figure.data] == [(6, 8), (3, 4), (6, 4), (3, 9)]
    assert max(figure.data[0].x) < min(figure.data[2].x)
    assert "<b>t" not in figure.data[0].name and "$" not in figure.data[0].name
    assert [a.text for a in figure.layout.annotations] == ["<b>q</b><br>25%", "<b>up</b><br>too large"]


def test_very_deep_models_are_drawn_without_a_line_per_layer():
    deep = {"title": "t", "layers": 500, "hidden": 10, "ffn": 20, "parameters": 1}
    figure = shapes.towers(deep, {**deep, "layers": 2})
    assert len(figure.data[2].x) == 0 and len(figure.data[5].x) == 3
