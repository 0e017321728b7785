"""The block that would be moved against the student's matrix: cosines, interference, spectra."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from paraknow.config import MODULES
from paraknow.figures.theme import EXPECTED, NEUTRAL, STUDENT, TEACHER, frame, plain, short, side_by_side

SOURCES = {
    "block": ("the teacher's block", "diamond", TEACHER.color),
    "own": ("the student's own top part", "circle", STUDENT.color),
    "noise": ("noise of the same size", "square-open", NEUTRAL),
}
QUANTITIES = {
    "cos": ("cosine of BA and W", None),
    "cos_rest": ("cosine of BA and W − BA", "cos_rest_expected"),
    "norm_ratio": ("‖BA‖ / ‖W‖", None),
    "left_overlap": ("overlap of column spaces", "left_expected"),
    "right_overlap": ("overlap of row spaces", "right_expected"),
    "interference": ("share of BA's energy in what the student uses", "interference_expected"),
}


def geometry(table: pd.DataFrame, quantity: str, names: dict[str, str]) -> go.Figure:
    """One quantity for every matrix, a mark per student layer and source; dashes where arithmetic alone would put it.

    Columns of similarity/weights.parquet. Missing values have no mark.
    """
    label, expected = QUANTITIES[quantity]
    order = [m for m in MODULES if m in set(table.module)]
    place = {module: i for i, module in enumerate(order)}
    own = table[table.module.isin(order)]
    spread = side_by_side(own.student_layer, 0.16)
    figure = go.Figure()
    for index, (source, (name, symbol, color)) in enumerate(SOURCES.items()):
        part = own[own.source == source]
        x = [place[m] + 0.26 * (index - 1) + spread[k] for m, k in zip(part.module, part.student_layer, strict=True)]
        figure.add_trace(
            go.Scatter(
                x=x,
                y=[v if pd.notna(v) else None for v in part[quantity]],
                mode="markers",
                name=name,
                customdata=part[["module", "teacher_layer", "student_layer"]].to_numpy(),
                marker={
                    "symbol": symbol,
                    "size": 9 if len(spread) <= 12 else 6,
                    "color": color,
                    "line": {"width": 1.5, "color": color},
                },
                hovertemplate="%{customdata[0]}, layer %{customdata[1]} → %{customdata[2]}: %{y:.3f}<extra></extra>",
            )
        )
        if expected:
            means = part.groupby("module")[expected].mean()
            figure.add_trace(
                go.Scatter(
                    x=[v for m in means.index for v in (place[m] + 0.26 * (index - 1) + d for d in (-0.1, 0.1, 0.1))],
                    y=[v for m in means.index for v in (means[m], means[m], None)],
                    mode="lines",
                    line={"color": EXPECTED, "width": 3},
                    name="expected by arithmetic" if quantity == "cos_rest" else "expected of random directions",
                    showlegend=index == 0,
                    hovertemplate="expected: %{y:.3f}<extra></extra>",
                )
            )
    figure.update_xaxes(tickvals=list(place.values()), ticktext=order, title="matrix", range=[-0.6, len(order) - 0.4])
    figure.update_yaxes(title=label, zeroline=True, zerolinecolor=NEUTRAL)
    figure.update_layout(legend={"orientation": "h", "y": -0.24, "x": 0}, dragmode=False)
    ranks = sorted({int(r) for r in own["rank"]})
    both = f"{plain(short(names['teacher'], 20))} → {plain(short(names['student'], 20))}"
    note = f"{both}, rank {', '.join(map(str, ranks)) or '–'}; one mark per layer, in order"
    return frame(figure, f"{label[:1].upper()}{label[1:]}", 430, note, b=100)


def spectra(table: pd.DataFrame, module: str, names: dict[str, str]) -> go.Figure:
    """Singular values relative to the largest, per model: the median over layers and the band from least to most.

    Where `table` holds one layer of each model, those two layers are named in its place.
    """
    own = table[table.module == module]
    figure = go.Figure()
    for model, style in (("teacher", TEACHER), ("student", STUDENT)):
        part = own[own.model == model]
        if part.empty:
            continue
        wide = part.groupby("index")["size"].agg(["min", "median", "max"])
        x = wide.index.tolist()
        name = plain(short(names[model], 28))
        figure.add_trace(
            go.Scatter(
                x=[*x, *x[::-1]],
                y=[*wide["max"].tolist(), *wide["min"].tolist()[::-1]],
                fill="toself",
                line={"width": 0},
                fillcolor=style.color,
                opacity=0.18,
                showlegend=False,
                hoverinfo="skip",
            )
        )
        figure.add_trace(
            go.Scatter(
                x=x,
                y=wide["median"].tolist(),
                mode="lines",
                name=f"{name} ({int(part.shape0.iloc[0])} × {int(part.shape1.iloc[0])})",
                line={"color": style.color, "width": 2.5, "dash": "solid" if model == "teacher" else "dash"},
                hovertemplate=f"{name}: σ of place %{{x}} is %{{y:.3f}} of the largest<extra></extra>",
            )
        )
    figure.update_xaxes(title="place of the singular value")
    figure.update_yaxes(title="size relative to the largest", range=[0, 1.02])
    figure.update_layout(legend={"orientation": "h", "y": -0.28, "x": 0}, dragmode=False)
    layers = own.groupby("model").layer.nunique().max() if len(own) else 0
    note = f"median and range over up to {layers} layers"
    if layers == 1:
        only = own.groupby("model").layer.first().items()
        note = "; ".join(f"layer {k} of {plain(short(names[str(m)], 22))}" for m, k in only)
    return frame(figure, f"Singular values of {module}", 380, note, b=100)
