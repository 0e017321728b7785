"""Runs: all of them, two compared, and what can be done with one."""

import pandas as pd
import streamlit as st

from pages.parts import artifacts, bundles, draw, shell
from paraknow import access, limits
from paraknow import config as configs
from paraknow.errors import ParaKnowError
from paraknow.runs import compare, queue, store
from paraknow.runs.store import Run

run = shell.current_run()
shell.heading("Runs", "Every run is a folder; this list is read from the folders.", None)
shell.wrong_link()
runs = store.all_runs()
if not runs:
    st.info("There is no run yet. Start one on the Transfer page, or with `paraknow demo` on the command line.")
    shell.link("transfer", "Start a run", None, ":material/play_arrow:")
    shell.stop()


def listing() -> None:
    """The table, filtered."""
    facts = pd.DataFrame([*store.listing(), *(store.summary(r) for r in store.recorded_runs())])
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
    order = [
        "id",
        "name",
        "state",
        "stage",
        "method",
        "teacher",
        "student",
        "task",
        "created",
        "finished",
        "recorded",
        "imported",
        "error",
    ]
    times = {
        c: st.column_config.DatetimeColumn(f"{c} (UTC)", format="DD MMM YYYY, HH:mm") for c in ("created", "finished")
    }
    st.dataframe(
        shown, hide_index=True, column_order=order, column_config=times, placeholder=shell.MISSING, alt="All runs."
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
        st.columns(4),
        (
            ("overview", "Overview"),
            ("sensitivity", "Sensitivity"),
            ("transfer", "Transfer"),
            ("benchmarks", "Benchmarks"),
        ),
        strict=True,
    ):
        with column:
            shell.link(page, f"Open in {label}", run)
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
    first = runs[ids.index(a.selectbox("First", ids, index=ids.index(first_id), key="r.first"))]
    second = runs[ids.index(b.selectbox("Second", ids, index=ids.index(second_id), key="r.second"))]
    try:
        differing = pd.DataFrame(compare.differences(first.config(), second.config()))
    except ParaKnowError as error:
        st.info(shell.sentence(error))
        return
    if differing.empty:
        st.markdown("Their settings are the same.")
    else:
        st.caption("Only the settings that differ")
        st.dataframe(differing.map(lambda v: None if v is None else str(v)), hide_index=True, placeholder=shell.MISSING)
    found = compare.across(first, second)
    if found.environment:
        st.caption("Versions, devices, models and data that differ")
        st.dataframe(
            [{k: None if v is None else str(v) for k, v in row.items()} for row in found.environment],
            hide_index=True,
            placeholder=shell.MISSING,
        )
    for sentence in found.notes:
        st.warning(shell.escape(sentence))
    tables = [shell.read(artifacts.delta_rows, r) for r in (first, second)]
    if all(t is not None for t in tables):
        results = pd.DataFrame(compare.results(*tables))
        for side in ("first", "second"):
            results[f"{side}_delta_ci"] = results[f"{side}_delta_ci"].map(
                lambda v: f"{v[0]:+.2f} to {v[1]:+.2f}" if v is not None else None
            )
        numbers = {
            f"{s}_{f}": st.column_config.NumberColumn(f"{s}: {f}", format="%.3f")
            for s in ("first", "second")
            for f in ("accuracy", "delta")
        }
        st.caption("Accuracy and difference to the student, with its 95 % interval")
        st.dataframe(results, hide_index=True, column_config=numbers, placeholder=shell.MISSING)
        draw.csv(results, f"{first.id}-against-{second.id}", "compare")
    if found.rows:
        item_by_item(pd.DataFrame(found.rows), first, second)


def item_by_item(rows: pd.DataFrame, first: Run, second: Run) -> None:
    """Same-named models of both runs on the same items."""
    shown = rows.assign(interval=rows.delta_ci.map(lambda v: f"{v[0]:+.3f} to {v[1]:+.3f}"))
    order = ["suite", "group", "model", "n", "accuracy_first", "accuracy_second", "delta", "interval", "gained", "lost"]
    numbers = {c: st.column_config.NumberColumn(format="%.3f") for c in ("accuracy_first", "accuracy_second", "delta")}
    numbers["p_holm"] = st.column_config.NumberColumn("corrected p", format="%.2g")
    st.caption("The second run against the first, item by item")
    st.dataframe(
        shown, hide_index=True, column_order=[*order, "p_holm"], column_config=numbers, placeholder=shell.MISSING
    )
    draw.how_to_read(
        "Every row holds one model of both runs on the n items that both were asked: delta is how much more often the "
        "second run's is right, with its 95 % interval; p is corrected over all rows. The rows of the teacher and the "
        "student compare models that were not changed: what they differ by is the machines', not a method's."
    )
    draw.csv(rows, f"{first.id}-against-{second.id}-items", "paired")


listing()
bundles.upload()
if run is not None:
    one(run)
two()
