"""Benchmarks: every model of the run on the same items, with intervals, controls and every flip."""

import pandas as pd
import streamlit as st

from pages.parts import artifacts, cross, draw, items, shell, tryit, words
from pages.parts import methods as about
from paraknow.figures import deltas, tables
from paraknow.report import answers

LIST_WIDTH = 44  # characters of a line in a name, where a figure has the whole width
MEASURES = {
    "Difference to the student": deltas.DELTA,
    "Accuracy": deltas.ACCURACY,
    "Loss per answer token": deltas.LOSS,
}

run = shell.current_run()
shell.heading(
    "Benchmarks",
    "Teacher, student and transferred students on exactly the same items. A gain is one only above every control.",
    run,
)
run = shell.need_run()
rows = shell.read(artifacts.delta_rows, run)
if rows is None:
    shell.link("transfer", "See how far this run is", run, ":material/sync_alt:")
    cross.section()
    shell.stop()
kinds = tables.kinds(rows)
titles = artifacts.model_titles(run, list(kinds))
frame = tables.deltas_frame(rows, titles)


def panels(part: pd.DataFrame, measure: deltas.Measure, key: str, order: str = tables.ORDERS[0]) -> None:
    """One figure per suite and group, two beside each other, in one range."""
    found = list(part.groupby(["suite", "group"], sort=False))
    span = deltas.limits(part, measure)
    columns = st.columns(2)
    for number, ((suite, group), lines) in enumerate(found):
        title = tables.panel_title(suite, group)
        figure = draw.made(
            deltas.panel, tables.ordered(lines, order, measure.value), measure, title, titles, span, kinds
        )
        with columns[number % 2]:
            draw.plot(figure, f"b.{key}.{number}", deltas.describe(lines, measure, title))
            if measure is deltas.DELTA:
                in_words(lines)
            if lines[lines.model != "teacher"].accuracy.fillna(0).eq(0).all() and lines.loss.notna().any():
                st.caption(
                    "Neither the student nor any model made from it answers any of these items, so accuracy cannot "
                    "tell them apart: look at the loss "
                    "per answer token."
                )


def filters(measure: deltas.Measure) -> tuple[pd.DataFrame, str, str]:
    """The lines that are asked for, their order, and whether they stand by task or in one list."""
    suites, groups = (list(dict.fromkeys(frame[name].astype(str))) for name in ("suite", "group"))
    models = [m for m in kinds if m != "student" or measure.zero is None]
    a, b, c = st.columns(3)
    task = a.multiselect("Tasks", suites, key="b.tasks", placeholder="all", persist_state="session")
    group = b.multiselect(
        "Facts",
        groups,
        key="b.facts",
        placeholder="all but those above" if len(groups) > 1 else "all",
        format_func=lambda g: tables.GROUPS.get(g, g),
        persist_state="session",
    )
    model = c.multiselect(
        "Models", models, key="b.models", placeholder="all", format_func=titles.get, persist_state="session"
    )
    a, b, c = st.columns(3, vertical_alignment="bottom")
    order = a.selectbox("Sorted by", tables.ORDERS, key="b.order", persist_state="session")
    layout = b.segmented_control(
        "Shown", ["by task", "in one list"], default="by task", required=True, key="b.layout", persist_state="session"
    )
    with c:
        apart = st.toggle(
            "Only where the interval leaves out 0", key="b.apart", help="Of the difference to the student."
        )
        claims = st.toggle("Only claims", key="b.claims", help="Above the student and every control.")
    found = tables.select(frame, task, group, model, apart, claims)
    if not group and (found.group != "never_shown").any():  # they have their own place, first on the page
        found = found[found.group != "never_shown"]
    return found, order, layout


def measured(measure: deltas.Measure) -> None:
    """All differences with their intervals, filtered and sorted."""
    found, order, layout = filters(measure)
    found = found[found.model != "student"] if measure.zero is not None else found
    if found.empty:
        st.info("No line of this run is like that.")
        return
    if layout == "by task":
        panels(found, measure, measure.value, order)
    else:
        whole = tables.ordered(found, order, measure.value)
        where = [tables.panel_title(s, g) for s, g in zip(whole.suite, whole.group, strict=True)]
        listed = whole.assign(title=[f"{t} · {w}" for t, w in zip(whole.title, where, strict=True)])
        title = f"{len(listed)} comparison{'s' * (len(listed) != 1)}, sorted by {order}"
        figure = draw.made(
            deltas.panel, listed, measure, title, titles, deltas.limits(listed, measure), kinds, LIST_WIDTH
        )
        draw.plot(figure, "b.list", deltas.describe(listed, measure, title))
    reading(measure)
    draw.csv(found, f"{run.id}-{measure.value}", "measured")


def in_words(lines: pd.DataFrame) -> None:
    """What the examined method's difference amounts to, under the figure that draws it."""
    for line in lines[lines.kind == "examined"].itertuples():
        st.caption(f"**{shell.escape(line.title)}.** {shell.escape(line.reading)}")


def reading(measure: deltas.Measure) -> None:
    """How panels of a measure are read."""
    escaped = {model: shell.escape(title) for model, title in titles.items()}
    draw.how_to_read(answers.readings(escaped)[measure.value])


def never_shown() -> None:
    """Facts only the teacher knows: the real measure of transfer, apart from all else."""
    part = frame[frame.group == "never_shown"]
    st.subheader("Facts nobody showed the student")
    if part.empty:
        st.info(
            "**Not measured.** This run's tasks hold no facts marked `never_shown`, so transfer of unseen knowledge "
            "was not measured."
        )
        return
    st.markdown(words.headline(frame))
    left, right = st.columns(2)
    for column, measure, key in ((left, deltas.DELTA, "delta"), (right, deltas.SHARE, "share")):
        with column:
            for number, ((suite, group), lines) in enumerate(part.groupby(["suite", "group"], sort=False)):
                title = f"{suite}: share that arrived" if key == "share" else tables.panel_title(suite, group)
                lines = tables.ordered(lines, tables.ORDERS[0], measure.value)
                figure = draw.made(deltas.panel, lines, measure, title, titles, deltas.limits(part, measure), kinds)
                draw.plot(figure, f"b.never.{key}.{number}", deltas.describe(lines, measure, title))
                if measure is deltas.DELTA:
                    in_words(lines)
            reading(measure)
    draw.csv(part, f"{run.id}-never-shown", "never-shown")


def knowledge() -> None:
    """Bits per group and model, where items have candidates to rank."""
    st.subheader("What each model knows, in bits")
    part = frame[frame.bits.notna()]
    if part.empty:
        st.info("None of this run's items has candidates to rank, so what a model knows cannot be given in bits.")
        return
    panels(part, deltas.BITS, "bits")
    reading(deltas.BITS)
    draw.csv(part[["suite", "group", "model", "n", "bits", "bits_lo", "bits_hi"]], f"{run.id}-bits", "bits")


def numbers() -> None:
    """All numbers as a table and as CSV."""
    st.subheader("Numbers")
    shown = frame.drop(columns=["kind", "share_missing", "model"])
    config = {
        name: st.column_config.NumberColumn(label, format=form, help=what)
        for name, label, form, what in (
            ("accuracy", "accuracy", "%.3f", "share of items answered correctly"),
            ("delta", "Δ to student", "%+.3f", "paired difference to the student"),
            ("detectable", "hidden below", "%.3f", "smallest true difference that n items show with probability 0.8"),
            ("p_mcnemar", "p", "%.1e", "exact McNemar test, two-sided"),
            ("p_holm", "p (Holm)", "%.1e", "corrected over all comparisons of this run"),
            ("loss", "loss", "%.3f", "nats per answer token"),
            ("bits", "bits", "%.2f", "bits of knowledge beyond guessing among the candidates"),
            ("share", "share arrived", "%.2f", "of the teacher's surplus bits"),
            *(
                (c, c.replace("_", " "), "%.3f", "end of the 95 % interval")
                for c in ("lo", "hi", "delta_lo", "delta_hi", "bits_lo", "bits_hi", "share_lo", "share_hi")
            ),
        )
    }
    config["title"] = st.column_config.TextColumn("model")
    config["reading"] = st.column_config.TextColumn("in words", width="large")
    front = [
        "suite",
        "group",
        "title",
        "n",
        "accuracy",
        "lo",
        "hi",
        "delta",
        "delta_lo",
        "delta_hi",
        "detectable",
        "reading",
        "p_mcnemar",
        "p_holm",
    ]
    st.dataframe(
        shown,
        hide_index=True,
        column_order=[*front, *(c for c in shown.columns if c not in front)],
        column_config=config,
        placeholder=shell.MISSING,
        alt="All numbers of the run, one line per model, suite and group.",
    )
    draw.how_to_read(
        "lo and hi end 95 % intervals. A true difference smaller than “hidden below” stays hidden with so many items. "
        "p is McNemar's exact test against the student; Holm corrects it over all comparisons of the run. “claim” is "
        "true where the interval lies above 0 against the student and every control; – is not measured or does not "
        "apply."
    )
    draw.csv(frame, f"{run.id}-deltas", "numbers")


never_shown()
st.subheader("Everything that was measured")
choice = st.segmented_control(
    "Measure",
    list(MEASURES),
    default="Difference to the student",
    required=True,
    key="b.measure",
    persist_state="session",
)
measured(MEASURES[choice])
knowledge()
numbers()
st.subheader("What each model was given")
about.budgets(run, titles)
items.section(run, kinds, titles)
tryit.section(run, titles)
cross.section()
