"""A figure as it is shown in a talk: text of at least 18 pixels, read from the last row, on any screen."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import altair as alt
import numpy as np
import plotly.graph_objects as go

LEAST = 18  # pixels of the smallest text
SIZE = 19
GROWN = 1.5  # how much marks, lines and margins for text grow
IN_A_ROW = 5  # entries of a legend above a figure; more stand beside it
ROWS = 16  # names beside an axis that find room on a low screen


class Enlarged(NamedTuple):
    """A figure without its heading, which is given apart (plain text), to be set large above it."""

    figure: Any
    title: str
    note: str


def enlarge(figure: Any) -> Enlarged:
    """A copy of a Plotly figure or Altair chart with large text and marks, and no size of its own.

    The figure that is given stays as it is.
    """
    return _plotly(figure) if isinstance(figure, go.Figure) else _altair(figure)


# -- Plotly ---------------------------------------------------------------------------------------


def _plotly(figure: go.Figure) -> Enlarged:
    made = go.Figure(figure)
    title = made.layout.title
    heading, note = _words(title.text), _words(title.subtitle.text)
    for text in made.select_annotations():
        _grow(text)
    for trace in made.data:
        _trace(trace)
    font, side = {"size": SIZE}, made.layout.margin.r or 0
    made.update_layout(
        title=None,
        height=None,
        width=None,
        autosize=True,
        font=font,
        legend_font=font,
        legend_title_font=font,
        hoverlabel_font=font,
        margin={"l": 10, "r": side * 1.75 if side > 30 else 16, "t": 16, "b": 16},
    )
    named = sum(1 for trace in made.data if trace.name and trace.showlegend is not False)
    if made.layout.legend.orientation == "h" and named <= IN_A_ROW:  # above the figure, where nothing else is
        made.update_layout(legend={"yref": "paper", "y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"})
    else:
        beside = {"orientation": "v", "yref": "container", "y": 1, "yanchor": "top", "x": 1.02, "xanchor": "left"}
        made.update_layout(legend=beside)
    if made.layout.coloraxis.to_plotly_json():
        made.update_layout(coloraxis_colorbar={"tickfont": font, "title_font": font})
    about = {"tickfont": font, "title": {"font": {"size": SIZE + 1}}, "automargin": True}
    made.update_xaxes(about)
    made.update_yaxes(about)
    for axis in made.select_yaxes():
        _thin(axis)
    return Enlarged(made, heading, note)


def _words(text: str | None) -> str:
    """A Plotly label as plain text."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text or "")).split())


def _grow(text: Any) -> None:
    """An annotation in large letters, as far from its place as before in proportion."""
    text.font.size = max(LEAST, GROWN * (text.font.size or 12))
    for shift in ("xshift", "yshift"):
        if text[shift]:
            text[shift] *= GROWN


def _trace(trace: Any) -> None:
    """Larger marks, lines, bars and text of one trace; kinds without them are passed over."""
    parts = trace.to_plotly_json()
    if isinstance(parts.get("marker"), dict):
        for place in (trace.marker, trace.marker.line if "line" in trace.marker else None):
            for name in ("size", "width"):
                if place is not None and name in place and place[name] is not None:
                    place[name] = _grown(place[name])
    for name in ("line", "error_x", "error_y"):
        if not isinstance(parts.get(name), dict):
            continue
        for part in ("width", "thickness"):
            if part in trace[name] and trace[name][part] is not None:
                trace[name][part] *= GROWN
    if "textfont" in trace:
        trace.textfont.size = max(LEAST, _least(trace.textfont.size))
    if "colorbar" in trace:
        trace.colorbar.update(tickfont={"size": SIZE}, title={"font": {"size": SIZE}}, thickness=22)


def _grown(value: Any) -> Any:
    return GROWN * value if isinstance(value, int | float) else [GROWN * v for v in value]


def _least(value: Any) -> float:
    """The smallest of one size or several; 0 where none is given."""
    return float(np.min(value)) if value is not None else 0.0


def _thin(axis: Any) -> None:
    """Fewer names where they would lie on each other; names of several lines in one, where there are many."""
    ticks, names = axis.tickvals, axis.ticktext
    if ticks is None and axis.categoryarray is not None and len(axis.categoryarray) > 5:
        ticks = names = axis.categoryarray
    if ticks is None:
        return
    every = math.ceil(len(ticks) / ROWS)
    axis.tickvals = list(ticks)[::every]
    if names is not None:
        axis.ticktext = [str(name).replace("<br>", " ") for name in names][::every]


# -- Altair ---------------------------------------------------------------------------------------

# Room is scarce in height on a screen: what stands below a chart on a page stands to its right here.
BESIDE = {"orient": "right", "direction": "vertical", "gradientLength": 300, "gradientThickness": 22}


def _altair(chart: Any) -> Enlarged:
    made = chart.copy(deep=True)
    title, note = _heading(made.title)
    made.title = alt.Undefined
    made = made.properties(width="container", height="container")
    made = made.configure_axis(labelFontSize=SIZE, titleFontSize=SIZE + 1, labelOverlap=True, labelLimit=400)
    made = made.configure_legend(labelFontSize=SIZE, titleFontSize=SIZE, symbolSize=200, labelLimit=400)
    for legend in _parts(made, alt.Legend):
        legend._kwds.update(BESIDE)
    for axis in _parts(made, alt.Axis):
        axis._kwds["labelOverlap"] = True
    return Enlarged(made.configure_title(fontSize=SIZE).configure_text(fontSize=SIZE), title, note)


def _heading(title: Any) -> tuple[str, str]:
    """Title and subtitle of a chart as plain text."""
    parts = (title.text, title.subtitle) if isinstance(title, alt.TitleParams) else (title, "")
    heading, note = (" ".join(p) if isinstance(p, list) else p if isinstance(p, str) else "" for p in parts)
    return heading, note


def _parts(part: Any, kind: type) -> Iterator[Any]:
    """Every part of one kind in a chart, its layers and conditions included."""
    if isinstance(part, kind):
        yield part
    elif isinstance(part, alt.SchemaBase):
        for inner in part._kwds.values():
            yield from _parts(inner, kind)
    elif isinstance(part, list | dict):
        for inner in part.values() if isinstance(part, dict) else part:
            yield from _parts(inner, kind)
