"""Sections of the Similarity page: each draws one table of the run's similarity/ folder."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from pages.parts import artifacts, draw, layer_pair, shell
from paraknow.figures import layerwise, similarity, weights
from paraknow.figures.theme import short
from paraknow.report import alike
from paraknow.report.picture import number
from paraknow.runs.store import Run

Titles = dict[str, str]
WORDS = {
    "null": "rows permuted: nothing but chance is left",
    "null_position": "rows permuted among tokens that have read equally far: chance and position are left",
    "untrained": "an untrained pair of the same shapes: what architecture alone gives",
}


def pairing(run: Run) -> set[tuple[int, int]]:
    """The layer pairs that stitching found, where it was asked for and can be read."""
    name = "similarity/stitching.parquet"
    try:
        table = artifacts.table(run, name) if artifacts.has(run, name) else pd.DataFrame()
    except artifacts.NotThere:
        table = pd.DataFrame()
    return set() if table.empty else alike.paired(table)


def outputs(run: Run, table: pd.DataFrame, titles: Titles) -> None:
    """CKA by module: the map, its null and the difference; one pair in detail; all modules in one chart."""
    names = list(dict.fromkeys(table.task))
    places = st.columns(2 + (len(names) > 1))
    task = places[0].selectbox("Task", names, key="c.task", persist_state="session") if len(names) > 1 else names[0]
    known = [m for m in similarity.MODULES if m in set(table.module)]
    module = places[-2].selectbox("Output of", known, key="c.module", persist_state="session")
    own = table[(table.task == task) & (table.module == module)]
    offered = [k for k in WORDS if own[k].notna().any()]
    held = places[-1].selectbox(
        "Held against", offered or list(WORDS), key="c.null", format_func=WORDS.get, persist_state="session"
    )
    pairs = pairing(run)
    chosen = layer_pair.picked(own)
    difference = own.assign(difference=own.cka - own[held])
    bound = max(0.05, float(difference.difference.abs().max(skipna=True) or 0.05))
    n = int(own.n.max())
    ends: dict[str, tuple[str, str]] = {"cka": ("lo", "hi"), "null": ("null_lo", "null_hi")}
    panels = (
        (own, "cka", f"CKA of {module}", (0.0, 1.0), False, {held: similarity.NULLS[held]}),
        (own, held, f"Null: {similarity.NULLS[held]}", (0.0, 1.0), False, {}),
        (difference, "difference", "CKA − null", (-bound, bound), True, {"cka": "CKA", held: similarity.NULLS[held]}),
    )
    for column, (values, value, title, limit, diverging, beside) in zip(st.columns(3), panels, strict=True):
        first = value == "cka"
        note = f"{short(task, 24)}; n = {n} tokens"
        chart = draw.made(
            similarity.pair_map,
            values,
            value,
            titles,
            title,
            limit,
            diverging,
            pairs,
            chosen,
            first,
            note,
            ends.get(value),
            beside,
        )
        alt = f"{title} of {titles['teacher']} (rows) and {titles['student']} (columns) by layer; mean "
        alt += f"{number(values[value].mean())}." + (" Clicking a cell opens that pair below." if first else "")
        options = {"on_select": clicked, "selection_mode": similarity.SELECTION} if first else {}
        draw.chart(chart, alt, f"c.map.{value}" if first else None, column, **options)
    lacking = int(own.cka.isna().sum())
    undefined = (
        f" **{lacking} cells are missing**: a layer's outputs are constant there, so CKA is undefined."
        if lacking
        else ""
    )
    rings = " Rings: the layer pairing found by stitching." if pairs else ""
    draw.how_to_read(
        "A cell says how alike the outputs of two layers are on the same tokens: 1 is the same up to rotation and "
        f"scale, 0 unrelated. The first two maps share one colour range. Task {shell.escape(task)}, "
        f"n = {n} tokens of {int(own.examples.max())} examples; held against: {WORDS[held]}. Hover for a cell's 95 % "
        f"interval.{rings}{undefined} **Click a cell** of the first map to open it below; the two boxes there do the "
        "same by keyboard."
    )
    draw.csv(table, f"{run.id}-cka", "cka")
    layer_pair.detail(run, own, titles, module)
    nearest(run, own, titles, module, held)
    overall(table[table.task == task], titles, pairs, module)


def nearest(run: Run, own: pd.DataFrame, titles: Titles, module: str, held: str) -> None:
    """For each layer of both models the one of the other that is most like it."""
    st.subheader("Which layer is most like which?")
    made = []
    for column, side in zip(st.columns(2), ("teacher", "student"), strict=True):
        found = layerwise.nearest(own, side, held)
        made.append(found.assign(of=side))
        said = "; ".join(f"{r.layer} → {r.match} ({number(r.cka)})" for r in found.itertuples() if pd.notna(r.match))
        figure = draw.made(layerwise.nearest_chart, found, side, titles, module, held, int(own.n.max()))
        with column:
            draw.plot(figure, f"c.nearest.{side}", f"Nearest layer for each of {titles[side]}: {said}.")
    draw.how_to_read(
        "The arrow names the layer of the other model with the highest CKA. Where the second best (circle) lies inside "
        "the bar, the choice is not settled. The highest of many values is always somewhat too high, most so where "
        "many lie together."
    )
    draw.csv(pd.concat(made), f"{run.id}-nearest", "nearest")


def overall(of_task: pd.DataFrame, titles: Titles, pairs: set[tuple[int, int]], module: str) -> None:
    """Every module at once: its map in small, and its mean beside what it is held against."""
    st.subheader("All modules at once")
    means = "; ".join(f"{m} {v:.2f}" for m, v in of_task.groupby("module").cka.mean().items())
    draw.plot(
        draw.made(layerwise.small_multiples, of_task, titles, module),
        "c.multiples",
        f"CKA maps of all modules; means: {means}.",
    )
    draw.how_to_read(
        "The map above for every module, all in one colour range; ▸ is the one that is chosen there, and “Output of” "
        "changes it. Grey: undefined."
    )
    draw.plot(
        draw.made(similarity.modules, of_task, titles, pairs),
        "c.modules",
        f"Mean CKA by module: {means}.",
    )
    draw.how_to_read(
        "Where a filled mark lies near the open ones, the likeness comes from position or architecture, not from what "
        "was learned. `attention` is o's output and `ffn` is down's in these families. For comparison, the Neural "
        "Incompatibility paper reports for Llama-2 7B and 13B chat (mean ± sd over layer pairs): up 0.69 ± 0.16, down "
        "0.45 ± 0.25, v 0.48 ± 0.16, o 0.41 ± 0.19, without a null beside them."
    )


def clicked() -> None:
    """A click on a cell sets the boxes below, which hold the choice."""
    cells = st.session_state["c.map.cka"]["selection"].get(similarity.SELECTION) or []
    if cells:
        st.session_state["c.teacher"] = int(cells[0]["teacher_layer"])
        st.session_state["c.student"] = int(cells[0]["student_layer"])


def streams(run: Run, table: pd.DataFrame, titles: Titles) -> None:
    """Stitching R² over layer pairs, and the pairing with intervals."""
    pairs = pairing(run)
    left, right = st.columns([2, 3])
    chart = draw.made(
        similarity.pair_map,
        table,
        "r2",
        titles,
        "R² of the ridge map",
        pairs=pairs,
        clickable=False,
        note=f"n = {int(table.n.max())} held-out tokens",
        bounds=("lo", "hi"),
        beside={"null": "fitted on shuffled rows"},
    )
    mean = number(table.r2.mean())
    draw.chart(chart, f"R² of maps from the teacher's to the student's layers; mean {mean}.", place=left)
    with right:
        if pairs:
            figure = draw.made(similarity.stitched_pairs, table, titles)
            draw.plot(figure, "c.stitch", f"R² of the paired layers; mean {number(table[table.paired].r2.mean())}.")
        else:
            st.info("No pairing: some layer's R² is missing, or the teacher has fewer layers.")
    draw.how_to_read(
        "A linear map is fitted from the teacher's residual stream to the student's and tried on the tokens of other "
        f"examples (n = {int(table.n.max())}). Rings: the best one-to-one pairing that keeps the layers' order. A high "
        "R² says that the two spaces are alike. **It does not say that knowledge crosses**: in trials R² was high "
        "where nothing arrived."
    )
    draw.csv(table, f"{run.id}-stitching", "stitching")


def geometry(run: Run, table: pd.DataFrame, titles: Titles) -> None:
    """One quantity of the block's geometry at a time, beside two other choices of the same rank."""
    known = {k: v[0] for k, v in weights.QUANTITIES.items() if table[k].notna().any()}
    quantity = st.selectbox("Quantity", list(known), key="c.quantity", format_func=known.get, persist_state="session")
    if quantity is None:
        st.info("Every value of this table is missing.")
        return
    means = table.groupby("source")[quantity].mean()
    alt = f"{known[quantity]}; means: " + "; ".join(f"{k} {number(v)}" for k, v in means.items())
    draw.plot(draw.made(weights.geometry, table, quantity, titles), "c.geometry", alt)
    draw.how_to_read(alike.read_geometry(table, quantity))
    draw.csv(table, f"{run.id}-weights", "weights")


def spectra(run: Run, table: pd.DataFrame, titles: Titles) -> None:
    """Singular values of one kind of matrix, both models, and effective ranks."""
    left, right = st.columns([3, 2])
    known = [m for m in weights.MODULES if m in set(table.module)]
    with left:
        module = st.selectbox("Matrix", known, key="c.spectrum", persist_state="session")
        draw.plot(
            draw.made(weights.spectra, table, module, titles),
            "c.spectra",
            f"Singular values of {module} in both models.",
        )
    ranks = table.groupby(["module", "model"]).effective_rank.mean().unstack("model").reindex(known)
    ranks = ranks.rename_axis("effective rank").round(1)
    right.dataframe(ranks, placeholder=shell.MISSING)
    draw.how_to_read(
        "Lines: median over layers; bands: from the least to the largest layer. A steep curve is a matrix that a low "
        "rank can carry. Effective rank (the exponential of the spectrum's entropy; mean over layers) counts the "
        "directions in use."
    )
    draw.csv(table, f"{run.id}-spectra", "spectra")


def tasks(run: Run, table: pd.DataFrame, titles: Titles) -> None:
    """Whether two tasks find the same layers alike."""
    shown = table.rename(columns={"rank_correlation": "rank correlation", "n": "layer pairs"}).round(2)
    st.dataframe(shown, hide_index=True, placeholder=shell.MISSING)
    draw.how_to_read(
        "Spearman's correlation of two tasks' CKA over all layer pairs: near 1, the two models are alike in the same "
        "layers whatever they are asked."
    )
    draw.csv(table, f"{run.id}-cka-tasks", "cka-tasks")
