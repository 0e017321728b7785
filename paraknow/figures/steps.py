"""Scores of a method's own steps on what the step that is kept was chosen on."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from paraknow.figures.theme import BASELINES, BLOCK, EXAMINED, frame, plain, short

COLUMNS = {"step", "score", "chosen"}


def scores(table: pd.DataFrame, title: str) -> go.Figure:
    """Score against the step, columns seed, step, score, chosen; step 0 is before training. The chosen step of every
    seed is ringed. A score that is not finite is a gap."""
    figure = go.Figure()
    seeds = list(dict.fromkeys(table.seed))
    palette = (EXAMINED, *BASELINES)
    for k, seed in enumerate(seeds):
        own = table[table.seed == seed].sort_values("step")
        style = palette[k % len(palette)]
        figure.add_trace(
            go.Scatter(
                x=own.step.tolist(),
                y=[None if pd.isna(v) else v for v in own.score],
                name=f"seed {plain(seed)}",
                mode="lines+markers",
                showlegend=len(seeds) > 1,
                line={"color": style.color, "dash": style.dash, "width": 2},
                marker={"symbol": style.symbol, "size": 8},
                hovertemplate="step %{x}: %{y:.4g} nats<extra></extra>",
            )
        )
    kept = table[table.chosen.eq(True) & table.score.notna()]
    figure.add_trace(
        go.Scatter(
            x=kept.step.tolist(),
            y=kept.score.tolist(),
            name="chosen step",
            mode="markers",
            marker={"symbol": "circle-open", "size": 18, "color": BLOCK, "line": {"width": 3}},
            hovertemplate="chosen: step %{x}, %{y:.4g} nats<extra></extra>",
        )
    )
    figure.update_xaxes(title="step (0: before training)", dtick=1 if table.step.max() < 15 else None)
    figure.update_yaxes(title="score (nats per answer token)")
    figure.update_layout(legend={"orientation": "h", "y": -0.28, "x": 0}, showlegend=True, dragmode=False)
    return frame(figure, "Which step is kept", 360, f"{plain(short(title, 50))}; less is better", b=90)
