"""Similarity against knowledge over all runs: the plot, its correlation, the table, and a way to each run."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from pages.parts import draw, shell, terms
from paraknow.errors import ParaKnowError
from paraknow.figures import landscape as figures
from paraknow.figures.theme import short
from paraknow.runs import landscape
from paraknow.runs.store import Run

TITLES = {**landscape.SIMILARITY, **landscape.KNOWLEDGE}
FIRST = ("run", "model", "pair", "lineage")
PAGES = (("overview", "Overview"), ("similarity", "Similarity"), ("benchmarks", "Benchmarks"))


def section(run: Run | None) -> None:
    """Everything under one heading; `run` is the one that is looked at."""
    st.subheader("Similarity against knowledge, over all runs", help=terms.help("share", "CKA", "lineage"))
    st.markdown(
        "Two models can compute alike and still pass nothing on. Every finished run that asked for facts nobody showed "
        "the student is a mark here, over the pairs that were measured for the package."
    )
    a, b = st.columns(2)
    x = a.selectbox("Across: similarity", list(landscape.SIMILARITY), format_func=TITLES.get, key="a.x")
    y = b.selectbox("Up: knowledge", list(landscape.KNOWLEDGE), format_func=TITLES.get, key="a.y")
    c, d, e = st.columns([4, 4, 3], vertical_alignment="bottom")
    more = c.pills(
        "Also draw",
        [k for k in landscape.KINDS if k != "examined"],
        selection_mode="multi",
        key="a.kinds",
        help="Beside the examined methods. The correlation never counts the known answer.",
    )
    shipped = e.toggle("With the package's pairs", True, key="a.shipped")
    try:
        with st.spinner("Reading what runs have measured …"):
            rows = landscape.table(("examined", *more), shipped)
    except ParaKnowError as error:
        st.info(shell.sentence(error))
        return
    methods = list(dict.fromkeys(rows.model.astype(str)))
    picked = d.multiselect("Methods", methods, key="a.methods", placeholder="all")
    rows = rows[rows.model.isin(picked)] if picked else rows
    kept = figures.drawn(rows, x, y)
    own = int((kept.source == "run").sum())
    found = landscape.correlations(rows, x, y)
    for where, correlation in found.items():
        st.markdown(f"- **{where.capitalize()}.** {shell.escape(correlation.words)}")
    title = f"{own} mark{'s' * (own != 1)} of runs here, {len(kept) - own} of the package"
    figure = draw.made(figures.scatter, rows, x, y, TITLES, title, run.id if run else None)
    alt = figures.describe(rows, x, y, TITLES, [f"{k}: {v.words}" for k, v in found.items()])
    draw.plot(figure, "a.plot", alt, on_select=clicked, selection_mode="points")
    draw.how_to_read(
        "One mark is one method in one run: how alike its two models are (across), and what of the teacher's knowledge "
        "arrived (up). **Similarity is not transfer:** marks far to the right that lie at 0 are pairs that look alike "
        "and passed nothing on. Shape and colour say how the two models are related. Solid outlined marks are runs "
        "here (the ring: the chosen one; **click one to open it**), faint ones came with the package. The "
        "correlation is of ranks; a pair of models counts once, with the mean of its marks, and its 95 % interval is "
        "over pairs. Pairs that share a model are not quite independent, so the interval is rather too narrow."
    )
    opened(run)
    numbers(rows, x, y)


def clicked() -> None:
    """A click on a mark of a run makes that run the chosen one."""
    points = st.session_state["a.plot"]["selection"].get("points") or []
    named = [str(p["customdata"][0]) for p in points if p.get("customdata")]
    if named and named[0]:
        shell.choose(named[0])
        st.session_state["a.opened"] = named[0]


def picked_line(ids: list[str]) -> None:
    """A picked line of the table does what a click does, for keyboards."""
    lines = st.session_state["a.table"]["selection"].get("rows") or []
    if lines and lines[0] < len(ids) and ids[lines[0]]:
        shell.choose(ids[lines[0]])
        st.session_state["a.opened"] = ids[lines[0]]


def opened(run: Run | None) -> None:
    """After a click: which run is open now, and where it can be looked at."""
    if run is None or st.session_state.get("a.opened") != run.id:
        return
    st.success(f"Open now, on every page: {shell.escape(run.id)}", icon=":material/check:")
    for column, (page, label) in zip(st.columns(len(PAGES)), PAGES, strict=True):
        with column:
            shell.link(page, f"Open in {label}", run, ":material/open_in_new:")


def numbers(rows: pd.DataFrame, x: str, y: str) -> None:
    """The numbers behind the marks, and those that could not be drawn."""
    here = rows[rows.source == "run"]
    if here.empty:
        st.info(
            "No finished run here has facts that nobody showed the student. Start one on the Transfer page with a task "
            "that has such facts (demo:people, or a table of your own facts).",
            icon=":material/info:",
        )
    values = [x, y, f"{y}_lo", f"{y}_hi"]
    columns = [*FIRST, *values, *(["gain_over"] if y == "gain" else []), "n", "kind", "suite", "source"]
    shown = rows.sort_values("source", key=lambda s: s != "run", kind="stable")[columns]
    ids = [str(r.run) if r.source == "run" else "" for r in shown.itertuples()]
    titles = {x: short(TITLES[x], 40), y: short(TITLES[y], 40), f"{y}_lo": "lo", f"{y}_hi": "hi"}
    ends = {f"{y}_lo": "lower end of the 95 % interval", f"{y}_hi": "upper end of the 95 % interval"}
    digits = {c: st.column_config.NumberColumn(titles[c], format="%.3f", help=ends.get(c)) for c in values}
    st.dataframe(
        shown,
        hide_index=True,
        height=280,
        column_config=digits,
        placeholder=shell.MISSING,
        key="a.table",
        on_select=lambda: picked_line(ids),
        selection_mode="single-row",
        alt="The numbers of every mark; picking a line opens its run.",
    )
    st.caption("Pick a line to open its run. – is missing: not measured, or not kept by the package's pairs.")
    draw.csv(rows.drop(columns="pair_key"), "similarity-against-knowledge", "all-runs")
