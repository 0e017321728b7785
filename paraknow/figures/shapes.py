"""Two models drawn to scale: layers × width, and the student's matrices on the teacher's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from paraknow.figures.theme import NEUTRAL, STUDENT, TEACHER, frame, plain, short

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
    figure.update_yaxes(title="layers", range=[0, tall * 1.25], showgrid=False, zeroline=False)
    figure.update_xaxes(
        title="width in units: inner band = hidden size, dotted = FFN size",
        showticklabels=False,
        showgrid=False,
        zeroline=False,
    )
    figure.update_layout(showlegend=False, dragmode=False)
    title = f"{plain(short(teacher['title'], 24))} and {plain(short(student['title'], 24))} to one scale"
    return frame(figure, title, 430, "layers upwards, width sideways")


def matrices(blocks: Sequence[Mapping[str, Any]], teacher: str, student: str) -> go.Figure:
    """Per module the teacher's matrix with a block of the student's size on it, all to one scale.

    `blocks`: module, teacher and student as (out, in), fits, share. Where the student's is larger, it sticks out.
    """
    columns = len(blocks)
    said = [
        f"{b['module']}<br>{b['share']:.0%}" if b["share"] is not None else f"{b['module']}<br>too large"
        for b in blocks
    ]
    figure = make_subplots(rows=1, cols=columns, subplot_titles=said, horizontal_spacing=0.02)
    wide = max(max(b["teacher"][1], b["student"][1]) for b in blocks)
    tall = max(max(b["teacher"][0], b["student"][0]) for b in blocks)
    for column, block in enumerate(blocks, 1):
        for style, kind, name in ((TEACHER, "teacher", teacher), (STUDENT, "student", student)):
            rows, cols = block[kind]
            figure.add_trace(
                go.Scatter(
                    **_box(0, 0, cols, rows),
                    mode="lines",
                    fill="toself",
                    fillcolor=FADED[style],
                    line={"color": style.color, "width": 2, "dash": "solid" if kind == "teacher" else "dash"},
                    name=f"{kind}: {plain(short(name, 30))}",
                    legendgroup=kind,
                    showlegend=column == 1,
                    hoveron="fills",
                    text=f"{block['module']} of the {kind}: {rows:,} × {cols:,}",
                    hoverinfo="text",
                ),
                row=1,
                col=column,
            )
    figure.update_yaxes(range=[tall * 1.02, -tall * 0.02], showticklabels=False, showgrid=False, zeroline=False)
    figure.update_xaxes(range=[-wide * 0.02, wide * 1.02], showticklabels=False, showgrid=False, zeroline=False)
    for column in range(1, columns + 1):
        anchor = "x" if column == 1 else f"x{column}"
        figure.update_yaxes(scaleanchor=anchor, scaleratio=1, constrain="domain", row=1, col=column)
        figure.update_xaxes(constrain="domain", row=1, col=column)
    figure.update_yaxes(title={"text": "outputs (rows)", "font": {"color": NEUTRAL}}, row=1, col=1)
    figure.update_layout(legend={"orientation": "h", "y": -0.12, "x": 0}, dragmode=False)
    title = "What part of each of the teacher's matrices a block of the student's size is"
    return frame(figure, title, 400, "rows are outputs, columns inputs; one scale for all matrices", t=104, b=60)
