"""Similarity: how alike the two models are, in what they compute and in their weights, each beside its null."""

import streamlit as st

from pages.parts import artifacts, comparison, shell

SECTIONS = {
    "similarity/cka.parquet": ("Outputs, layer against layer", comparison.outputs),
    "similarity/stitching.parquet": ("Residual streams: can one be read off the other?", comparison.streams),
    "similarity/weights.parquet": ("The block and the student's weights", comparison.geometry),
    "similarity/spectra.parquet": ("Spectra", comparison.spectra),
    "similarity/tasks.parquet": ("Task against task", comparison.tasks),
}

run = shell.current_run()
shell.heading(
    "Similarity",
    "How alike the two models are before anything is moved. Alike is not the same as movable: every number stands "
    "beside what unrelated models would score.",
    run,
)
run = shell.need_run()
there = [name for name in SECTIONS if artifacts.has(run, name)]
if not there:
    shell.read(artifacts.table, run, "similarity/cka.parquet")  # says which stage writes it
    shell.stop()
titles = artifacts.titles(run)
for name in there:
    title, section = SECTIONS[name]
    st.subheader(title)
    table = shell.read(artifacts.table, run, name)
    if table is not None and table.empty:
        st.info(f"{name} of this run holds no rows.", icon=":material/info:")
    elif table is not None:
        section(run, table, titles)
