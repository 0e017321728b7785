"""Two runs' figures and their difference, second − first: on a common range, diverging at 0."""

from __future__ import annotations

import altair as alt
import pandas as pd
import plotly.graph_objects as go

from paraknow.config import MODULES
from paraknow.figures import deltas, similarity
from paraknow.figures.theme import short

FIRST, SECOND, DIFFERENCE = "first", "second", "second − first"
PAIRED = deltas.Measure(
    "delta", "delta_lo", "delta_hi", "accuracy of the second run − the first, same items", guess=0.0
)


def minus(first: pd.DataFrame, second: pd.DataFrame, keys: list[str], value: str) -> pd.DataFrame:
    """Every cell that one of two tables has, with `difference` (second − first) missing where only one has it."""
    both = first[[*keys, value]].merge(second[[*keys, value]], on=keys, how="outer", suffixes=("_first", "_second"))
    return both.assign(difference=both[f"{value}_second"] - both[f"{value}_first"])


def bound(values: pd.Series, least: float) -> float:
    """The end of a range around 0 that holds all values."""
    largest = values.abs().max(skipna=True)
    return max(least, float(largest)) if pd.notna(largest) else least


def layer_map(first: pd.DataFrame, second: pd.DataFrame, value: str, what: str, model: str) -> alt.LayerChart:
    """Second − first of a layer × module map (columns layer, module and `value`); orange where the second is larger.

    Cells that only one run has are grey and crossed.
    """
    keys = ["layer", "module"]
    table = minus(first[first.module.isin(MODULES)], second[second.module.isin(MODULES)], keys, value)
    end = bound(table.difference, 1e-3)
    table["missing"] = table.difference.isna()
    table["said"] = ["in one run only" if pd.isna(v) else f"{v:+.3g}".replace("-", "−") for v in table.difference]
    whole = alt.Scale(round=True)  # edges between pixels would look like lines in the data
    across = alt.X("module:N", sort=list(MODULES), title="matrix", axis=alt.Axis(labelAngle=0, orient="bottom"))
    base = alt.Chart(table).encode(
        x=across.scale(whole),
        y=alt.Y("layer:O", title=f"layer of {short(model, 28)}", sort="ascending", scale=whole),
        tooltip=[
            alt.Tooltip("layer:O", title="layer"),
            alt.Tooltip("module:N", title="matrix"),
            alt.Tooltip("said:N", title=DIFFERENCE),
        ],
    )
    colors = [similarity.DIVERGING[k] for k in (0, 2, 4)]
    color = alt.Color(
        "difference:Q",
        title=None,
        scale=alt.Scale(domain=[-end, 0, end], range=colors, clamp=True),
        legend=alt.Legend(orient="bottom", direction="horizontal", gradientLength=180, format=".1~e", tickCount=3),
    )
    cells = base.mark_rect(invalid="show").encode(
        color=alt.when(alt.datum.missing).then(alt.value(similarity.ABSENT)).otherwise(color)
    )
    crosses = base.transform_filter(alt.datum.missing).mark_point(
        shape="cross", angle=45, size=120, filled=True, color="#FFFFFF", opacity=1
    )
    title = f"{DIFFERENCE}: {what}"
    return alt.layer(cells, crosses).properties(title=title, height=alt.Step(34)).configure_view(strokeWidth=0)


def pair_map(first: pd.DataFrame, second: pd.DataFrame, value: str, what: str, names: dict[str, str]) -> alt.LayerChart:
    """Second − first of a teacher layer × student layer map; orange where the second is larger."""
    table = minus(first, second, ["teacher_layer", "student_layer"], value)
    end = bound(table.difference, 0.01)
    title = f"{DIFFERENCE}: {what}"
    return similarity.pair_map(table, "difference", names, title, (-end, end), True, clickable=False)


def panel(rows: pd.DataFrame, title: str, names: dict[str, str], kinds: dict[str, str]) -> go.Figure:
    """Second − first in accuracy of every model that both runs measured on the same items, with 95 % intervals.

    Columns title, model, kind, n, delta, delta_lo, delta_hi, as runs.compare pairs them.
    """
    return deltas.panel(rows, PAIRED, title, names, deltas.limits(rows, PAIRED), kinds)
