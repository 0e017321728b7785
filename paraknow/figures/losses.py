"""Fine-tuning losses of every model of a run."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import pandas as pd
import plotly.graph_objects as go

from paraknow.figures.theme import frame, plain, short, styles

POINTS = 400  # per curve: more cannot be told apart on a screen


def curves(table: pd.DataFrame, kinds: dict[str, str], titles: dict[str, str]) -> go.Figure:
    """Loss against the optimiser step; columns label, seed, step, loss. One line per model and seed.

    At most POINTS + 1 steps of each are drawn, the first and the last among them; the axis says so.
    """
    figure, thinned = go.Figure(), 1
    drawn = styles(kinds)
    seeds = table.seed.nunique() if len(table) else 0
    for (label, seed), part in table.groupby(["label", "seed"], sort=False):
        style = drawn.get(str(label)) or styles({str(label): "baseline"})[str(label)]
        every = max(1, -(-len(part) // POINTS))
        thinned = max(thinned, every)
        kept = part.iloc[::every]
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
    drawn_of = f" (of more than {POINTS} steps, every {thinned}. and the last are drawn)" if thinned > 1 else ""
    figure.update_xaxes(title=f"optimiser step{drawn_of}", dtick=1 if len(table) and table.step.max() < 12 else None)
    figure.update_yaxes(title="loss (nats per answer token)", rangemode="tozero")
    figure.update_layout(legend={"orientation": "h", "y": -0.28, "x": 0}, showlegend=True)
    return frame(figure, "Fine-tuning loss on the training batches", 400, b=90)


class Told:
    """The losses that a run's events tell, taken in as they come: numbers alone, for a long run tells many."""

    def __init__(self, stage: str = "tune"):
        self.stage = stage
        self.held: dict[tuple[str, str], tuple[array, array]] = {}  # (label, seed): positions in the stage, losses

    def add(self, events: Iterable[dict]) -> None:
        """Take further events in."""
        for event in events:
            label, separator, seed = str(event.get("message", "")).rpartition(", seed ")
            loss, step = event.get("loss"), event.get("step")
            if event.get("stage") != self.stage or not separator:
                continue
            if isinstance(loss, int | float) and isinstance(step, int) and abs(step) < 2**62:
                steps, values = self.held.setdefault((label, seed), (array("q"), array("d")))
                steps.append(step)
                values.append(float(loss))

    def table(self) -> pd.DataFrame:
        """label, seed, step (counted per model), loss. Of a step that was made twice the later loss counts: a run
        that is resumed makes the steps again that came after what it goes on from."""
        parts = []
        for (label, seed), (steps, values) in self.held.items():
            part = pd.DataFrame({"label": label, "seed": seed, "position": list(steps), "loss": list(values)})
            part = part.drop_duplicates("position", keep="last").sort_values("position", kind="stable")
            parts.append(part.assign(step=range(1, len(part) + 1)))
        columns = ["label", "seed", "step", "loss"]
        return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def from_events(events: Iterable[dict], stage: str = "tune") -> pd.DataFrame:
    """The loss curves that events hold; see `Told.table`."""
    told = Told(stage)
    told.add(events)
    return told.table()
