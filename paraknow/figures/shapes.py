"""Two models drawn to scale: layers × width, and the student's matrices on the teacher's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from paraknow.figures.theme import STUDENT, TEACHER, frame, plain, short

FADED = {TEACHER: "rgba(201,111,0,0.16)", STUDENT: "rgba(47,127,193,0.42)"}
LAYERS_DRAWN = 160  # lines between layers; beyond that they would be one grey area


def _box(left: float, low: float, width: float, height: float) -> dict[str, list[float]]:
    return {"x": [left, left + width, left + width, left, left], "y": [low, low, low + height, low + height, low]}


def towers(teacher: Mapping[str, Any], student: Mapping[str, Any]) -> go.Figure:
    """Both models as towers of layers: height = layers, full width = FFN size, the inner band = hidden size.

    Each mapping holds title, layers, hidden, ffn, parameters. Both axes are one scale for both models.
    """
    figure = go.Figure()
    step = 1.12 * max(teacher["ffn"], student["ffn"])
    for place, (style, kind, m) in enumerate(((TEACHER, "teacher", teacher), (STUDENT, "student", student))):
        middle = place * step
        for width, opacity, words in ((m["ffn"], 0.35, "FFN size"), (m["hidden"], 1.0, "hidden size")):
            figure.add_trace(
                go.Scatter(
                    **_box(middle - width / 2, 0, width, m["layers"]),
                    mode="lines",
                    fill="toself",
                    fillcolor=FADED[style],
                    opacity=opacity,
                    line={"color": style.color, "width": 2, "dash": "solid" if words == "hidden size" else "dot"},
                    name=f"{kind}: {words}",
                    hoveron="fills",
                    text=f"{plain(short(m['title']))}: {words} {width:,}, {m['layers']} layers",
                    hoverinfo="text",
                )
            )
        lines = range(1, m["layers"]) if m["layers"] <= LAYERS_DRAWN else ()
        xs = [x for _ in lines for x in (middle - m["hidden"] / 2, middle + m["hidden"] / 2, None)]
        ys = [y for layer in lines for y in (layer, layer, None)]
        figure.add_trace(
            go.Scatter(x=xs, y=ys, mode="lines", line={"color": style.color, "width": 0.6}, hoverinfo="skip")
        )
        figure.add_annotation(
            x=middle,
            y=m["layers"],
            yshift=24,
            showarrow=False,
            text=f"<b>{kind}</b> {plain(short(m['title'], 26))}<br>{m['layers']} layers × {m['hidden']:,}, FFN "
            f"{m['ffn']:,}",
        )
    tall = max(teacher["layers"], student["layers"])
    marks = sorted({0, student["layers"], teacher["layers"]})
    figure.update_yaxes(title="layers", range=[0, tall * 1.25], tickvals=marks, showgrid=False, zeroline=False)
    figure.update_xaxes(
        title="width: inner band hidden size, dotted FFN size",
        showticklabels=False,
        showgrid=False,
        zeroline=False,
    )
    figure.update_layout(showlegend=False, dragmode=False)
    title = f"{plain(short(teacher['title'], 24))} and {plain(short(student['title'], 24))} to one scale"
    return frame(figure, title, 430, "layers upwards, width sideways")


def matrices(blocks: Sequence[Mapping[str, Any]], teacher: str, student: str) -> go.Figure:
    """Per module the teacher's matrix with a block of the student's size on it, side by side and all to one scale.

    `blocks`: module, teacher and student as (out, in), fits, share. Where the student's is larger, it sticks out.
    """
    figure = go.Figure()
    tall = max(max(b["teacher"][0], b["student"][0]) for b in blocks)
    widths = [max(b["teacher"][1], b["student"][1]) for b in blocks]
    gap, left = 0.03 * sum(widths), 0.0
    for number, (block, width) in enumerate(zip(blocks, widths, strict=True)):
        for style, kind, name in ((TEACHER, "teacher", teacher), (STUDENT, "student", student)):
            rows, columns = block[kind]
            figure.add_trace(
                go.Scatter(
                    **_box(left, 0, columns, rows),
                    mode="lines",
                    fill="toself",
                    fillcolor=FADED[style],
                    line={"color": style.color, "width": 2, "dash": "solid" if kind == "teacher" else "dot"},
                    name=f"{kind}: {plain(short(name, 30))}",
                    legendgroup=kind,
                    showlegend=number == 0,
                    hoveron="fills",
                    text=f"{block['module']} of the {kind}: {rows:,} × {columns:,}",
                    hoverinfo="text",
                )
            )
        share = "too large" if block["share"] is None else f"{block['share']:.0%}"
        figure.add_annotation(
            x=left + width / 2, y=0, yshift=20, showarrow=False, text=f"<b>{block['module']}</b><br>{share}"
        )
        left += width + gap
    nothing = {"showticklabels": False, "showgrid": False, "zeroline": False}
    figure.update_yaxes(title="outputs (rows)", range=[tall * 1.02, -tall * 0.2], constrain="domain", **nothing)
    figure.update_xaxes(
        title="inputs (columns)", scaleanchor="y", range=[-gap / 2, left - gap / 2], constrain="domain", **nothing
    )
    figure.update_layout(legend={"orientation": "h", "y": -0.14, "x": 0}, dragmode=False)
    title = "A block of the student's size on each of the teacher's matrices"
    return frame(figure, title, 430, "per cent: share of the teacher's entries; one scale for all matrices", b=70)
