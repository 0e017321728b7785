"""Overview: the question, the run, and what it answers so far."""

import pandas as pd
import streamlit as st

from pages.parts import artifacts, draw, shell, tour, words
from paraknow.figures import deltas, tables

MAIN = ("never_shown", "shown")
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


def pair_in_a_line() -> None:
    """What the two models are."""
    try:
        models = artifacts.json_file(run, "environment.json").get("models", {})
    except artifacts.NotThere:
        return
    titles, sides = artifacts.titles(run), []
    for side in ("teacher", "student"):
        about = models.get(side) if isinstance(models.get(side), dict) else {}
        facts = [f"{about['layers']} layers"] if about.get("layers") else []
        if isinstance(about.get("parameters"), int):
            millions = about["parameters"] / 1e6
            facts.append(f"{millions / 1e3:.1f} billion weights" if millions >= 1e3 else f"{millions:.1f} M weights")
        sides.append(shell.escape(about.get("title") or titles[side]) + (f" ({', '.join(facts)})" if facts else ""))
    st.caption(f"**Pair** {' → '.join(sides)}")


def carrying(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """The two panels that carry the answer: facts nobody showed and facts that were shown; else the first ones."""
    panels = [part for _, part in frame.groupby(["suite", "group"], sort=False)]
    main = [next((p for p in panels if p.group.iloc[0] == group), None) for group in MAIN]
    return [p for p in main if p is not None] or panels[:2]


def answer_so_far() -> None:
    """The claim in words, and the two panels that carry it."""
    rows = shell.read(artifacts.delta_rows, run)
    if rows is None:
        shell.link("transfer", "See how far this run is", run, ":material/sync_alt:")
        return
    kinds = tables.kinds(rows)
    titles = artifacts.model_titles(run, list(kinds))
    frame = tables.deltas_frame(rows, titles)
    st.caption("The answer so far")
    st.header(words.headline(frame), anchor=False)
    main = carrying(frame)
    drawn = [tables.leading(part) for part in main]
    span = deltas.limits(pd.concat(drawn), deltas.DELTA)
    for column, part in zip(st.columns(2), drawn, strict=False):
        if part.empty:
            continue
        suite, group = part.suite.iloc[0], part.group.iloc[0]
        title = tables.panel_title(suite, group)
        figure = draw.made(deltas.answer, part, title, titles, span, kinds)
        with column:
            draw.plot(figure, f"overview-{suite}-{group}", deltas.describe(part, deltas.DELTA, title))
    draw.how_to_read(
        f"Each mark is how much more often a model answers correctly than {shell.escape(titles['student'])}, the "
        "untouched student (dotted line), on the same items. The method (diamond) has gained something of its own "
        "only where its whole bar lies right of 0 and it also beats every control item by item; the best of them, "
        "and of the baselines, stands below it. The star is the teacher: all there is to gain."
    )
    st.markdown("\n".join(f"- {said}" for part in main if (said := words.answer(part))))
    left, right = st.columns(2)
    with left:
        shell.link("benchmarks", "Every model, every task", run, ":material/bar_chart:")
    with right:
        draw.csv(frame, f"{run.id}-deltas", "overview")


pair_in_a_line()
answer_so_far()

st.subheader("Four steps")
for column, (page, label, what) in zip(st.columns(4), STEPS, strict=True):
    with column.container(border=True, height="stretch"):
        shell.link(page, label, run)
        st.caption(what)
