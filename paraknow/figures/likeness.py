"""What predicts a method's share on the ladder, and how the share grows with what is moved."""

from __future__ import annotations

import re

import pandas as pd
import plotly.graph_objects as go

from paraknow.figures.ladder import number, ordered, rung_styles
from paraknow.figures.theme import MISSING, NEUTRAL, Style, bars, frame, plain, signed

PREDICTORS = {
    "kinship": ("Kinship", "kinship of paired layers"),
    "cka": ("CKA", "CKA of paired streams"),
    "r2": ("Stitching R²", "R² of paired streams"),
    "fit_turned": ("Fit by turning", "variance explained"),
    "fit_same": ("Fit without turning", "variance explained"),
}
# A mode and its number of neurons, as `paraknow calibrate` labels variants: transport-widen-64.
DOSE = re.compile(r"-(?:(?P<mode>widen|replace|regress)-(?P<n>\d+)|(?P<m>\d+)-(?P<after>widen|replace|regress))(?=-|$)")


# -- what predicts it -------------------------------------------------------------------------------


def share_span(rows: pd.DataFrame, method: str) -> tuple[float, float]:
    """One range of shares for all panels of a method."""
    values = rows[rows.model == method].share.dropna()
    low, high = min(0.0, values.min()) if len(values) else 0.0, max(1.0, values.max()) if len(values) else 1.0
    pad = 0.07 * (high - low)
    return float(low - pad), float(high + pad)


def predictor(
    rows: pd.DataFrame, method: str, name: str, correlation: float | None, n: int, span: tuple[float, float]
) -> go.Figure:
    """A method's share against one measure of likeness: one mark per world and rung, told apart by rung."""
    title, axis = PREDICTORS[name]
    own = rows[rows.model == method]
    known = own[own.share.notna() & own[name].notna()] if name in own else own[:0]
    look = rung_styles()
    figure = go.Figure()
    for y in (0.0, 1.0):
        figure.add_hline(y=y, line={"color": NEUTRAL, "width": 1.5, "dash": "dot" if y else "solid"}, layer="below")
    for rung in ordered([str(r) for r in own.rung]):
        part = known[known.rung == rung]
        style = look.get(rung, Style(NEUTRAL, "x"))
        figure.add_trace(
            go.Scatter(
                x=part[name].tolist() if len(part) else [None],  # keeps its line in the legend, so that panels align
                y=part.share.tolist() if len(part) else [None],
                name=plain(rung),
                mode="markers",
                marker={"color": style.color, "symbol": style.symbol, "size": 11, "opacity": 0.85},
                customdata=[f"{plain(rung)}, world {plain(w)}" for w in part.world],
                hovertemplate="%{customdata}<br>%{x:.3f}: share %{y:.2f}<extra></extra>",
            )
        )
    if known.empty:
        figure.add_annotation(text="missing", x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
    figure.update_xaxes(
        title=axis,
        zeroline=False,
        nticks=5,
        automargin=True,
        tickfont={"color": "rgba(0,0,0,0)"} if known.empty else None,
    )
    figure.update_yaxes(title="share that arrived", range=list(span), zeroline=False)
    legend = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0, "font": {"size": 11}}
    figure.update_layout(legend=legend, showlegend=True, dragmode=False)
    rho = signed(correlation) if correlation is not None and correlation == correlation else MISSING
    height = 345 + 19 * own.rung.nunique()  # room for one rung a line in the legend
    return frame(figure, title, height, f"rank correlation {rho}, n = {n} pair{'s' * (n != 1)}", b=80)


def describe(rows: pd.DataFrame, method: str, name: str, correlation: float | None) -> str:
    """One panel in words, for screen readers."""
    own = rows[rows.model == method]
    known = own[own.share.notna() & own[name].notna()] if name in own else own[:0]
    rho = signed(correlation) if correlation is not None and correlation == correlation else "missing"
    pairs = "; ".join(
        f"{rung} {x:.2f}, share {number(y)}"
        for rung, x, y in zip(known.rung, known.get(name, []), known.share, strict=True)
    )
    return f"{PREDICTORS[name][0]} against share, rank correlation {rho}: {pairs or 'no pair'}."


# -- dose and response ------------------------------------------------------------------------------


def doses(pooled: pd.DataFrame) -> pd.DataFrame:
    """Methods whose label names how many neurons were moved: rung, series (the label without the number), neurons,
    share, lo, hi. Only series with at least two numbers on a rung."""
    lines = []
    for row in pooled[pooled.part == "method"].itertuples():
        label = str(row.model)
        if match := DOSE.search(label):
            count, mode = match["n"] or match["m"], match["mode"] or match["after"]
            series = label[: match.start()] + f"-{mode}" + label[match.end() :]
            lines.append((row.rung, series, int(count), row.share, row.lo, row.hi))
    found = pd.DataFrame(lines, columns=["rung", "series", "neurons", "share", "lo", "hi"])
    several = found.groupby(["rung", "series"]).neurons.transform("nunique") > 1
    return found[several.astype(bool)].sort_values(["series", "neurons"]).reset_index(drop=True)


def dose(found: pd.DataFrame) -> go.Figure:
    """Share against the number of neurons a layer that were moved; one line per rung and series."""
    figure = go.Figure()
    look, dashes = rung_styles(), ("solid", "dash", "dot", "dashdot")
    every = list(dict.fromkeys(found.series))
    for y in (0.0, 1.0):
        figure.add_hline(y=y, line={"color": NEUTRAL, "width": 1.5, "dash": "dot" if y else "solid"}, layer="below")
    for rung in ordered([str(r) for r in found.rung]):
        for series in every:
            own = found[(found.rung == rung) & (found.series == series)]
            if own.empty:
                continue
            style = look.get(rung, Style(NEUTRAL, "x"))
            within = bars(own.share, own.lo, own.hi)
            if within:
                within |= {"thickness": 2, "width": 4}
            figure.add_trace(
                go.Scatter(
                    x=own.neurons.tolist(),
                    y=[v if v == v else None for v in own.share],
                    name=f"{plain(series)} on {plain(rung)}{'' if own.share.notna().any() else ': missing'}",
                    mode="lines+markers",
                    line={"color": style.color, "dash": dashes[every.index(series) % len(dashes)], "width": 2},
                    marker={"symbol": style.symbol, "size": 10},
                    error_y=within,
                    customdata=[number(r.share, r.lo, r.hi) for r in own.itertuples()],
                    hovertemplate=f"{plain(series)} on {plain(rung)}<br>%{{x}} neurons: %{{customdata}}<extra></extra>",
                )
            )
    ticks = sorted(set(found.neurons))
    figure.update_xaxes(
        type="log",
        tickvals=ticks,
        ticktext=[str(t) for t in ticks],
        title="neurons moved in every layer",
        zeroline=False,
    )
    values = pd.concat([found.share, found.lo, found.hi, pd.Series([0.0, 1.0])])
    pad = 0.06 * (values.max() - values.min())
    span = [float(values.min() - pad), float(values.max() + pad)]
    figure.update_yaxes(title="share that arrived", range=span, zeroline=False)
    legend = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0}
    figure.update_layout(legend=legend, showlegend=True, dragmode=False)
    return frame(figure, "Dose and response", 420, "bars: 95 %", b=96)
