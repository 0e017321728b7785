"""Accuracy and differences to the student, with intervals: one line per model, numbers beside the marks."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from paraknow.figures.theme import MISSING, NEUTRAL, Style, bars, distinct, frame, plain, short, signed, styles


@dataclass(frozen=True)
class Measure:
    """A column with its interval's columns, what it is called and its reference line.

    zero: where the student itself lies, which then has no line of its own. guess: a line all models are held against.
    """

    value: str
    low: str
    high: str
    axis: str
    zero: float | None = None
    guess: float | None = None


ACCURACY = Measure("accuracy", "lo", "hi", "accuracy (share of items answered correctly)")
DELTA = Measure("delta", "delta_lo", "delta_hi", "difference in accuracy to {student}", 0.0)
SHARE = Measure("share", "share_lo", "share_hi", "share of {teacher}'s surplus bits that arrived", 0.0)
BITS = Measure("bits", "bits_lo", "bits_hi", "bits of knowledge beyond guessing", guess=0.0)
LOSS = Measure("loss", "", "", "loss (nats per answer token; less is better)")


def limits(table: pd.DataFrame, measure: Measure) -> tuple[float, float]:
    """One range for all panels that are compared."""
    if measure.value == "accuracy":
        return -0.02, 1.02
    columns = [c for c in (measure.value, measure.low, measure.high) if c]
    values = table[columns].to_numpy(float)
    values = values[values == values]
    low, high = (float(values.min()), float(values.max())) if len(values) else (-1.0, 1.0)
    low, high = min(low, 0.0), max(high, 0.0)
    pad = 0.05 * (high - low) or 0.05
    return low - pad, high + pad


def panel(
    table: pd.DataFrame,
    measure: Measure,
    title: str,
    names: dict[str, str],
    span: tuple[float, float],
    kinds: dict[str, str] | None = None,
    wide: int = 26,
) -> go.Figure:
    """One suite and group: a line per model from top to bottom, in table order; names broken after `wide` characters.

    `names` holds the titles of teacher and student; `kinds` the parts of all models of the run, so that a
    model keeps its colour in every panel.
    """
    table = table[table.model != "student"] if measure.zero is not None else table
    drawn = styles(kinds or dict(zip(table.model, table.kind, strict=True)))
    figure = go.Figure()
    # two lines of one name would be drawn as one
    shown = distinct({str(k): t for k, t in enumerate(table.title)}, 2 * wide - 4)
    cut = {k: textwrap.wrap(short(name, 2 * wide - 4), wide) for k, name in shown.items()}
    labels = ["<br>".join(plain(part) for part in parts) for parts in cut.values()]
    for label, line in zip(labels, table.itertuples(), strict=True):
        _mark(figure, line, measure, label, drawn[str(line.model)])
    line_at = measure.guess if measure.zero is None else measure.zero
    if line_at is not None:
        figure.add_vline(x=line_at, line={"color": NEUTRAL, "width": 1.5, "dash": "dot"})
    axis = measure.axis.format(**{k: plain(short(v, 24)) for k, v in names.items()})
    figure.update_xaxes(title=axis, range=list(span), zeroline=False, showgrid=True)
    figure.update_yaxes(
        categoryorder="array",
        categoryarray=labels[::-1],
        range=[-0.6, len(labels) - 0.4],
        automargin=True,
        showgrid=False,
    )
    note = _items(table) + ("; bars: 95 % intervals" if measure.low else "")
    figure.update_layout(showlegend=False, dragmode=False)
    return frame(figure, plain(title), 120 + 33 * max(1, len(labels)), note, r=118)


def answer(
    table: pd.DataFrame, title: str, names: dict[str, str], span: tuple[float, float], kinds: dict[str, str]
) -> go.Figure:
    """What a talk opens with: few models' differences to the student, large, each name and number above its mark."""
    drawn, figure = styles(kinds), go.Figure()
    last = len(table) - 1
    rows = [f"row {k}" for k in range(len(table))]  # a bare number would be taken for a position on the axis
    models: list[Any] = list(table.itertuples())
    for place, line in enumerate(models):
        _mark(figure, line, DELTA, rows[place], drawn[str(line.model)], 20, False)
        value = _numbers(line.delta, line.delta_lo, line.delta_hi, DELTA)
        name = plain(short(line.title, 40))
        text = f"{f'<b>{name}</b>' if line.kind == 'examined' else name}  {value}"
        about = {"x": 0, "xref": "paper", "xanchor": "left", "yshift": 25, "showarrow": False, "font": {"size": 15}}
        figure.add_annotation(y=rows[place], text=text, **about)
        dotted = {"color": NEUTRAL, "width": 2, "dash": "dot"}  # in pieces, so that it runs through no name
        figure.add_shape(type="line", x0=0, x1=0, y0=last - place - 0.4, y1=last - place + 0.14, line=dotted)
    axis = DELTA.axis.format(student=plain(short(names["student"], 24)))
    figure.update_xaxes(title={"text": axis, "font": {"size": 14}}, range=list(span), zeroline=False, showgrid=False)
    figure.update_yaxes(
        type="category",
        categoryorder="array",
        categoryarray=rows[::-1],
        range=[-0.45, last + 0.65],
        showticklabels=False,
        showgrid=False,
    )
    figure.update_layout(showlegend=False, dragmode=False)
    figure = frame(figure, plain(title), 130 + 78 * len(table), f"{_items(table)}; bars: 95 % intervals", 44)
    return figure.update_layout(title={"font": {"size": 16}})


def _items(table: pd.DataFrame) -> str:
    few, many = table.n.min(), table.n.max()
    if many != many:
        return "n is missing"
    return f"n = {int(many)} items" if few == many else f"n = {int(few)} to {int(many)} items"


def _mark(
    figure: go.Figure, line: Any, measure: Measure, label: str, style: Style, size: int = 11, written: bool = True
) -> None:
    value = getattr(line, measure.value)
    low, high = (getattr(line, c) if c else float("nan") for c in (measure.low, measure.high))
    text = _numbers(value, low, high, measure)
    if written:
        figure.add_annotation(
            x=1.01, xref="paper", xanchor="left", y=label, text=text, showarrow=False, font={"size": 11.5}
        )
    known = value == value
    interval = bars([value], [low], [high])
    if interval:
        interval |= {"color": style.color, "thickness": max(2, size // 5), "width": max(4, size // 2)}
    figure.add_trace(
        go.Scatter(
            x=[value] if known else [None],
            y=[label],
            mode="markers",
            marker={
                "color": style.color,
                "symbol": style.symbol,
                "size": size,
                "line": {"width": 2, "color": style.color},
            },
            error_x=interval,
            hovertemplate=f"<b>{label if written else plain(line.title)}</b><br>{text}<extra></extra>",
        )
    )


def _numbers(value: float, low: float, high: float, measure: Measure) -> str:
    if value != value:
        return MISSING
    show = signed if measure.zero is not None else (lambda v: f"{round(v, 2) + 0.0:.2f}".replace("-", "−"))
    return show(value) if low != low else f"{show(value)} [{show(low)}, {show(high)}]"


def describe(table: pd.DataFrame, measure: Measure, title: str) -> str:
    """The panel in words, for screen readers."""
    parts = []
    for line in table.itertuples():
        value = getattr(line, measure.value)
        low, high = (getattr(line, c) if c else float("nan") for c in (measure.low, measure.high))
        parts.append(f"{line.title} {_numbers(value, low, high, measure)}")
    return f"{title}, {measure.value}: " + "; ".join(parts) + "."
