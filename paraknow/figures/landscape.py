"""Similarity against transferred knowledge: one mark per run and model, over what came with the package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from paraknow.figures.ladder import number, ordered, rung_styles
from paraknow.figures.theme import MISSING, NEUTRAL, Style, bars, frame, plain

UNKNOWN = "lineage not known"
OF_KIND = {"baseline": "circle-open-dot", "control": "x-thin-open", "known answer": "star"}
# Sizes of marks: what came with the package, the runs here. Where marks lie together, Plotly gives the smaller one the
# pointer: that must be the run.
BEHIND, BEFORE = 14, 11


def drawn(rows: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """The rows that have both values; lineages nobody knows are called so."""
    kept = rows[rows[x].notna() & rows[y].notna()]
    return kept.assign(lineage=kept.lineage.fillna(UNKNOWN).astype(str))


def scatter(rows: pd.DataFrame, x: str, y: str, names: dict[str, str], note: str, chosen: str | None) -> go.Figure:
    """A column of similarity (across) against one of knowledge (up), as paraknow/runs/landscape.py makes them.

    Marks tell lineages apart by colour and shape; runs here are solid and outlined, with their intervals, and carry
    their id and model as `customdata`; what came with the package is larger and faint. `chosen`: the run with a ring.
    names: a title per column. note: the line under the title.
    """
    kept = drawn(rows, x, y)
    figure = go.Figure()
    for level in (0.0, 1.0) if y == "share" else (0.0,):
        dash = "dot" if level else "solid"
        figure.add_hline(y=level, line={"color": NEUTRAL, "width": 1.5, "dash": dash}, layer="below")
    look = rung_styles()
    for own in (False, True):
        for lineage in ordered(kept.lineage.tolist()):
            for kind in ("control", "baseline", "known answer", "examined"):
                part = kept[(kept.source == "run").eq(own) & (kept.lineage == lineage) & (kept.kind == kind)]
                if len(part):
                    _marks(figure, part, x, y, look.get(lineage, Style(NEUTRAL, "x")), own, lineage, kind)
    ring = kept[(kept.source == "run") & (kept.run == chosen)]
    if len(ring):
        figure.add_trace(
            go.Scatter(
                x=ring[x].tolist(),
                y=ring[y].tolist(),
                mode="markers",
                name="the chosen run",
                marker={"symbol": "circle-open", "size": BEFORE + 14, "color": NEUTRAL, "line": {"width": 2}},
                hoverinfo="skip",
            )
        )
    if kept.empty:
        figure.add_annotation(text="nothing has both values", x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
    figure.update_xaxes(title=names[x], zeroline=False, automargin=True)
    figure.update_yaxes(title=names[y], zeroline=False, automargin=True)
    figure.update_layout(legend={"itemsizing": "trace", "font": {"size": 12}}, showlegend=True, dragmode="pan")
    return frame(figure, "Similarity against knowledge that arrived", 520, note)


def _marks(
    figure: go.Figure, part: pd.DataFrame, x: str, y: str, style: Style, own: bool, lineage: str, kind: str
) -> None:
    symbol = OF_KIND.get(kind, style.symbol)
    outline = 2.0 if symbol.endswith("-open") else 1.5 if own else 0.0
    marker: dict[str, Any] = {"color": style.color, "symbol": symbol, "size": BEFORE if own else BEHIND}
    marker |= {
        "opacity": 1.0 if own else 0.5,
        "line": {"width": outline, "color": style.color if not own else NEUTRAL},
    }
    if symbol.endswith("-open"):
        marker["line"]["color"] = style.color
    interval = bars(part[y], part[f"{y}_lo"], part[f"{y}_hi"]) if own else None
    if interval:
        interval |= {"thickness": 1.5, "width": 3}
    where = plain(lineage)
    figure.add_trace(
        go.Scatter(
            x=part[x].tolist(),
            y=part[y].tolist(),
            mode="markers",
            name=f"{'run here: ' if own else ''}{where}{'' if kind == 'examined' else f', {kind}'}",
            marker=marker,
            error_y=interval,
            # Streamlit hands back a point's customdata: the run that a click opens.
            customdata=[[str(r.run) if own else "", str(r.model)] for r in part.itertuples()],
            text=[_said(r, x, y) for r in part.itertuples()],
            hovertemplate="%{text}<extra></extra>",
        )
    )


def _said(row: Any, x: str, y: str) -> str:
    first = plain(row.run) if row.source == "run" else "came with the package"
    value = number(getattr(row, y), getattr(row, f"{y}_lo"), getattr(row, f"{y}_hi"))
    n = f", n = {int(row.n)} items" if pd.notna(row.n) else ""
    return (
        f"<b>{plain(row.model)}</b> on {plain(row.pair)}<br>{first}<br>similarity {number(getattr(row, x))}, "
        f"arrived {value}{n}"
    )


def describe(rows: pd.DataFrame, x: str, y: str, names: dict[str, str], said: Sequence[str]) -> str:
    """The plot in words, for screen readers."""
    kept = drawn(rows, x, y)
    parts = []
    for lineage in ordered(kept.lineage.tolist()):
        part = kept[kept.lineage == lineage]
        count = f"{len(part)} mark{'s' * (len(part) != 1)}"
        parts.append(f"{lineage}: {count}, mean {number(part[x].mean())} across, {number(part[y].mean())} up")
    return f"{names[y]} against {names[x]}. {' '.join(said)} {'; '.join(parts) or MISSING}."
