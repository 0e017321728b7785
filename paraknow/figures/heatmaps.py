"""Sensitivity as heat maps: layer × module (cells can be clicked) and one matrix (a block drawn on it)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import plotly.graph_objects as go

from paraknow.config import MODULES
from paraknow.figures.pooling import POOLINGS, pooled
from paraknow.figures.theme import BLOCK, frame, plain, short, sparse, titled

CLIP = (1.0, 99.0)  # percentiles of the positive values
UNITS = {
    "mean": "mean |w · ∇| per weight (nats)",
    "sum": "summed |w · ∇| (nats)",
    "max": "largest |w · ∇| of a weight (nats)",
    "share": "share of the model's summed |w · ∇|",
}
TITLES = {"mean": "mean |w · ∇|", "sum": "summed |w · ∇|", "max": "largest |w · ∇|", "share": "share of |w · ∇|"}
SELECTION = "cell"
BUTTONS = 26  # pixels: a narrow window has no room for them beside the title


def clip_range(values: np.ndarray, percentiles: tuple[float, float] = CLIP) -> tuple[float, float] | None:
    """The values between which colours change, from the positive ones; None where there is none."""
    values = np.asarray(values, float).ravel()
    values = values[np.isfinite(values) & (values > 0)]
    if not len(values):
        return None
    low, high = (float(x) for x in np.percentile(values, percentiles))
    return (low, high) if high > low else (low / 2, low * 2)


def layer_map(
    table: pd.DataFrame,
    value: str,
    span: tuple[float, float],
    model: str,
    chosen: tuple[int, str] | None = None,
    note: str = "",
    clickable: bool = True,
    title: str = "",
) -> alt.Chart:
    """One model's layer × module map; columns layer, module and `value`. Clicking selects a whole cell.

    `note` stands under the title: the task, the number of seed examples. `title` replaces the model's name and value.
    """
    table = table[table.module.isin(MODULES)].assign(clipped=lambda t: t[value].clip(*span))
    mark = alt.datum.layer == -99
    if chosen:
        mark = (alt.datum.layer == chosen[0]) & (alt.datum.module == chosen[1])
    name = title or f"{short(model, 34)}: {TITLES[value]}"
    chart = (
        alt.Chart(table)
        .mark_rect(cursor="pointer" if clickable else "default")
        .encode(
            **axes(table, model),
            color=alt.Color(
                "clipped:Q",
                title=None,
                scale=alt.Scale(type="log", domain=list(span), clamp=True, scheme="cividis"),
                # Only both ends are labelled: Vega would put ticks of one decade side by side until they touch.
                legend=alt.Legend(
                    orient="bottom", direction="horizontal", gradientLength=220, format=".1~e", values=list(span)
                ),
            ),
            stroke=alt.when(mark).then(alt.value(BLOCK)).otherwise(alt.value("transparent")),
            strokeWidth=alt.value(3),
            tooltip=[
                alt.Tooltip("layer:O", title="layer"),
                alt.Tooltip("module:N", title="matrix"),
                alt.Tooltip(f"{value}:Q", title=UNITS[value], format=".4g"),
                alt.Tooltip("share:Q", title="share", format=".1%"),
            ],
        )
        .properties(title=titled(name, note), height=alt.Step(row_height(table)))
        .configure_view(strokeWidth=0)
    )
    if not clickable:
        return chart
    picked = alt.selection_point(name=SELECTION, fields=["layer", "module"], on="click", empty=False, clear=False)
    return chart.add_params(picked)


def row_height(table: pd.DataFrame) -> int:
    """Pixels of a layer's row: deep models keep the map on one screen."""
    return max(7, min(34, 560 // max(1, table.layer.nunique())))


def axes(table: pd.DataFrame, model: str) -> dict[str, Any]:
    """The two axes of a layer × module map; of many layers every second, fifth, … has its number."""
    step = sparse(table.layer.nunique())
    numbers = [int(n) for n in sorted(table.layer.unique()) if int(n) % step == 0]
    across = alt.Axis(labelAngle=0, orient="bottom", labelOverlap=False)
    down = alt.Axis(values=numbers, labelOverlap=False)
    whole = alt.Scale(round=True)  # edges between pixels would look like lines in the data
    return {
        "x": alt.X("module:N", sort=list(MODULES), title="matrix", axis=across, scale=whole),
        "y": alt.Y("layer:O", title=f"layer of {short(model, 28)}", sort="ascending", axis=down, scale=whole),
    }


@dataclass(frozen=True)
class Region:
    """Rows and columns of a matrix that are drawn, ends excluded."""

    row: int
    row_end: int
    col: int
    col_end: int


@dataclass(frozen=True)
class Rectangle:
    """A block drawn on a matrix."""

    row: int
    col: int
    rows: int
    cols: int


def region_of(box: dict, shape: Sequence[int]) -> Region | None:
    """The region a box selection covers, at least two cells a side; None for a damaged one."""
    try:
        (x0, x1), (y0, y1) = sorted(map(float, box["x"])), sorted(map(float, box["y"]))
    except (KeyError, TypeError, ValueError):
        return None
    row, row_end = _side(y0, y1, shape[0])
    col, col_end = _side(x0, x1, shape[1])
    return Region(row, row_end, col, col_end)


def _side(low: float, high: float, length: int) -> tuple[int, int]:
    start = max(0, min(length - 2, int(np.floor(low))))
    return start, max(start + 2, min(length, int(np.ceil(high))))


def pixel(grid: Sequence[int], shape: Sequence[int], region: Region | None, cells: int | None, pooling: str) -> str:
    """What one pixel of `matrix_map` is, in words: a weight, or a pooling of so many."""
    whole = region or Region(0, shape[0], 0, shape[1])
    drawn = []
    for side, (low, high) in enumerate(((whole.row, whole.row_end), (whole.col, whole.col_end))):
        step = shape[side] / grid[side]
        count = int(np.ceil(high / step)) - int(low // step)
        drawn.append(count * step / min(count, cells or count))
    if max(drawn) <= 1:
        return "each pixel is one weight"
    return f"each pixel is the {POOLINGS.get(pooling, pooling)} of {drawn[0]:.3g} × {drawn[1]:.3g} weights"


def matrix_map(
    values: np.ndarray,
    shape: Sequence[int],
    title: str,
    block: Rectangle | None = None,
    region: Region | None = None,
    span: tuple[float, float] | None = None,
    covers: Region | None = None,
    cells: int | None = None,
    how: str = "max",
    note: str = "",
) -> go.Figure:
    """A pooled matrix on its own row and column numbers; log colours between `span`.

    `values` covers the whole matrix of `shape` (out, in), or the part `covers` of it, on a grid that may be coarser;
    `region` cuts it. What is drawn is pooled further to at most `cells` a side by `how` (see pooling.py). `note` stands
    under the title.
    """
    covers = covers or Region(0, shape[0], 0, shape[1])
    region = region or covers
    steps = ((covers.row_end - covers.row) / values.shape[0], (covers.col_end - covers.col) / values.shape[1])
    first, last = int((region.row - covers.row) // steps[0]), int(np.ceil((region.row_end - covers.row) / steps[0]))
    left, right = int((region.col - covers.col) // steps[1]), int(np.ceil((region.col_end - covers.col) / steps[1]))
    cut = np.asarray(values[first:last, left:right], np.float32)
    if cells:
        cut = pooled(cut, cells, how)
    dy, dx = (last - first) * steps[0] / cut.shape[0], (right - left) * steps[1] / cut.shape[1]
    low, high = span or clip_range(values) or (0.5, 1.0)
    bottom, top = np.log10(low), np.log10(high)
    # A colour scale has 256 colours: a byte says which, and the page's message keeps to its budget.
    z = np.rint(255 * (np.log10(np.clip(cut, low, high)) - bottom) / (top - bottom))
    z = z.astype(np.uint8) if np.isfinite(z).all() else z.astype(np.float32)
    exponents = np.linspace(bottom, top, 4)
    figure = go.Figure(
        go.Heatmap(
            z=z,
            customdata=cut,
            x0=covers.col + left * steps[1] + dx / 2,
            dx=dx,
            y0=covers.row + first * steps[0] + dy / 2,
            dy=dy,
            zmin=0,
            zmax=255,
            colorscale="Cividis",
            colorbar={
                "title": {"text": "|w · ∇|", "side": "top"},
                "tickvals": np.linspace(0, 255, 4).tolist(),
                "ticktext": [f"{10**e:.1e}" for e in exponents],
                "thickness": 14,
                "len": 0.9,
            },
            hovertemplate="row %{y:.0f}, column %{x:.0f}<br>|w · ∇| = %{customdata:.3g}<extra></extra>",
        )
    )
    # A heat map alone gives no event: the box is reported once the figure can be selected on.
    figure.update_layout(dragmode="select", newselection={"line": {"color": BLOCK, "width": 2}})
    if block:
        figure.add_shape(
            type="rect",
            x0=block.col,
            x1=block.col + block.cols,
            y0=block.row,
            y1=block.row + block.rows,
            line={"color": BLOCK, "width": 3},
        )
        figure.add_annotation(
            x=min(max(block.col, region.col), region.col_end),
            y=min(max(block.row, region.row), region.row_end),
            text="chosen block",
            xanchor="left",
            yanchor="top",
            showarrow=False,
            bgcolor=BLOCK,
            font={"color": "#FFFFFF", "size": 12},
        )
    figure.update_xaxes(
        title="column (input)",
        range=[covers.col + left * steps[1], covers.col + right * steps[1]],
        showgrid=False,
        zeroline=False,
        constrain="domain",
    )
    rows = [covers.row + last * steps[0], covers.row + first * steps[0]]
    figure.update_yaxes(title="row (output)", range=rows, showgrid=False, zeroline=False)
    made = frame(figure, plain(title), 540, plain(note))
    under = {"height": made.layout.height + BUTTONS, "margin": {"t": made.layout.margin.t + BUTTONS}}
    return made.update_layout(**under, title={"y": made.layout.title.y - BUTTONS / under["height"]})
