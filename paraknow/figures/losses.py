"""Fine-tuning losses of every model of a run."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from paraknow.figures.theme import frame, plain, short, styles

POINTS = 400  # per curve: more cannot be told apart on a screen


def curves(table: pd.DataFrame, kinds: dict[str, str], titles: dict[str, str]) -> go.Figure:
    """Loss against the optimiser step; columns label, seed, step, loss. One line per model and seed."""
    figure = go.Figure()
    drawn = styles(kinds)
    seeds = table.seed.nunique() if len(table) else 0
    for (label, seed), part in table.groupby(["label", "seed"], sort=False):
        style = drawn.get(str(label)) or styles({str(label): "baseline"})[str(label)]
        kept = part.iloc[:: max(1, -(-len(part) // POINTS))]
        if len(part) and kept.index[-1] != part.index[-1]:
            kept = pd.concat([kept, part.iloc[[-1]]])  # the last value is what people look for
        name = plain(short(titles.get(str(label), label))) + (f", seed {seed}" if seeds > 1 else "")
        figure.add_trace(
            go.Scatter(
                x=kept.step.tolist(),
                y=kept.loss.tolist(),
                name=name,
                mode="lines+markers" if len(kept) < 30 else "lines",
                line={"color": style.color, "dash": style.dash, "width": 2},
                marker={"symbol": style.symbol, "size": 7},
                hovertemplate=f"{name}<br>step %{{x}}: %{{y:.3f}} nats<extra></extra>",
            )
        )
    figure.update_xaxes(title="optimiser step", dtick=1 if len(table) and table.step.max() < 12 else None)
    figure.update_yaxes(title="loss (nats per answer token)", rangemode="tozero")
    figure.update_layout(legend={"orientation": "h", "y": -0.28, "x": 0}, showlegend=True)
    return frame(figure, "Fine-tuning loss on the training batches", 400, b=90)


def from_events(events: list[dict], stage: str = "tune") -> pd.DataFrame:
    """The loss curves that events.jsonl holds so far: label, seed, step (counted per model), loss."""
    lines = []
    for event in events:
        label, separator, seed = str(event.get("message", "")).rpartition(", seed ")
        loss, step = event.get("loss"), event.get("step", 0)
        if event.get("stage") == stage and isinstance(loss, float) and isinstance(step, int) and separator:
            lines.append({"label": label, "seed": seed, "position": step, "loss": loss})
    table = pd.DataFrame(lines, columns=["label", "seed", "position", "loss"])
    # A resumed run tunes an unfinished model again from its first step: the later value counts.
    table = table.drop_duplicates(["label", "seed", "position"], keep="last").sort_values("position", kind="stable")
    table["step"] = table.groupby(["label", "seed"], sort=False).cumcount() + 1
    return table[["label", "seed", "step", "loss"]].reset_index(drop=True)
