"""The frame around every page: which run is looked at, headings, captions."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import streamlit as st

from pages.parts.artifacts import NotThere
from paraknow import access
from paraknow.runs import store
from paraknow.runs.store import Run

MISSING = "–"
STYLE = Path(__file__).with_name("style.css")
STATE_ICONS = {
    "queued": ":material/schedule:",
    "running": ":material/play_circle:",
    "done": ":material/check_circle:",
    "failed": ":material/error:",
    "cancelled": ":material/cancel:",
    "lost": ":material/help:",
}
# Drawn here: Streamlit would fetch the picture of an icon of its own from the internet, for every visitor.
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><g fill="none" stroke="#1F6FB2" stroke-width="2.5">'
    '<path d="M8 20V5M3.5 9.5 8 5l4.5 4.5"/><path d="M16 4v15M11.5 14.5 16 19l4.5-4.5"/></g></svg>'
)


# What Streamlit replaces in finished text, backslashes or not: addresses become links, shortcodes icons, -- a dash.
_REPLACED = re.compile(
    r"(?<=[a-z]:)(?=//)|(?<=www)(?=\.)|(?<=@)(?=[-\w]+\.)|(?<=:)(?=material/|[\w+-]+:)|(?<=[<>~-])(?=[=>-])",
    re.IGNORECASE,
)
JOINER = "\u2060"  # takes no room and lets no line break: two characters with it between them are no longer a pair


def escape(text: object) -> str:
    """Text of users' making inside Markdown, to be shown as it is: every character that Markdown could read gets a
    backslash, control characters a sign in their place, and what Streamlit would replace afterwards is taken apart."""
    seen = re.sub(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "\ufffd", " ".join(str(text).split()))
    return re.sub(r"([\\`*_{}\[\]()#+\-.!|<>~:$&])", r"\\\1", _REPLACED.sub(JOINER, seen))


def sentence(error: object) -> str:
    """What an error says, as Markdown; a shared page names no path outside the folders that may be opened."""
    return escape(access.said(str(error)))


def when(seconds: float | None) -> str:
    """A Unix time as people read it."""
    return time.strftime("%d %b %Y, %H:%M", time.localtime(seconds)) if seconds else MISSING


def size(bytes_: float) -> str:
    """Bytes in the unit that fits."""
    return f"{bytes_ / 2**30:.2f} GiB" if bytes_ >= 2**29 else f"{bytes_ / 2**20:.0f} MiB"


# -- the pages --------------------------------------------------------------------------------------

PAGES = (
    ("overview", "Overview", ":material/home:"),
    ("models", "Models", ":material/view_module:"),
    ("sensitivity", "Sensitivity", ":material/grid_on:"),
    ("similarity", "Similarity", ":material/compare:"),
    ("transfer", "Transfer", ":material/sync_alt:"),
    ("benchmarks", "Benchmarks", ":material/bar_chart:"),
    ("ladder", "Ladder", ":material/stairs:"),
    ("diagnose", "Diagnose", ":material/troubleshoot:"),
    ("runs", "Runs", ":material/list:"),
)


def window() -> None:
    """The window's title and picture, and the style of all pages."""
    st.set_page_config(page_title="ParaKnow", page_icon=ICON, layout="wide")
    st.html(STYLE)


def navigation() -> Any:
    """The pages in the order of the sidebar; returns the one that is asked for."""
    return st.navigation([st.Page(f"pages/{n}.py", title=t, icon=i, default=n == PAGES[0][0]) for n, t, i in PAGES])


class Ended(Exception):
    """A page has no more to say."""


def stop() -> None:
    """End the page here. Unlike st.stop, it lets what stands around the page (talk mode) go on. Raises Ended."""
    raise Ended


def through_app() -> None:
    """Start again through app.py where Streamlit ran a page by itself.

    It does so once per server, when the first address asked for is a page's and not the start's: until
    st.navigation has been called it takes every file in pages/ for an app of its own.
    """
    if not st.session_state.pop("through_app", False):
        window()
        navigation()
        st.rerun()


# -- the run that is looked at ----------------------------------------------------------------------


def pick_run() -> None:
    """The run picker, in the sidebar of every page and in the address (`?run=`)."""
    st.session_state["through_app"] = True
    rows = {row["id"]: row for row in (*store.listing(), *map(store.summary, store.recorded_runs()))}
    ids = list(rows)
    state, asked = st.session_state, st.query_params.get("run")
    if cloned := state.get("t.refill"):  # changing pages by a button drops what was picked
        choose(cloned)
        asked = None
    if asked and asked != state.get("run_in_address"):  # a link was followed
        if asked in ids:
            choose(asked)
        else:
            state["wrong_run"] = asked[:120]
    if state.get("run") not in ids:
        state.pop("run", None)
        if ids:  # a widget's value is dropped where a page is changed by code: the address still has it
            state["run"] = asked if asked in ids else ids[0]
    with st.sidebar:
        if not ids:
            st.caption("No run yet.")
            return
        st.selectbox(
            "Run",
            ids,
            key="run",
            format_func=lambda run_id: run_label(rows[run_id]) if run_id in rows else run_id,
            on_change=lambda: st.session_state.pop("wrong_run", None),
            help="All pages show this run. The address carries it, so a link shows the same. Type a part of its name, "
            "time, state or id to find one.",
        )
        # bind="query-params" would leave a run out of the address that was not picked by hand.
        state["run_in_address"] = st.query_params["run"] = state["run"]
        if run := current_run():
            facts = store.summary(run)
            if facts["name"]:
                st.caption(escape(facts["name"]))
            st.caption(f"{STATE_ICONS.get(facts['state'], '')} {escape(facts['state'])} · {when(facts['created'])}")
            st.caption(escape(run.id))
            if run.recorded:
                st.caption("Recorded with the package: shown as it was, nothing is computed.")
            elif run.imported:
                st.caption(":material/lock: Imported: read-only. Nothing goes on with it or changes it.")


def run_label(row: dict[str, Any]) -> str:
    """A run in a list to pick from: when, what, how it stands, and its id, by which it can be found."""
    made = time.strftime("%d %b %H:%M", time.localtime(row["created"])) if row["created"] else MISSING
    what = row["name"] or ", ".join(str(row[k]) for k in ("method", "task") if row[k]) or MISSING
    return f"{made} · {' '.join(str(what).split())[:60]} · {row['state'] or MISSING} · {row['id']}"


def current_run() -> Run | None:
    """The run chosen in the sidebar."""
    return store.named(st.session_state.get("run") or "")


def choose(run_id: str) -> None:
    """Make a run the one that is looked at; call it from a widget's callback."""
    st.session_state["run"] = run_id
    st.session_state.pop("wrong_run", None)


def need_run() -> Run:
    """The chosen run, or an empty state that says what to do."""
    wrong_link()
    run = current_run()
    if run is None:
        st.info(
            "There is no run to look at yet. Start one on the Transfer page, or with `paraknow demo` on the "
            "command line."
        )
        st.page_link("pages/transfer.py", label="Start a run", icon=":material/play_arrow:")
        stop()
    return run


def wrong_link() -> None:
    """Say so where the link named a run that does not exist."""
    if wrong := st.session_state.get("wrong_run"):
        st.warning(f"The link names the run “{escape(wrong)}”, which is not here; another one is shown.")


def heading(title: str, what: str, run: Run | None) -> None:
    """A page's title, its job in a line, and the run as one line."""
    through_app()
    st.title(title)
    st.markdown(what)
    if run is not None:
        facts = store.summary(run)
        state = f"{STATE_ICONS.get(facts['state'], '')} {escape(facts['state'])}"
        pair = f"{facts['teacher'] or MISSING} → {facts['student'] or MISSING}"
        parts = [facts["name"] or run.id, pair, facts["task"] or MISSING, facts["method"] or MISSING]
        st.caption(
            f"**Run** {' · '.join(escape(p) for p in parts)} · {state}"
            + (" · recorded" if run.recorded else " · imported: read-only" if run.imported else "")
        )


def link(page: str, label: str, run: Run | None, icon: str | None = None) -> None:
    """A link to a page that keeps the run."""
    st.page_link(f"pages/{page}.py", label=label, icon=icon, query_params={"run": run.id} if run else None)


# -- reading ----------------------------------------------------------------------------


def read(reader: Any, *arguments: Any) -> Any:
    """What a reader of artifacts returns; None, with its sentence shown, where there is nothing to read."""
    try:
        return reader(*arguments)
    except NotThere as reason:
        st.info(sentence(reason), icon=":material/info:")
        return None
