"""One pair of layers on the Similarity page, everything about it in one place: outputs, streams, weights, spectra."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from pages.parts import artifacts, draw, shell
from paraknow.figures import layerwise, similarity, weights
from paraknow.report.picture import number
from paraknow.runs.store import Run

Titles = dict[str, str]


def interval(value: float, low: float, high: float) -> str:
    """A number and its interval, where it has one."""
    return f"{number(value)} ({number(low)} to {number(high)})" if pd.notna(low) else number(value)


def picked(own: pd.DataFrame) -> tuple[int, int]:
    """The chosen layer pair; the most alike one before anything was chosen."""
    known = set(zip(own.teacher_layer.astype(int), own.student_layer.astype(int), strict=True))
    chosen = (st.session_state.get("c.teacher"), st.session_state.get("c.student"))
    if chosen not in known:
        best = own.loc[own.cka.idxmax()] if own.cka.notna().any() else own.iloc[0]
        chosen = (int(best.teacher_layer), int(best.student_layer))
        st.session_state["c.teacher"], st.session_state["c.student"] = chosen
    return chosen  # type: ignore[return-value]


def detail(run: Run, own: pd.DataFrame, titles: Titles, module: str) -> None:
    """The chosen pair: its boxes, CKA and R² with what they are held against, the layers' weights and spectra."""
    st.subheader("One pair of layers")
    for place, side in zip(st.columns(2), ("teacher", "student"), strict=True):
        layers = sorted(int(k) for k in own[f"{side}_layer"].unique())
        place.selectbox(f"Layer of {shell.escape(titles[side])}", layers, key=f"c.{side}", persist_state="session")
    teacher, student = st.session_state["c.teacher"], st.session_state["c.student"]
    left, right = st.columns(2)
    with left:
        _outputs(own[(own.teacher_layer == teacher) & (own.student_layer == student)].iloc[0], titles, module)
    with right:
        _streams(run, teacher, student, titles)
    left, right = st.columns(2)
    with left:
        _weights(run, teacher, student, titles)
    with right:
        _spectra(run, teacher, student, titles, module)
    draw.how_to_read(
        "Above: how alike the outputs of the two layers are, and how well the student's stream can be read off the "
        "teacher's, each over what chance gives. Below: BA is what would be moved into the student's layer, W the "
        "student's matrix; marks in the grey bars lie as random directions would. The spectra say how many directions "
        "each matrix uses."
    )


def _outputs(row: pd.Series, titles: Titles, module: str) -> None:
    if pd.isna(row.cka):
        st.info("CKA is undefined for this pair: the outputs of one of the two layers are constant.")
        return
    facts = f"CKA {interval(row.cka, row.lo, row.hi)}; permuted {number(row['null'])}; positions kept "
    facts += f"{number(row.null_position)}; untrained {number(row.untrained)}"
    draw.plot(draw.made(similarity.one_pair, row, titles, module), "c.pair", f"{facts}.")
    st.markdown(f"**{facts}.**")


def _found(run: Run, name: str) -> pd.DataFrame:
    """A table of the run; empty where it is missing or damaged, which its own section says."""
    try:
        return artifacts.table(run, name) if artifacts.has(run, name) else pd.DataFrame()
    except artifacts.NotThere:
        return pd.DataFrame()


def _streams(run: Run, teacher: int, student: int, titles: Titles) -> None:
    table = _found(run, "similarity/stitching.parquet")
    if len(table):
        table = table[(table.teacher_layer == teacher) & (table.student_layer == student)]
    if table.empty:
        st.info("R² of this pair: not measured in this run.")
        return
    row = table.iloc[0]
    facts = f"R² {interval(row.r2, row.lo, row.hi)}; shuffled rows {number(row['null'])}"
    draw.plot(draw.made(layerwise.stitched, row, titles), "c.pair.r2", f"{facts}.")
    st.markdown(f"**{facts}.**")


def _weights(run: Run, teacher: int, student: int, titles: Titles) -> None:
    table = _found(run, "similarity/weights.parquet")
    own = table[table.student_layer == student] if len(table) else table
    if own.empty:
        st.info("Cosines of this layer's weights: not measured in this run, or nothing goes into this layer.")
        return
    block = own[own.source == "block"]
    said = "; ".join(
        f"{r.module} {number(r.cos)}, with the rest {number(r.cos_rest)} (expected {number(r.cos_rest_expected)})"
        for r in block.itertuples()
    )
    draw.plot(
        draw.made(layerwise.cosines, own, titles, student), "c.pair.cosines", f"Cosines of layer {student}: {said}."
    )
    source = int(own.teacher_layer.iloc[0])
    if source != teacher:
        st.caption(f"Layer {source} was located for this layer, not layer {teacher}: its blocks are shown.")


def _spectra(run: Run, teacher: int, student: int, titles: Titles, module: str) -> None:
    table = _found(run, "similarity/spectra.parquet")
    if len(table):
        layer = table.model.map({"teacher": teacher, "student": student})
        table = table[table.layer == layer]
    known = [m for m in weights.MODULES if len(table) and m in set(table.module)]
    if not known:
        st.info("Spectra of these layers: not measured in this run.")
        return
    place = known.index(module) if module in known else 0
    matrix = st.selectbox("Matrix", known, place, key=f"c.pair.matrix.{module}")
    ranks = table[table.module == matrix].groupby("model").effective_rank.first()
    said = "; ".join(f"{titles[m]} {v:.1f}" for m, v in ranks.items())
    alt = f"Singular values of {matrix} in both layers; effective rank: {said}."
    draw.plot(draw.made(weights.spectra, table, matrix, titles), "c.pair.spectra", alt)
    st.caption(f"Effective rank of {matrix}: {shell.escape(said)}.")
