"""Teacher layers against student layers: maps of CKA and stitching, one pair with its nulls, a summary of modules."""

from __future__ import annotations

from collections.abc import Iterable

import altair as alt
import pandas as pd
import plotly.graph_objects as go

from paraknow.figures.theme import (
    BLOCK,
    EXAMINED,
    MISSING,
    NEUTRAL,
    STUDENT,
    TEACHER,
    bars,
    frame,
    plain,
    short,
    sparse,
    titled,
)

SELECTION = "pair"
SIDES = ("teacher_layer", "student_layer")
MODULES = ("residual", "attention", "ffn", "q", "k", "v", "o", "gate", "up", "down")
NULLS = {
    "null": "rows permuted",
    "null_position": "rows permuted, positions kept",
    "untrained": "untrained pair",
}
DIVERGING = ["#2166AC", "#92C5DE", "#F7F7F7", "#FDB863", "#B35806"]  # blue, white, orange
ABSENT = "#9AA3AD"
INK = "#1B1F24"


def pair_map(
    table: pd.DataFrame,
    value: str,
    names: dict[str, str],
    title: str,
    limit: tuple[float, float] = (0.0, 1.0),
    diverging: bool = False,
    pairs: set[tuple[int, int]] | None = None,
    chosen: tuple[int, int] | None = None,
    clickable: bool = True,
    note: str = "",
    bounds: tuple[str, str] | None = None,
    beside: dict[str, str] | None = None,
) -> alt.LayerChart:
    """A map of `value` over teacher_layer (down) and student_layer (across); missing cells are grey and crossed.

    `names` holds the two models' titles, `pairs` the (teacher, student) layers of a pairing, drawn as rings; `bounds`
    the columns of a 95 % interval, `beside` further columns (column to title) that are told with a cell; `note` stands
    under the title. Clicking selects a whole cell.
    """
    pairs, beside = pairs or set(), beside or {}
    kept = table[["teacher_layer", "student_layer", value, *beside]].copy()
    kept["shown"] = kept[value].clip(*limit)
    kept["paired"] = [p in pairs for p in zip(kept.teacher_layer, kept.student_layer, strict=True)]
    kept["missing"] = kept[value].isna()
    absent = "undefined: constant outputs" if value in ("cka", "r2") else "missing"
    ends = zip(*(table[c] for c in bounds), strict=True) if bounds else ((None, None) for _ in range(len(kept)))
    kept["said"] = [absent if pd.isna(v) else said(v, *e) for v, e in zip(kept[value], ends, strict=True)]
    for column in beside:
        kept[column] = [MISSING if pd.isna(v) else said(v) for v in kept[column]]
    step = max(6, min(44, 420 // max(1, kept.teacher_layer.nunique())))
    whole = alt.Scale(round=True)  # edges between pixels would look like lines in the data
    across = f"layer of {short(names['student'], 26)}"
    axis = {side: alt.Axis(labelAngle=0, labelOverlap=False, values=_numbered(kept[side])) for side in SIDES}
    x = alt.X("student_layer:O", title=across, axis=axis["student_layer"], scale=whole)
    down = f"layer of {short(names['teacher'], 26)}"
    y = alt.Y("teacher_layer:O", title=down, sort="ascending", axis=axis["teacher_layer"], scale=whole)
    scale = (
        alt.Scale(domain=[limit[0], 0, limit[1]], range=[DIVERGING[0], DIVERGING[2], DIVERGING[4]], clamp=True)
        if diverging
        else alt.Scale(domain=list(limit), scheme="cividis", clamp=True)
    )
    tooltip = [
        alt.Tooltip("teacher_layer:O", title="teacher's layer"),
        alt.Tooltip("student_layer:O", title="student's layer"),
        alt.Tooltip("said:N", title=f"{title} (95 %)" if bounds else title),
        *(alt.Tooltip(f"{column}:N", title=name) for column, name in beside.items()),
    ]
    line = INK if diverging else BLOCK  # orange on orange would not be seen
    mark = alt.datum.teacher_layer == -99
    if chosen:
        mark = (alt.datum.teacher_layer == chosen[0]) & (alt.datum.student_layer == chosen[1])
    base = alt.Chart(kept).encode(x=x, y=y, tooltip=tooltip)
    color = alt.Color(
        "shown:Q",
        title=None,
        scale=scale,
        legend=alt.Legend(orient="bottom", direction="horizontal", gradientLength=180, format=".2~f", tickCount=3),
    )
    # Vega leaves cells without a number out unless told otherwise; here they are grey.
    cells = base.mark_rect(cursor="pointer" if clickable else "default", invalid="show").encode(
        color=alt.when(alt.datum.missing).then(alt.value(ABSENT)).otherwise(color),
        stroke=alt.when(mark).then(alt.value(line)).otherwise(alt.value("transparent")),
        strokeWidth=alt.value(3),
    )
    if clickable:
        picked = alt.selection_point(
            name=SELECTION, fields=["teacher_layer", "student_layer"], on="click", empty=False, clear=False
        )
        cells = cells.add_params(picked)
    size = (0.55 * step) ** 2
    rings = [  # a white edge keeps them apart from every colour below
        base.transform_filter(alt.datum.paired).mark_point(
            shape="circle", size=size, filled=False, stroke=stroke, strokeWidth=width, opacity=1
        )
        for stroke, width in (("#FFFFFF", min(6, 0.36 * step)), (line, min(2.5, 0.16 * step)))
        if pairs  # a layer without marks would be an image without text to screen readers
    ]
    crosses = base.transform_filter(alt.datum.missing).mark_point(
        shape="cross", angle=45, size=size, filled=True, color="#FFFFFF", opacity=1
    )
    layers = alt.layer(cells, *rings, *([crosses] if kept.missing.any() else []))
    return layers.properties(title=titled(title, note), height=alt.Step(step)).configure_view(strokeWidth=0)


def said(value: float, low: float | None = None, high: float | None = None) -> str:
    """A number with three digits and a real minus, its interval behind it where there is one."""
    number = lambda v: f"{v:.3f}".replace("-", "−")  # noqa: E731
    return number(value) if pd.isna(low) or pd.isna(high) else f"{number(value)} ({number(low)} to {number(high)})"


def _numbered(layers: pd.Series) -> list[int]:
    """The layers whose numbers stand at an axis: all, or every second, fifth, … of many."""
    step = sparse(layers.nunique(), 18)
    return [int(n) for n in sorted(layers.unique()) if int(n) % step == 0]


def marks(lines: Iterable[tuple[str, float, float | None, float | None, str, str]]) -> go.Figure:
    """One mark a line: name, value, both ends of its interval, symbol, colour. Missing values have no mark."""
    figure = go.Figure()
    for name, value, low, high, symbol, color in lines:
        within = bars([value], [low], [high])
        if within:
            within |= {"thickness": 2, "width": 6, "color": color}
        figure.add_trace(
            go.Scatter(
                x=[value if pd.notna(value) else None],
                y=[name],
                mode="markers",
                error_x=within,
                marker={"symbol": symbol, "size": 13, "color": color, "line": {"width": 2.5, "color": color}},
                hovertemplate=f"{name}: %{{x:.3f}}<extra></extra>",
            )
        )
    return figure


def one_pair(row: pd.Series, names: dict[str, str], module: str) -> go.Figure:
    """One layer pair: its CKA with interval above what it is held against. Missing values have no mark."""
    lines = [
        ("CKA", row.cka, row.lo, row.hi, "diamond", TEACHER.color),
        (NULLS["untrained"], row.untrained, None, None, "circle-open", STUDENT.color),
        (NULLS["null_position"], row.null_position, None, None, "square-open", NEUTRAL),
        (NULLS["null"], row["null"], row.null_lo, row.null_hi, "x-thin-open", NEUTRAL),
    ]
    figure = marks(lines)
    figure.update_xaxes(title=f"CKA of {plain(module)}", range=[-0.06, 1.04], zeroline=True, zerolinecolor=NEUTRAL)
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_layout(showlegend=False, dragmode=False)
    both = f"{plain(short(names['teacher'], 22))} and {plain(short(names['student'], 22))}"
    title = f"Layer {int(row.teacher_layer)} against layer {int(row.student_layer)}"
    return frame(figure, title, 300, f"{both}; n = {int(row.n)} tokens; bars: 95 %")


def modules(table: pd.DataFrame, names: dict[str, str], paired: set[tuple[int, int]]) -> go.Figure:
    """Mean CKA over layer pairs of every module, beside its nulls; the mean over the paired layers where known."""
    inside = [p in paired for p in zip(table.teacher_layer, table.student_layer, strict=True)]
    means = table.groupby("module")[["cka", *NULLS]].mean()
    order = [m for m in MODULES if m in means.index]
    series = [("mean over all layer pairs", means.cka, "diamond", TEACHER.color)]
    if any(inside):
        on_pairs = table[inside].groupby("module").cka.mean().reindex(means.index)
        series.append(("mean over the layer pairing", on_pairs, "circle", EXAMINED.color))
    symbols = {"null": "x-thin-open", "null_position": "square-open", "untrained": "circle-open"}
    for column, name in NULLS.items():
        if means[column].notna().any():
            series.append((name, means[column], symbols[column], STUDENT.color if column == "untrained" else NEUTRAL))
    figure = go.Figure()
    for name, values, symbol, color in series:
        shown = values.reindex(order)
        figure.add_trace(
            go.Scatter(
                x=[v if pd.notna(v) else None for v in shown],
                y=order,
                mode="markers",
                name=name,
                marker={"symbol": symbol, "size": 12, "color": color, "line": {"width": 2, "color": color}},
                hovertemplate=f"{name}, %{{y}}: %{{x:.3f}}<extra></extra>",
            )
        )
    figure.update_xaxes(title="CKA (0: unrelated, 1: the same)", range=[-0.06, 1.04])
    figure.update_yaxes(autorange="reversed", title="output of", automargin=True)
    figure.update_layout(legend={"orientation": "h", "y": -0.22, "x": 0}, dragmode=False)
    both = f"{plain(short(names['teacher'], 22))} and {plain(short(names['student'], 22))}"
    return frame(figure, "Outputs by module", 470, f"{both}; n = {int(table.n.max())} tokens", b=110)


def stitched_pairs(table: pd.DataFrame, names: dict[str, str]) -> go.Figure:
    """R² of each student layer's partner with its interval, beside the map fitted on shuffled rows."""
    own = table[table.paired].sort_values("student_layer")
    labels = [f"{t} → {s}" for t, s in zip(own.teacher_layer, own.student_layer, strict=True)]
    figure = go.Figure()
    within = bars(own.r2, own.lo, own.hi)
    if within:
        within |= {"thickness": 2, "width": 5, "color": TEACHER.color}
    marks = (
        ("paired layers", own.r2, "diamond", TEACHER.color, within),
        ("shuffled", own["null"], "x-thin-open", NEUTRAL, None),
    )
    for name, values, symbol, color, interval in marks:
        figure.add_trace(
            go.Scatter(
                x=values.tolist(),
                y=labels,
                mode="markers",
                name=name,
                error_x=interval,
                marker={"symbol": symbol, "size": 12, "color": color, "line": {"width": 2, "color": color}},
                hovertemplate=f"{name}, %{{y}}: R² = %{{x:.3f}}<extra></extra>",
            )
        )
    low = min(-0.06, float(own["null"].min(skipna=True)) - 0.05) if len(own) else -0.06
    figure.update_xaxes(title="R² on held-out tokens", range=[low, 1.04], zeroline=True, zerolinecolor=NEUTRAL)
    figure.update_yaxes(
        autorange="reversed",
        title="teacher → student layer",
        automargin=True,
        type="category",
        tickmode="array",
        tickvals=labels[:: sparse(len(labels))],
    )
    legend = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0}
    figure.update_layout(legend=legend, dragmode=False)
    n = int(own.n.max()) if len(own) else 0
    height = max(330, 190 + min(30 * len(own), 640))
    both = f"{plain(short(names['teacher'], 22))} and {plain(short(names['student'], 22))}"
    return frame(figure, "R² of the paired layers", height, f"{both}; n = {n} tokens; bars: 95 %", b=84)
