"""Overview: the question, the run, and what it answers so far."""

import pandas as pd
import streamlit as st

from pages.parts import artifacts, draw, shell, tour, words
from paraknow.figures import deltas, tables

MAIN = ("shown", "never_shown")
STEPS = (
    (
        "sensitivity",
        "1 · See where the knowledge is",
        "Which matrices of the teacher matter for the task, and which block is taken. Similarity: how alike the two "
        "models are.",
    ),
    ("transfer", "2 · Move it", "Choose a method and its controls, see what it costs, start."),
    ("benchmarks", "3 · Measure it", "Every model on the same items, with intervals and every flip."),
    ("runs", "4 · Compare runs", "Only the settings that differ, and what they changed."),
)

run = shell.current_run()
shell.heading(
    "Does knowledge cross scales?",
    "Weights of a large model (the teacher) are moved into a small one (the student). Did knowledge come along, "
    "or would noise of the same size have done as well?",
    run,
)
tour.invitation()
run = shell.need_run()


def answer_so_far() -> None:
    """The claim in words, and the two panels that carry it."""
    rows = shell.read(artifacts.delta_rows, run)
    if rows is None:
        shell.link("transfer", "See how far this run is", run, ":material/sync_alt:")
        return
    kinds = tables.kinds(rows)
    titles = artifacts.model_titles(run, list(kinds))
    frame = tables.deltas_frame(rows, titles)
    st.subheader("The answer so far")
    st.markdown(f"##### {shell.escape(words.headline(frame))}")
    panels = [(key, part) for key, part in frame.groupby(["suite", "group"], sort=False)]
    main = [p for p in panels if p[0][1] in MAIN] or panels[:2]
    for _, part in main:
        if sentence := words.answer(part):
            st.markdown(f"- {sentence}")
    span = deltas.limits(pd.concat([part for _, part in main]), deltas.DELTA)
    for column, ((suite, group), part) in zip(st.columns(2), main[:2], strict=False):
        title = tables.panel_title(suite, group)
        figure = deltas.panel(part, deltas.DELTA, title, titles, span, kinds)
        with column:
            draw.plot(figure, f"overview-{suite}-{group}", deltas.describe(part, deltas.DELTA, title))
    draw.how_to_read(
        f"Each mark is how much more often a model answers correctly than {shell.escape(titles['student'])}, the "
        "untouched student (dotted line), on the same items. The method (diamond) has gained something of its own "
        "only where its whole bar lies right of 0 and it also beats every control (open marks) item by item. The "
        "star is the teacher: all there is to gain."
    )
    draw.csv(frame, f"{run.id}-deltas", "overview")


answer_so_far()

st.subheader("Four steps")
for column, (page, label, what) in zip(st.columns(4), STEPS, strict=True):
    with column.container(border=True, height="stretch"):
        shell.link(page, label, run)
        st.caption(what)
