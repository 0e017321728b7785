"""Scores of the teacher's layers, which were chosen, and which of the student's layers they feed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from paraknow.figures.theme import NEUTRAL, bars, frame, plain, short, sparse

CHOSEN = "#2F7FC1"


def seed_spread(sensitivity: pd.DataFrame, model: str, task: str) -> pd.DataFrame:
    """Per layer the sum over seeds and its standard error, √n · s of the seeds' own sums (columns layer, se, n)."""
    own = sensitivity[(sensitivity.model == model) & (sensitivity.task == task) & (sensitivity.seed >= 0)]
    per_seed = own.groupby(["layer", "seed"])["sum"].sum().unstack("seed")
    n = per_seed.shape[1]
    error = per_seed.std(axis=1, ddof=1) * np.sqrt(n) if n > 1 else pd.Series(np.nan, per_seed.index)
    return pd.DataFrame({"layer": per_seed.index, "se": error.to_numpy(), "n": n})


def scores(table: pd.DataFrame, spread: pd.DataFrame, teacher: str, student: str) -> go.Figure:
    """Bars per teacher layer; filled where chosen, with the student's layer written beside the teacher's.

    `table` is one task's part of locate/layers.parquet; `spread` comes from `seed_spread`.
    """
    table = table.merge(spread, on="layer", how="left").sort_values("layer")
    feeds, step = table.student_layer, sparse(len(table))
    within = bars(table.score, table.score - 1.96 * table.se, table.score + 1.96 * table.se)
    if within:
        within |= {"thickness": 1.5, "width": 4, "color": NEUTRAL}
    figure = go.Figure(
        go.Bar(
            y=table.layer.tolist(),
            x=table.score.tolist(),
            orientation="h",
            marker={
                "color": [CHOSEN if c else "rgba(124,135,148,0.25)" for c in table.chosen],
                "line": {"color": [CHOSEN if c else NEUTRAL for c in table.chosen], "width": 1},
            },
            error_x=within,
            customdata=["not chosen" if pd.isna(fed) else f"feeds layer {int(fed)}" for fed in feeds],
            hovertemplate="layer %{y}: %{x:.4g}, %{customdata}<extra></extra>",
        )
    )
    n = int(table.n.max()) if len(table) and table.n.notna().any() else 0
    figure.update_xaxes(title="summed |w · ∇| (nats)")
    figure.update_yaxes(
        title=f"layer of {plain(short(teacher, 20))}",
        autorange="reversed",
        tickvals=table.layer.tolist()[::step],
        ticktext=[
            str(layer) if pd.isna(fed) else f"{layer} → {int(fed)}"
            for layer, fed in zip(table.layer, feeds, strict=True)
        ][::step],
    )
    figure.update_layout(bargap=0.25, showlegend=False, dragmode=False)
    fed = f"filled: chosen, with the layer of {plain(short(student, 20))} it feeds"
    title, height = f"Sensitivity of {plain(short(teacher, 26))}'s layers", max(290, 130 + min(34 * len(table), 700))
    return frame(figure, title, height, f"n = {n} seed examples; lines: ± 1.96 standard errors; {fed}")
