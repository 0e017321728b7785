"""What attention and FFN of each layer add to the answer's word, and whether seeds and tasks agree."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from paraknow.config import MODULES
from paraknow.figures.theme import EXPECTED, NEUTRAL, bars, frame, plain, short, side_by_side

KINDS = {"attention": ("attention", "#2F7FC1", ""), "ffn": ("FFN", "#C96F00", "/")}
MANY = 16  # layers from which a chart needs the page's whole width


def sublayers(table: pd.DataFrame, model: str) -> go.Figure:
    """Per layer: the gain in log p of attention and FFN (bars, ± 1.96 standard errors) and the sum over their neurons.

    One model's and task's part of locate/attribution.parquet. Signed square-root-like scaling is not used: where one
    layer does nearly everything, that is what the picture should say.
    """
    whole, seeds = table[table.seed == -1], table[table.seed >= 0]
    n = seeds.seed.nunique()
    few = whole.layer.nunique() <= MANY
    figure = go.Figure()
    for kind, (name, color, pattern) in KINDS.items():
        own = whole[whole.kind == kind].sort_values("layer")
        spread = seeds[seeds.kind == kind].groupby("layer").score.std(ddof=1) * np.sqrt(n)
        half = 1.96 * spread.reindex(own.layer).to_numpy()
        within = bars(own.score, own.score - half, own.score + half)
        if within:
            within |= {"thickness": 1.5, "width": 4, "color": NEUTRAL}
        figure.add_trace(
            go.Bar(
                x=own.layer.tolist(),
                y=own.score.tolist(),
                name=name,
                marker={"color": color, "pattern": {"shape": pattern}},
                error_y=within,
                offsetgroup=kind,
                hovertemplate=f"{name} of layer %{{x}}: %{{y:.4g}} nats<extra></extra>",
            )
        )
        figure.add_trace(
            go.Scatter(
                x=[layer + (-0.2 if kind == "attention" else 0.2) for layer in own.layer],
                y=own.summed.tolist(),
                mode="markers",
                name=f"sum over the {name}'s neurons",
                marker={
                    "symbol": "line-ew-open",
                    "size": 16 if few else 7,
                    "color": color,
                    "line": {"width": 3, "color": color},
                },
                hovertemplate=f"sum over the {name}'s neurons: %{{y:.4g}} nats<extra></extra>",
            )
        )
    figure.update_xaxes(title=f"layer of {plain(short(model, 28))}", dtick=1 if few else None)
    figure.update_yaxes(title="gain in log p of the word (nats)", zeroline=True, zerolinecolor=NEUTRAL)
    figure.update_layout(barmode="group", legend={"orientation": "h", "y": -0.26, "x": 0}, dragmode=False)
    note = f"sum over n = {n} seed examples; lines: ± 1.96 standard errors"
    return frame(figure, f"Where {plain(short(model, 34))} finds the answer's last word", 420, note, b=100)


def overlaps(table: pd.DataFrame, title: str, note: str) -> go.Figure:
    """Block overlap and map correlation per matrix: a mark per layer, and a bar where chance would put them.

    Rows of locate/agreement.parquet with `what` block and map.
    """
    figure = go.Figure()
    kinds = {
        "block": ("overlap of the chosen blocks", "diamond", "#C96F00"),
        "map": ("rank correlation of the maps", "circle", "#2F7FC1"),
    }
    order = [m for m in MODULES if m in set(table.module)]
    place = {module: i for i, module in enumerate(order)}
    spread = side_by_side(table.layer.dropna(), 0.2)
    for index, (what, (name, symbol, color)) in enumerate(kinds.items()):
        own = table[(table.what == what) & table.module.isin(order)]
        if own.empty:
            continue
        shift = 0.3 * (index - 0.5)
        figure.add_trace(
            go.Scatter(
                x=[place[m] + shift + spread.get(k, 0.0) for m, k in zip(own.module, own.layer, strict=True)],
                y=[v if pd.notna(v) else None for v in own.value],
                mode="markers",
                name=name,
                customdata=own[["module", "layer"]].astype(object).to_numpy(),
                marker={"symbol": symbol, "size": 10 if len(spread) <= 12 else 7, "color": color},
                hovertemplate=f"{name}, %{{customdata[0]}} of layer %{{customdata[1]}}: %{{y:.2f}}<extra></extra>",
            )
        )
        means = own.groupby("module").chance.mean()
        figure.add_trace(
            go.Scatter(
                x=[v for m in means.index for v in (place[m] + shift - 0.12, place[m] + shift + 0.12, None)],
                y=[v for m in means.index for v in (means[m], means[m], None)],
                mode="lines",
                line={"color": EXPECTED, "width": 3},
                name="expected by chance",
                showlegend=index == 0,
                hovertemplate="by chance: %{y:.2f}<extra></extra>",
            )
        )
    figure.update_xaxes(tickvals=list(place.values()), ticktext=order, title="matrix", range=[-0.6, len(order) - 0.4])
    low = float(table.value.min()) if table.value.notna().any() else 0.0
    figure.update_yaxes(title="agreement (1: the same)", range=[min(-0.05, low - 0.05), 1.05])
    figure.update_layout(legend={"orientation": "h", "y": -0.28, "x": 0}, dragmode=False)
    return frame(figure, plain(title), 380, plain(note), b=100)
