"""Two tasks on one model: the difference of their maps, and how much of what matters most they have in common."""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd
import plotly.graph_objects as go

from paraknow.config import MODULES
from paraknow.figures.heatmaps import axes, row_height
from paraknow.figures.similarity import DIVERGING
from paraknow.figures.theme import EXPECTED, NEUTRAL, frame, plain, short, titled

INK = "#10151C"
SIGN = 10  # pixels of a row that holds a sign
TOP = 0.1  # of the cells or neurons: those held against each other


def difference(table: pd.DataFrame, one: str, other: str) -> pd.DataFrame:
    """Share minus share per layer and module: columns layer, module, one, other, difference.

    `table` is one model's part of locate/sensitivity.parquet, sums over seeds (seed −1). A cell that one of the tasks
    lacks is NaN.
    """
    own = table[table.module.isin(MODULES)]
    wide = own[own.task.isin([one, other])].pivot_table(index=["layer", "module"], columns="task", values="share")
    wide = wide.reindex(columns=[one, other]).set_axis(["one", "other"], axis=1)
    return wide.assign(difference=wide.one - wide.other).reset_index()


def bound(*tables: pd.DataFrame) -> float:
    """Half the colour range that all tables of differences fit in; 0.001 where nothing differs."""
    values = [float(t.difference.abs().max()) for t in tables if t.difference.notna().any()]
    return max([1e-3, *values])


def difference_map(
    table: pd.DataFrame, sides: dict[str, str], limit: float, model: str, title: str, note: str, signs: bool = False
) -> alt.LayerChart:
    """`difference` by layer and module as colours that diverge at 0 and end at ± `limit`: orange above 0, blue below.

    `sides`: the two columns of shares that it was taken from, and what each is called. `signs`: a + or − in each cell
    beyond a tenth of the limit, where rows are high enough for one. `note` stands under the title.
    """
    height = row_height(table)
    scale = alt.Scale(domain=[-limit, 0, limit], range=[DIVERGING[0], DIVERGING[2], DIVERGING[4]], clamp=True)
    legend = alt.Legend(
        orient="bottom", direction="horizontal", gradientLength=220, format="+.1%", values=[-limit, 0, limit]
    )
    beyond = table.difference.abs() > limit / 10
    sign = table.difference.map(lambda d: "+" if d > 0 else "−").where(beyond, "")
    base = alt.Chart(table.assign(shown=table.difference.clip(-limit, limit), sign=sign)).encode(**axes(table, model))
    cells = base.mark_rect().encode(
        color=alt.Color("shown:Q", title=None, scale=scale, legend=legend),
        tooltip=[
            alt.Tooltip("layer:O", title="layer"),
            alt.Tooltip("module:N", title="matrix"),
            *(
                alt.Tooltip(f"{column}:Q", title=f"share, {short(name, 24)}", format=".2%")
                for column, name in sides.items()
            ),
            alt.Tooltip("difference:Q", title="difference", format="+.2%"),
        ],
    )
    written = base.mark_text(color=INK, fontSize=min(14, height)).encode(text="sign:N")
    chart = alt.layer(cells, *([written] if signs and height >= SIGN else []))
    return chart.properties(title=titled(title, note), height=alt.Step(height)).configure_view(strokeWidth=0)


def in_common(one: np.ndarray, other: np.ndarray, top: float = TOP) -> dict[str, float]:
    """How many of the `top` share of entries of two scorings (n,) are the same ones.

    Returns n, k (their number), common (of k), share (common / k), and what random choices of k would have in common:
    chance (its mean, k / n), chance_lo and chance_hi (95 % of them; hypergeometric). Ties are broken by place.
    """
    from scipy.stats import hypergeom

    n = len(one)
    k = max(1, round(top * n))
    first, second = (set(np.argsort(-np.nan_to_num(x), kind="stable")[:k].tolist()) for x in (one, other))
    common, draw = len(first & second), hypergeom(n, k, k)
    found = {"n": n, "k": k, "common": common, "share": common / k, "chance": k / n}
    return found | {"chance_lo": float(draw.ppf(0.025)) / k, "chance_hi": float(draw.ppf(0.975)) / k}


def overlap(cells: pd.DataFrame, neurons: pd.DataFrame, one: str, other: str, top: float = TOP) -> pd.DataFrame:
    """`in_common` for every model: its matrices by share, its neurons by score. One line per model and kind.

    `cells` holds task, model, layer, module, share; `neurons` task, model, layer, kind, neuron, score (may be empty).
    What only one of the tasks has is left out.
    """
    lines = []
    for model in ("teacher", "student"):
        own = cells[(cells.model == model) & cells.module.isin(MODULES)]
        sides = [own[own.task == t].set_index(["layer", "module"]).share for t in (one, other)]
        lines += _line(model, "matrices", sides, top)
        for kind in ("attention", "ffn"):
            part = neurons[(neurons.model == model) & (neurons.kind == kind)] if len(neurons) else neurons
            if len(part):
                sides = [part[part.task == t].set_index(["layer", "neuron"]).score for t in (one, other)]
                lines += _line(model, f"{'FFN' if kind == 'ffn' else kind} neurons", sides, top)
    columns = "model of n k common share chance chance_lo chance_hi".split()
    return pd.DataFrame(lines, columns=columns)


def _line(model: str, what: str, sides: list[pd.Series], top: float) -> list[dict]:
    both = pd.concat(sides, axis=1, join="inner").to_numpy(float)
    return [{"model": model, "of": what, **in_common(both[:, 0], both[:, 1], top)}] if len(both) else []


def overlap_chart(table: pd.DataFrame, names: dict[str, str], one: str, other: str) -> go.Figure:
    """`overlap` as marks (share in common), a bar where random choices would lie, and the counts beside them."""
    labels = [f"{plain(short(names[str(r.model)], 22))}: {r.of}" for r in table.itertuples()]
    figure = go.Figure()
    figure.add_trace(
        go.Scatter(
            x=table.chance.tolist(),
            y=labels,
            mode="markers",
            name="random choices (95 %)",
            error_x={
                "type": "data",
                "symmetric": False,
                "array": (table.chance_hi - table.chance).tolist(),
                "arrayminus": (table.chance - table.chance_lo).tolist(),
                "thickness": 6,
                "width": 0,
                "color": NEUTRAL,
            },
            marker={"symbol": "line-ns-open", "size": 14, "color": EXPECTED, "line": {"width": 3}},
            hovertemplate="by chance: %{x:.2f}<extra></extra>",
        )
    )
    figure.add_trace(
        go.Scatter(
            x=table.share.tolist(),
            y=labels,
            mode="markers+text",
            name="in common",
            text=[f"{r.common} of {r.k}" for r in table.itertuples()],
            textposition="top center",
            marker={"symbol": "diamond", "size": 13, "color": "#C96F00"},
            customdata=table[["common", "k", "n"]].to_numpy(),
            hovertemplate="%{customdata[0]} of the top %{customdata[1]} (of %{customdata[2]})<extra></extra>",
        )
    )
    figure.update_xaxes(title="share of the top ones in common", range=[-0.04, 1.08], zeroline=False)
    figure.update_yaxes(range=[len(labels) - 0.5, -0.8], automargin=True, showgrid=False)
    legend = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0}
    figure.update_layout(legend=legend, dragmode=False)
    title = f"Do {plain(short(one, 26))} and {plain(short(other, 26))} use the same places?"
    share = float(table.k.sum() / table.n.sum()) if len(table) else TOP
    note = f"the {share:.0%} that matter most in each task; numbers: how many are the same"
    return frame(figure, title, 170 + 44 * max(1, len(table)), note, b=90)
