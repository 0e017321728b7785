"""Similarity layer by layer: all modules at once, each layer's nearest one in the other model, one pair's weights."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from paraknow.config import MODULES as MATRICES
from paraknow.figures.similarity import MODULES, NULLS, marks
from paraknow.figures.theme import EXPECTED, NEUTRAL, TEACHER, bars, frame, plain, short, sparse
from paraknow.figures.weights import SOURCES

ACROSS = 5  # panels in a row


def small_multiples(table: pd.DataFrame, names: dict[str, str], chosen: str = "") -> go.Figure:
    """CKA over (teacher, student) layers of every module of one task, in one colour range; `chosen` is marked.

    Columns of similarity/cka.parquet. Cells without a value are grey.
    """
    order = [m for m in MODULES if m in set(table.module)]
    lines = -(-len(order) // ACROSS)
    titles = [f"▸ {m}" if m == chosen else m for m in order]
    figure = make_subplots(
        lines, ACROSS, subplot_titles=titles, horizontal_spacing=0.025, vertical_spacing=0.16, shared_yaxes=True
    )
    for k, module in enumerate(order):
        own = table[table.module == module]
        wide = own.pivot_table(index="teacher_layer", columns="student_layer", values="cka", dropna=False)
        heat = go.Heatmap(
            z=wide.to_numpy("float32"),
            x=wide.columns.tolist(),
            y=wide.index.tolist(),
            coloraxis="coloraxis",
            hoverongaps=False,
            hovertemplate=f"{module}: layer %{{y}} against layer %{{x}}: %{{z:.3f}}<extra></extra>",
        )
        figure.add_trace(heat, row=k // ACROSS + 1, col=k % ACROSS + 1)
    bar = {"orientation": "h", "thickness": 12, "len": 0.4, "x": 0, "xanchor": "left", "yref": "container", "y": 0}
    bar |= {"yanchor": "bottom", "tickvals": [0, 0.5, 1]}
    across, down = table.student_layer.nunique(), table.teacher_layer.nunique()
    sides = [table[c] for c in ("student_layer", "teacher_layer")]
    (left, right), (top, bottom) = [(int(x.min()) - 0.5, int(x.max()) + 0.5) for x in sides]
    plain_ = {"showgrid": False, "zeroline": False}
    figure.update_xaxes(dtick=sparse(across, 6), range=[left, right], **plain_)
    figure.update_yaxes(dtick=sparse(down, 8), range=[bottom, top], **plain_)
    figure.update_annotations(font={"size": 12}, yshift=4)
    figure.add_annotation(
        text=f"layer of {plain(short(names['student'], 26))}",
        x=0.5,
        y=0,
        xref="paper",
        yref="paper",
        yshift=-24,
        showarrow=False,
        yanchor="top",
        font={"size": 13, "color": NEUTRAL},
    )
    figure.update_layout(
        coloraxis={"cmin": 0, "cmax": 1, "colorscale": "Cividis", "colorbar": bar},
        dragmode=False,
    )
    figure.update_yaxes(title={"text": f"{plain(short(names['teacher'], 20))}", "font": {"size": 12}}, col=1)
    n = f"n = {int(table.n.max())} tokens; " if table.n.notna().any() else ""
    title = "CKA of every module, layer against layer"
    made = frame(figure, title, 180 + 190 * lines, f"{n}one colour range, 0 to 1", t=92, b=112, pad=0)
    return made.update_layout(plot_bgcolor="rgba(154,163,173,0.35)")


def nearest(table: pd.DataFrame, of: str, held: str = "null") -> pd.DataFrame:
    """For each layer of one model the layer of the other whose outputs are most alike (CKA of one task and module).

    `of` is teacher or student. Columns layer, match, cka, lo, hi, held (the null of that pair), second (the next best
    layer) and second_cka. Layers all of whose values are missing have no match.
    """
    own, other = f"{of}_layer", "student_layer" if of == "teacher" else "teacher_layer"
    lines = []
    for layer, part in table.groupby(own):
        best = part.dropna(subset=["cka"]).sort_values("cka", ascending=False, kind="stable")
        line = {"layer": layer, "match": None, "cka": float("nan"), "second": None}
        if len(best):
            first = best.iloc[0]
            line |= {"match": int(first[other]), "cka": first.cka, "lo": first.lo, "hi": first.hi}
            line |= {"held": first[held]}
        if len(best) > 1:
            line |= {"second": int(best.iloc[1][other]), "second_cka": best.iloc[1].cka}
        lines.append(line)
    made = pd.DataFrame(lines, columns="layer match cka lo hi held second second_cka".split())
    return made.astype({"match": "Int64", "second": "Int64"})


def nearest_chart(found: pd.DataFrame, of: str, names: dict[str, str], module: str, held: str, n: int) -> go.Figure:
    """`nearest` as marks with intervals, the runner-up and the null of the same pair beside them."""
    to = "student" if of == "teacher" else "teacher"
    known = found[found.match.notna()].reset_index(drop=True)
    figure = go.Figure()
    second, size = known[known.second.notna()], 10 if len(known) <= 24 else 6
    within = bars(known.cka, known.lo, known.hi)
    if within:
        within |= {"thickness": 2, "width": 4, "color": TEACHER.color}
    series = (
        (known, "held", NULLS[held], "square-open", NEUTRAL, None),
        (second, "second_cka", "second best", "circle-open", NEUTRAL, None),
        (known, "cka", "the most alike", "diamond", TEACHER.color, within),
    )
    for part, column, name, symbol, color, interval in series:
        figure.add_trace(
            go.Scatter(
                x=[None if pd.isna(v) else v for v in part[column]],
                y=part.layer.tolist(),
                mode="markers",
                name=name,
                error_x=interval,
                marker={"symbol": symbol, "size": size, "color": color, "line": {"width": 2, "color": color}},
                customdata=part[["match", "second"]].astype(object).where(part[["match", "second"]].notna(), "–"),
                hovertemplate=f"{name}: %{{x:.3f}}<br>layer %{{y}}: most alike is %{{customdata[0]}}, then "
                "%{customdata[1]}<extra></extra>",
            )
        )
    step = sparse(len(known))
    figure.update_xaxes(title=f"CKA of {plain(module)}", range=[-0.06, 1.04], zeroline=False)
    figure.update_yaxes(
        title="layer → nearest",
        autorange="reversed",
        tickvals=known.layer.tolist()[::step],
        ticktext=[f"{r.layer} → {r.match}" for r in known.itertuples()][::step],
        showgrid=False,
        zeroline=False,
    )
    legend = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0}
    figure.update_layout(legend=legend, dragmode=False)
    title = f"Which layer of {plain(short(names[to], 24))} is most like each of {plain(short(names[of], 24))}?"
    return frame(figure, title, max(300, 180 + min(30 * len(known), 600)), f"n = {n} tokens; bars: 95 %", b=92)


def stitched(row: pd.Series, names: dict[str, str]) -> go.Figure:
    """One layer pair's R² with its interval above the map fitted on shuffled rows. Missing values have no mark."""
    figure = marks(
        (
            ("R²", row.r2, row.lo, row.hi, "diamond", TEACHER.color),
            ("shuffled rows", row["null"], None, None, "x-thin-open", NEUTRAL),
        )
    )
    low = min(-0.06, float(row["null"]) - 0.05) if pd.notna(row["null"]) else -0.06
    figure.update_xaxes(title="R² on held-out tokens", range=[low, 1.04], zeroline=True, zerolinecolor=NEUTRAL)
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_layout(showlegend=False, dragmode=False)
    title = f"Layer {int(row.teacher_layer)}'s stream read as layer {int(row.student_layer)}'s"
    both = f"{plain(short(names['teacher'], 22))} and {plain(short(names['student'], 22))}"
    return frame(figure, title, 300, f"{both}; n = {int(row.n)} tokens; bars: 95 %")


def cosines(table: pd.DataFrame, names: dict[str, str], layer: int) -> go.Figure:
    """Both cosines of one student layer's matrices with what random directions or arithmetic would give.

    `table` is that layer's part of similarity/weights.parquet. Grey bars on the left: ± 2 standard deviations of
    random directions; lines on the right: what arithmetic gives any matrix at right angles to W.
    """
    order = [m for m in MATRICES if m in set(table.module)]
    figure = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.06)
    block = table[table.source == "block"].set_index("module").reindex(order)
    if "cos_sd" in block:
        figure.add_trace(
            go.Scatter(
                x=[0.0] * len(order),
                y=order,
                mode="markers",
                name="random directions (95 %)",
                error_x={
                    "type": "data",
                    "array": (2 * block.cos_sd).tolist(),
                    "thickness": 8,
                    "width": 0,
                    "color": "rgba(124,135,148,0.5)",
                },
                marker={"symbol": "line-ns-open", "size": 9, "color": NEUTRAL},
                hoverinfo="skip",
            ),
            row=1,
            col=1,
        )
    for source, (name, symbol, color) in SOURCES.items():
        own = table[table.source == source].set_index("module").reindex(order)
        for col, value in enumerate(("cos", "cos_rest"), 1):
            figure.add_trace(
                go.Scatter(
                    x=[None if pd.isna(v) else v for v in own[value]],
                    y=order,
                    mode="markers",
                    name=name,
                    showlegend=col == 1,
                    legendgroup=source,
                    marker={"symbol": symbol, "size": 10, "color": color, "line": {"width": 1.5, "color": color}},
                    hovertemplate=f"{name}, %{{y}}: %{{x:.3f}}<extra></extra>",
                ),
                row=1,
                col=col,
            )
    figure.add_trace(
        go.Scatter(
            x=[None if pd.isna(v) else v for v in block.cos_rest_expected],
            y=order,
            mode="markers",
            name="expected by arithmetic",
            marker={"symbol": "line-ns-open", "size": 16, "color": EXPECTED, "line": {"width": 3}},
            hovertemplate="expected, %{y}: %{x:.3f}<extra></extra>",
        ),
        row=1,
        col=2,
    )
    figure.update_xaxes(title="cosine of BA and W", range=[-1.05, 1.05], zeroline=True, zerolinecolor=NEUTRAL, col=1)
    figure.update_xaxes(title="cosine of BA and W − BA", range=[-1.05, 1.05], zerolinecolor=NEUTRAL, col=2)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    legend = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0}
    figure.update_layout(legend=legend, dragmode=False)
    located = int(table.teacher_layer.iloc[0])
    title = f"What goes into layer {layer} of {plain(short(names['student'], 26))}, beside its weights"
    note = f"blocks of layer {located} of {plain(short(names['teacher'], 22))}, rank {int(table['rank'].iloc[0])}"
    return frame(figure, title, 450, note, b=120)
