"""Benchmarks: every model of the run on the same items, with intervals, controls and every flip."""

import pandas as pd
import streamlit as st

from pages.parts import artifacts, cross, shell, words
from pages.parts import methods as about
from paraknow.figures import deltas, tables

PER_PAGE = 8
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
    st.stop()
kinds = tables.kinds(rows)
titles = artifacts.model_titles(run, list(kinds))
frame = tables.deltas_frame(rows, titles)


def panels(part: pd.DataFrame, measure: deltas.Measure, key: str) -> None:
    """One figure per suite and group, two beside each other, in one range."""
    found = list(part.groupby(["suite", "group"], sort=False))
    span = deltas.limits(part, measure)
    columns = st.columns(2)
    for number, ((suite, group), lines) in enumerate(found):
        title = tables.panel_title(suite, group)
        figure = deltas.panel(lines, measure, title, titles, span, kinds)
        with columns[number % 2]:
            shell.plot(figure, f"b.{key}.{number}", deltas.describe(lines, measure, title))
            if lines[lines.model != "teacher"].accuracy.fillna(0).eq(0).all():
                st.caption(
                    "Neither the student nor any model made from it answers any of these items, so accuracy cannot "
                    "tell them apart: look at the loss "
                    "per answer token."
                )


def reading(measure: deltas.Measure) -> None:
    student = shell.escape(titles["student"])
    texts = {
        "accuracy": "The share of items answered correctly, with a 95 % Wilson interval. Intervals of two models "
        "that overlap do not settle anything: the same items were asked, so look at the differences.",
        "delta": f"How much more often a model is right than {student} (dotted line) on the same items, with a "
        "paired 95 % interval. Open marks are controls: a method must also beat each of them, not only the line.",
        "loss": "How surprised a model is by the right answer, per token. It still tells models apart where none "
        "answers correctly. No interval is measured for it.",
        "bits": "How sure a model is of the right answer among its candidates, beyond guessing (dotted line at 0), "
        "once it has been made as sure as its own record on other items warrants. The most there can be is log₂ of "
        "the number of candidates. Bars: paired-bootstrap 95 % intervals over items; runs of an earlier version have "
        "none. What the teacher has above the student is all that there is to transfer.",
        "share": f"Of the knowledge, in bits, that {shell.escape(titles['teacher'])} has and {student} lacks: how "
        "much is now there. 0 is none, 1 all of it. Missing where the teacher's surplus may itself be 0.",
    }
    shell.how_to_read(texts[measure.value])


def never_shown() -> None:
    """Facts only the teacher knows: the real measure of transfer, apart from all else."""
    part = frame[frame.group == "never_shown"]
    st.subheader("Facts nobody showed the student")
    if part.empty:
        st.info(
            "This run's tasks hold no facts marked `never_shown`, so transfer of unseen knowledge was not measured."
        )
        return
    st.markdown(words.headline(frame))
    left, right = st.columns(2)
    for column, measure, key in ((left, deltas.DELTA, "delta"), (right, deltas.SHARE, "share")):
        with column:
            for number, ((suite, group), lines) in enumerate(part.groupby(["suite", "group"], sort=False)):
                title = tables.panel_title(suite, group) + (": share that arrived" if key == "share" else "")
                figure = deltas.panel(lines, measure, title, titles, deltas.limits(part, measure), kinds)
                shell.plot(figure, f"b.never.{key}.{number}", deltas.describe(lines, measure, title))
            reading(measure)


def knowledge() -> None:
    """Bits per group and model, where items have candidates to rank."""
    st.subheader("What each model knows, in bits")
    part = frame[frame.bits.notna()]
    if part.empty:
        st.info("None of this run's items has candidates to rank, so what a model knows cannot be given in bits.")
        return
    panels(part, deltas.BITS, "bits")
    reading(deltas.BITS)
    shell.csv(part[["suite", "group", "model", "n", "bits", "bits_lo", "bits_hi"]], f"{run.id}-bits", "bits")


def numbers() -> None:
    """All numbers as a table and as CSV."""
    st.subheader("Numbers")
    shown = frame.drop(columns=["kind", "share_missing", "model"])
    config = {
        name: st.column_config.NumberColumn(label, format=form, help=what)
        for name, label, form, what in (
            ("accuracy", "accuracy", "%.3f", "share of items answered correctly"),
            ("delta", "Δ to student", "%+.3f", "paired difference to the student"),
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
    shell.how_to_read(
        "lo and hi end 95 % intervals. p is McNemar's exact test against the student; Holm corrects it over all "
        "comparisons of the run. “claim” is true where the interval lies above 0 against the student and every "
        "control; – is not measured or does not apply."
    )
    shell.csv(frame, f"{run.id}-deltas", "numbers")


def flipped() -> None:
    """Items gained and lost against a chosen model, each openable."""
    st.subheader("Items gained and lost")
    items = shell.read(artifacts.table, run, "evaluate/items.parquet")
    if items is None:
        return
    movable = [m for m in kinds if m not in ("teacher", "student")]
    a, b, c = st.columns(3)
    model = a.selectbox("Model", movable, format_func=titles.get, key="b.model")
    reference = b.selectbox(
        "Against", [m for m in ("student", *kinds) if m != model], format_func=titles.get, key="b.reference"
    )
    found = tables.flips(items, model, reference)
    change = c.segmented_control("Show", ["all", "gained", "lost"], default="all", required=True, key="b.change")
    counts = found.change.value_counts()
    st.markdown(
        f"Of {items[['task', 'doc_id']].drop_duplicates().shape[0]} items, {shell.escape(titles[model])} gains "
        f"**{counts.get('gained', 0)}** and loses **{counts.get('lost', 0)}** against "
        f"{shell.escape(titles[reference])}."
    )
    if change != "all":
        found = found[found.change == change]
    shell.csv(found, f"{run.id}-flips", "flips")
    pages = max(1, -(-len(found) // PER_PAGE))
    page = st.number_input("Page", 1, pages, 1, key=f"b.page.{model}.{reference}.{change}") if pages > 1 else 1
    for line in found.iloc[(page - 1) * PER_PAGE : page * PER_PAGE].itertuples():
        mark = "▲ gained" if line.change == "gained" else "▽ lost"
        with st.expander(f"{mark} · {shell.escape(line.task)} · {shell.escape(str(line.prompt)[:90])}"):
            item(items, line, model, reference)


def item(items: pd.DataFrame, line: object, model: str, reference: str) -> None:
    """One item: prompt, target, both answers, and what each gave the candidates."""
    st.caption("Prompt")
    st.text(line.prompt)
    asked = items[(items.task == line.task) & (items.group == line.group) & (items.doc_id == line.doc_id)]
    shown = asked[asked.model.isin([model, reference, "teacher"])]
    answers = pd.DataFrame(
        {
            "model": shown.model.map(titles),
            "seed": shown.seed.where(shown.seed >= 0),
            "answer": shown.answer,
            "right answer": shown.target,
            "correct": shown.correct,
            "log-probability of the right answer (nats)": shown.logprob,
        }
    )
    st.dataframe(answers, hide_index=True, placeholder=shell.MISSING)
    lists = {
        titles[r.model] + (f", seed {r.seed}" if r.seed > 0 else ""): r
        for r in shown.itertuples()
        if r.candidates is not None
    }
    if lists:
        first = next(iter(lists.values()))
        table = pd.DataFrame(
            {"candidate": list(first.candidates), **{n: list(r.candidate_logprobs) for n, r in lists.items()}}
        )
        st.caption("Log-probability of each candidate (nats, summed over its tokens)")
        st.dataframe(table, hide_index=True, height=240)
    elif shown.answer.isna().any():
        st.caption(
            "The harness scores whether the right answer is the greedy continuation; it keeps no other text, so a "
            "wrong answer is missing."
        )


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
rest = frame[frame.group != "never_shown"]
panels(rest if len(rest) else frame, MEASURES[choice], MEASURES[choice].value)
reading(MEASURES[choice])
knowledge()
numbers()
st.subheader("What each model was given")
about.budgets(run, titles)
flipped()
cross.section()
