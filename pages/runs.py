"""Runs: all of them, two compared, and what can be done with one."""

import pandas as pd
import streamlit as st

from pages.parts import artifacts, bundles, draw, reports, shell
from paraknow import access, limits
from paraknow import config as configs
from paraknow.errors import ParaKnowError
from paraknow.figures import tables
from paraknow.figures.theme import short, signed
from paraknow.report.blocks import said
from paraknow.runs import compare, queue, store
from paraknow.runs.store import Run

TIME = "DD MMM YYYY, HH:mm"
COLUMNS = {  # of the list of runs, in their order, with what they are called
    "id": st.column_config.TextColumn("run", width="medium"),
    "name": st.column_config.TextColumn("title", width="medium"),
    "state": "state",
    "stage": st.column_config.TextColumn("last stage"),
    "method": "method",
    "teacher": st.column_config.TextColumn("teacher", width="small"),
    "student": st.column_config.TextColumn("student", width="small"),
    "task": st.column_config.TextColumn("task", width="small"),
    "created": st.column_config.DatetimeColumn("made (UTC)", format=TIME),
    "finished": st.column_config.DatetimeColumn("ended (UTC)", format=TIME),
    "recorded": st.column_config.CheckboxColumn("with the package"),
    "imported": "imported",
    "error": st.column_config.TextColumn("what went wrong", width="medium"),
}
WORDS = {"group": "items", "n": st.column_config.NumberColumn("n", help="items that both were asked")}
DIFFERING = {"setting": "setting", "what": "what", "first": "first run", "second": "second run"}

run = shell.current_run()
shell.heading("Runs", "Every run is a folder; this list is read from the folders.", None)
shell.wrong_link()
runs = store.all_runs()
summaries = [*store.listing(), *map(store.summary, store.recorded_runs())]
names = {row["id"]: row["name"] for row in summaries}
if not runs:
    st.info("There is no run yet. Start one on the Transfer page, or with `paraknow demo` on the command line.")
    shell.link("transfer", "Start a run", None, ":material/play_arrow:")
    shell.stop()


def titled(run_id: str) -> str:
    """A run as boxes list it: its name, cut, and its id."""
    name = names.get(run_id)
    return f"{short(name, 48)} · {run_id}" if name else run_id


def listing() -> None:
    """The table, filtered."""
    facts = pd.DataFrame(summaries)
    facts["error"] = facts.error.map(access.said, na_action="ignore")
    a, b = st.columns([3, 2])
    text = a.text_input(
        "Filter",
        max_chars=500,
        key="r.text",
        placeholder="part of an id, name, model, task or method",
        persist_state="session",
    )
    states = b.multiselect("State", store.STATES, key="r.states", placeholder="any", persist_state="session")
    if states:
        facts = facts[facts.state.isin(states)]
    if text:
        joined = facts.drop(columns="created").fillna("").astype(str).agg(" ".join, axis=1)
        facts = facts[joined.str.contains(text, case=False, regex=False)]
    shown = facts.assign(
        **{c: pd.to_datetime(pd.to_numeric(facts[c], errors="coerce"), unit="s") for c in ("created", "finished")}
    )
    st.dataframe(
        shown,
        hide_index=True,
        column_order=list(COLUMNS),
        column_config=COLUMNS,
        placeholder=shell.MISSING,
        alt="All runs.",
    )
    st.caption(f"{len(facts)} of {len(runs)} runs.")
    draw.csv(facts, "runs", "runs", "List (CSV)")


@st.dialog("Delete this run?")
def confirm_delete(doomed: Run) -> None:
    st.write("The folder with its tables and adapters is removed; this cannot be undone.")
    st.text(doomed.id)
    if st.button("Delete it", type="primary", key="r.delete.sure"):
        try:
            store.delete(doomed)
        except (ParaKnowError, OSError) as error:
            st.error(shell.sentence(error))
            return
        st.session_state.pop("run", None)
        st.rerun()


def one(run: Run) -> None:
    """The chosen run: links, actions, where its files are."""
    status = run.status()
    st.subheader("The chosen run")
    st.text(run.id)
    if status.get("error"):
        st.error(shell.sentence(status["error"]))
    for column, (page, label) in zip(
        st.columns(6),
        (
            ("overview", "Overview"),
            ("sensitivity", "Sensitivity"),
            ("similarity", "Similarity"),
            ("transfer", "Transfer"),
            ("benchmarks", "Benchmarks"),
            ("diagnose", "Diagnose"),
        ),
        strict=True,
    ):
        with column:
            shell.link(page, label, run, ":material/arrow_forward:")
    a, b, c, d, e = st.columns(5)
    state = status.get("state")
    if a.button(
        "Cancel",
        disabled=run.read_only or state not in ("queued", "running", "lost"),
        icon=":material/cancel:",
        key="r.cancel",
    ):
        run.cancel()
        st.rerun()
    if b.button(
        "Resume",
        disabled=run.read_only or state not in ("failed", "cancelled", "lost"),
        icon=":material/replay:",
        key="r.resume",
    ):
        try:
            queue.resume(run)
            st.rerun()
        except ParaKnowError as error:
            st.error(shell.sentence(error))
    if e.button(
        "Clone with changes",
        icon=":material/content_copy:",
        key="r.clone",
        help="A new run: the form on the Transfer page is filled with this run's settings.",
    ):
        st.session_state["t.refill"] = run.id
        st.switch_page("pages/transfer.py", query_params={"run": run.id})
    if c.button(
        "Delete …",
        disabled=run.recorded or state == "running" or limits.shared(),
        icon=":material/delete:",
        key="r.delete",
    ):
        confirm_delete(run)
    try:
        d.download_button(
            "Config (YAML)",
            configs.dump(run.config()),
            f"{run.id}.yaml",
            "application/yaml",
            icon=":material/download:",
            on_click="ignore",
        )
    except ParaKnowError as error:
        st.info(shell.sentence(error))
    reports.download(run)
    bundles.download(run)
    folder = run.path("adapters")
    if any(folder.glob("*/*/adapter_config.json")):
        st.caption("Adapters: one folder per model and seed, each an ordinary PEFT LoRA for the plain student.")
        st.code(access.said(str(folder.resolve())), language=None)
    else:
        st.caption("Adapters: none here." if run.read_only else "Adapters: none yet.")


def two() -> None:
    """Two runs: only the settings that differ, and their results."""
    st.subheader("Compare two runs")
    if len(runs) < 2:
        st.info("There is only one run; a second one is needed to compare.")
        return
    ids = [r.id for r in runs]
    done = [r.id for r in runs if r.status()["state"] == "done"]
    likely = [*([run.id] if run and run.id in done else []), *done, *ids]  # the chosen one, then those with results
    first_id, second_id = list(dict.fromkeys(likely))[:2]
    a, b = st.columns(2)
    pick = {"options": ids, "format_func": titled}
    first = runs[ids.index(a.selectbox("First", index=ids.index(first_id), key="r.first", **pick))]
    second = runs[ids.index(b.selectbox("Second", index=ids.index(second_id), key="r.second", **pick))]
    if first.id == second.id:
        st.info("This is one run; choose another one to compare it with.")
        return
    try:
        differing = pd.DataFrame(compare.differences(first.config(), second.config()))
    except ParaKnowError as error:
        st.info(shell.sentence(error))
        return
    if differing.empty:
        st.markdown("Their settings are the same.")
    else:
        st.caption("Only the settings that differ")
        shown = differing.map(said)
        st.dataframe(shown, hide_index=True, column_config=DIFFERING, placeholder=shell.MISSING)
    found = compare.across(first, second)
    if found.environment:
        st.caption("Versions, devices, models and data that differ")
        st.dataframe(
            [{k: said(v) for k, v in row.items()} for row in found.environment],
            hide_index=True,
            column_config=DIFFERING,
            placeholder=shell.MISSING,
        )
    for sentence in found.notes:
        st.warning(shell.escape(sentence))
    measured = [shell.read(artifacts.delta_rows, r) for r in (first, second)]
    if all(rows is not None for rows in measured):
        results = pd.DataFrame(compare.results(*measured))
        for side in ("first", "second"):
            results[f"{side}_delta_ci"] = results[f"{side}_delta_ci"].map(
                lambda v: f"{signed(v[0])} to {signed(v[1])}" if v is not None else None
            )
        told = {"accuracy": "accuracy", "delta": "Δ to its student", "delta_ci": "95 % interval"}
        config = {
            f"{side}_{field}": st.column_config.TextColumn(f"{side}: {label}")
            if field == "delta_ci"
            else st.column_config.NumberColumn(f"{side}: {label}", format="%.3f")
            for side in ("first", "second")
            for field, label in told.items()
        }
        st.caption("Accuracy and difference to the student, with its 95 % interval")
        parts = tables.kinds(measured[1]) | tables.kinds(measured[0])
        shown = in_words(results, first, second, parts)
        st.dataframe(shown, hide_index=True, column_config={**WORDS, **config}, placeholder=shell.MISSING)
        draw.csv(results, f"{first.id}-against-{second.id}", "compare")
    if found.rows:
        parts = {m: kind for rows in measured if rows for m, kind in tables.kinds(rows).items()}
        item_by_item(pd.DataFrame(found.rows), first, second, parts)
    reports.beside(first, second)
    reports.download(first, second)


def in_words(rows: pd.DataFrame, first: Run, second: Run, kinds: dict[str, str]) -> pd.DataFrame:
    """Rows of both runs with models and groups by their titles; a model's title in one run is its title in the other
    but for the two that are compared with, which may be others: these stay teacher and student."""
    labels = [str(m) for m in dict.fromkeys(rows.model) if m not in ("teacher", "student")]
    known = {**artifacts.model_titles(second, labels), **artifacts.model_titles(first, labels)}
    known |= {m: f"{known[m]} (control)" for m in labels if kinds.get(m) == "control"}
    return rows.assign(model=[known.get(m, m) for m in rows.model], group=[tables.GROUPS.get(g, g) for g in rows.group])


def item_by_item(rows: pd.DataFrame, first: Run, second: Run, kinds: dict[str, str]) -> None:
    """Same-named models of both runs on the same items."""
    shown = in_words(rows, first, second, kinds).assign(
        interval=rows.delta_ci.map(lambda v: f"{signed(v[0], 3)} to {signed(v[1], 3)}")
    )
    order = ["suite", "group", "model", "n", "accuracy_first", "accuracy_second", "delta", "interval", "gained", "lost"]
    labels = {"accuracy_first": "first: accuracy", "accuracy_second": "second: accuracy", "delta": "second − first"}
    numbers = {c: st.column_config.NumberColumn(label, format="%.3f") for c, label in labels.items()}
    numbers |= {"p_holm": st.column_config.NumberColumn("corrected p", format="%.2g"), "interval": "95 % interval"}
    st.caption("The second run against the first, item by item")
    st.dataframe(
        shown,
        hide_index=True,
        column_order=[*order, "p_holm"],
        column_config={**WORDS, **numbers},
        placeholder=shell.MISSING,
    )
    draw.how_to_read(
        "Every row holds one model of both runs on the n items that both were asked: “second − first” is how much more "
        "often the second run's is right, with its 95 % interval; p is corrected over all rows. Teacher and student "
        "were not changed: what their rows differ by is the machines', not a method's."
    )
    draw.csv(rows, f"{first.id}-against-{second.id}-items", "paired")


listing()
bundles.upload()
if run is not None:
    one(run)
two()
