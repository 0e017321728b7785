"""One prompt against its task: where its answer depends on other weights than the task's answers do."""

from __future__ import annotations

import altair as alt
import pandas as pd

from paraknow.config import MODULES
from paraknow.figures.heatmaps import layer_map
from paraknow.figures.similarity import DIVERGING
from paraknow.figures.theme import short

WHAT = "share of this prompt − share of the task"


def share_map(table: pd.DataFrame, span: tuple[float, float], model: str) -> alt.Chart:
    """One model's layer × module map for a prompt; columns as in `heatmaps.layer_map`, `span` shared by both models."""
    chart = layer_map(table, "share", span, model, clickable=False)
    return chart.properties(title=f"{short(model, 40)}: share of |w · ∇| for this prompt")


def differences(prompt: pd.DataFrame, task: pd.DataFrame) -> pd.DataFrame:
    """A prompt's share of the sensitivity less its task's, per cell: model, layer, module, prompt, task, difference.

    Both tables have the columns model, layer, module and share, one row a cell. Cells that one of them lacks are left
    out.
    """
    keys = ["model", "layer", "module"]
    both = prompt[[*keys, "share"]].merge(task[[*keys, "share"]], on=keys, suffixes=("_prompt", "_task"))
    both = both.rename(columns={"share_prompt": "prompt", "share_task": "task"})
    both["difference"] = both.prompt - both.task
    return both[both.module.isin(MODULES)].reset_index(drop=True)


def difference_map(table: pd.DataFrame, limit: float, model: str) -> alt.LayerChart:
    """One model's differences by layer and matrix, blue below 0 and orange above; `limit` is shared by both models.

    A sign stands in every cell beyond a tenth of it.
    """
    limit = limit or 1e-9
    beyond = table.difference.abs() > limit / 10
    table = table.assign(sign=table.difference.map(lambda d: "+" if d > 0 else "−").where(beyond, ""))
    base = alt.Chart(table).encode(
        x=alt.X("module:N", sort=list(MODULES), title="matrix", axis=alt.Axis(labelAngle=0, orient="bottom")),
        y=alt.Y("layer:O", title=f"layer of {short(model, 28)}", sort="ascending"),
    )
    cells = base.mark_rect().encode(
        color=alt.Color(
            "difference:Q",
            title=None,
            scale=alt.Scale(domain=[-limit, 0, limit], range=[DIVERGING[0], DIVERGING[2], DIVERGING[4]], clamp=True),
            legend=alt.Legend(orient="bottom", direction="horizontal", gradientLength=260, format="+.1%", tickCount=3),
        ),
        tooltip=[
            alt.Tooltip("layer:O", title="layer"),
            alt.Tooltip("module:N", title="matrix"),
            alt.Tooltip("prompt:Q", title="share of this prompt", format=".2%"),
            alt.Tooltip("task:Q", title="share of the task", format=".2%"),
            alt.Tooltip("difference:Q", title="difference", format="+.2%"),
        ],
    )
    signs = base.mark_text(color="#10151C", fontSize=14).encode(text="sign:N")
    title = f"{short(model, 40)}: {WHAT}"
    return (cells + signs).properties(title=title, height=alt.Step(34)).configure_view(strokeWidth=0)
