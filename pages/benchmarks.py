"""Benchmarks: every model of the run on the same items, with intervals, controls and every flip."""

import pandas as pd
import streamlit as st

from pages.parts import artifacts, cross, draw, shell, words
from pages.parts import methods as about
from paraknow.evaluate import items as stored
from paraknow.figures import deltas, tables

PER_PAGE = 8
MARKS = {"gained": "▲ gained", "lost": "▽ lost"}
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


def panels(part: pd.DataFrame, measure: deltas.Measure, key: str) -> None:
    """One figure per suite and group, two beside each other, in one range."""
    found = list(part.groupby(["suite", "group"], sort=False))
    span = deltas.limits(part, measure)
    columns = st.columns(2)
    for number, ((suite, group), lines) in enumerate(found):
        title = tables.panel_title(suite, group)
        figure = deltas.panel(lines, measure, title, titles, span, kinds)
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


def in_words(lines: pd.DataFrame) -> None:
    """What the examined method's difference amounts to, under the figure that draws it."""
    for line in lines[lines.kind == "examined"].itertuples():
        st.caption(f"**{shell.escape(line.title)}.** {shell.escape(line.reading)}")


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
    draw.how_to_read(texts[measure.value])


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
                draw.plot(figure, f"b.never.{key}.{number}", deltas.describe(lines, measure, title))
                if measure is deltas.DELTA:
                    in_words(lines)
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


def item_by_item() -> None:
    """Every item with two models' answers: searched, filtered, gained and lost first, each openable."""
    st.subheader("Item by item")
    items = shell.read(artifacts.table, run, "evaluate/items.parquet")
    if items is None:
        return
    movable = [m for m in kinds if m not in ("teacher", "student")] or ["teacher"]
    a, b, c = st.columns(3)
    model = a.selectbox("Model", movable, format_func=titles.get, key="b.model")
    reference = b.selectbox(
        "Against", [m for m in ("student", *kinds) if m != model], format_func=titles.get, key="b.reference"
    )
    search = c.text_input(
        "Search",
        max_chars=500,
        key="b.search",
        placeholder="words of a question or an answer",
        help="Every word must occur.",
    )
    every = stored.lines(items, model, reference)
    counts = every.change.value_counts()
    present = [name for name in stored.CHANGES if name in counts]
    changes = st.pills(
        "Show",
        present,
        selection_mode="multi",
        default=[name for name in present if name in ("gained", "lost")],
        format_func=lambda name: f"{name} ({counts[name]})",
        key=f"b.change.{model}.{reference}",
        help="Nothing chosen shows all.",
    )
    tasks, groups = ([str(x) for x in dict.fromkeys(every[name])] for name in ("task", "group"))
    d, e = st.columns(2)
    suites = d.multiselect("Suites", tasks, key="b.suites", placeholder="all") if len(tasks) > 1 else []
    chosen = (
        e.multiselect(
            "Groups", groups, key="b.groups", placeholder="all", format_func=lambda g: tables.GROUPS.get(g, g)
        )
        if len(groups) > 1
        else []
    )
    st.markdown(
        f"Of {len(every)} items, {shell.escape(titles[model])} gains **{counts.get('gained', 0)}** and loses "
        f"**{counts.get('lost', 0)}** against {shell.escape(titles[reference])}."
    )
    found = stored.select(every, search, changes, suites, chosen)
    if found.empty:
        st.caption("No item is like that.")
        return
    draw.csv(found, f"{run.id}-items", "items")
    pages = max(1, -(-len(found) // PER_PAGE))
    key = f"b.page.{model}.{reference}.{changes}.{suites}.{chosen}.{search}"
    page = st.number_input(f"Page, of {pages}", 1, pages, 1, key=key) if pages > 1 else 1
    for line in found.iloc[(page - 1) * PER_PAGE : page * PER_PAGE].itertuples():
        mark = MARKS.get(line.change, line.change)
        with st.expander(
            f"{mark} · {shell.escape(line.task)} · {shell.escape(' '.join(str(line.prompt).split())[:90])}"
        ):
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
    for name, title in (("score", "ROUGE-L"), ("note", "note")):  # older runs have neither
        if name in shown and shown[name].notna().any():
            answers[title] = shown[name]
    st.dataframe(answers, hide_index=True, placeholder=shell.MISSING)
    for r in shown.itertuples() if "raw" in shown else ():
        if isinstance(r.raw, str):
            st.caption(f"All that {shell.escape(titles[r.model])} wrote")
            st.text(r.raw or "(nothing)")
    lists = {
        titles[r.model] + (f", seed {r.seed}" if r.seed > 0 else ""): r
        for r in shown.itertuples()
        if pd.api.types.is_list_like(r.candidates)
    }
    if lists:
        first = next(iter(lists.values()))
        table = pd.DataFrame(
            {"candidate": list(first.candidates), **{n: list(r.candidate_logprobs) for n, r in lists.items()}}
        )
        st.caption("Log-probability of each candidate (nats, summed over its tokens)")
        st.dataframe(table, hide_index=True, height=240)
    elif shown.answer.isna().any() and shown.logprob.notna().all():
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
item_by_item()
cross.section()
