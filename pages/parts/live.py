"""A run while it is carried out: stage, step, time left, losses; and the queue."""

from __future__ import annotations

import time
from typing import Any

import pandas as pd
import streamlit as st

from pages.parts import artifacts, draw, shell
from paraknow import access
from paraknow.errors import ParaKnowError
from paraknow.figures import losses
from paraknow.progress import duration
from paraknow.report import answers
from paraknow.runs import queue
from paraknow.runs.events import EventsReader, Lines, harmless
from paraknow.runs.store import STAGE_NAMES, Run

ACTIVE = ("queued", "running")
LOG_LINES = 100
RESTART = 15.0  # seconds between two attempts to start a worker: a new one needs a moment to take its lock


def see_to_workers() -> None:
    """Start workers where runs wait and none lives (the machine was restarted, or they were killed)."""
    if time.monotonic() - st.session_state.get("workers_started", -RESTART) >= RESTART:
        st.session_state["workers_started"] = time.monotonic()
        queue.ensure_workers()


def progress(run: Run, status: dict[str, Any]) -> None:
    """State, stage, step and time left as one line and one bar."""
    state, stage = status.get("state", shell.MISSING), status.get("stage")
    finished = status.get("stages") or []
    icon = shell.STATE_ICONS.get(state, "")
    if state == "queued":
        before = [s for s in STAGE_NAMES if s in finished]
        goes_on = f" It goes on after what it had finished: {', '.join(before)}." if before else ""
        st.markdown(f"{icon} **Queued.** It starts when the runs before it have ended.{goes_on}")
        return
    if state == "running":
        step, total = status.get("step") or 0, status.get("total")
        share = min(1.0, step / total) if total else 0.0
        number = STAGE_NAMES.index(stage) + 1 if stage in STAGE_NAMES else 1
        left = (
            f"about {duration(status['eta'])} left in this stage"
            if status.get("eta") is not None
            else "time left not known yet"
        )
        count = f"step {step} of {total}" if total else "starting"
        place = f"stage {number} of {len(STAGE_NAMES)}, {shell.escape(stage)}"
        st.markdown(f"{icon} **Running**: {place} · {count} · {left}")
        if before := [s for s in STAGE_NAMES if s in finished and s != stage]:
            st.caption(f"Finished: {', '.join(before)}.")
        if run.cancelled():
            st.caption(f"It is asked to stop; if it has not after {queue.HARD:.0f} s, its process is ended.")
        elif "silent" in status:
            silent = duration(status["silent"])
            st.warning(f"It has not answered for {silent}: its process is held up. Cancelling ends it.")
        st.progress(share, text=shell.escape(status.get("message") or stage or ""))
        return
    took = None
    if status.get("finished") and status.get("started"):
        took = status["finished"] - status["started"]
    names = {"done": "Done", "failed": "Failed", "cancelled": "Cancelled", "lost": "Lost: its process is gone"}
    done = ", ".join(s for s in STAGE_NAMES if s in finished) or "none"
    st.markdown(
        f"{icon} **{names.get(state) or shell.escape(state)}** after {duration(took)} · finished stages: {done}"
    )
    if status.get("error"):
        st.error(shell.sentence(status["error"]))


def told_losses(run: Run) -> pd.DataFrame:
    """Losses so far, from events.jsonl: a redraw reads only what has come since the last one."""
    held = st.session_state.get("t.told")
    if held is None or held[0] != str(run.folder):
        held = (str(run.folder), EventsReader(run.path("events.jsonl")), losses.Told())
    folder, reader, told = held
    events = reader.new()
    if reader.again:
        told = losses.Told()
    told.add(events)
    st.session_state["t.told"] = (folder, reader, told)
    return told.table()


def loss_chart(run: Run) -> None:
    """Losses so far, and their numbers to take away."""
    table = told_losses(run)
    if table.empty:
        st.caption("Losses appear here once fine-tuning has begun.")
        return
    labels = list(dict.fromkeys(table.label))
    titles = artifacts.model_titles(run, labels)
    picture = answers.curves(table, titles)
    draw.plot(picture.draw(), "t.loss", picture.alt)
    draw.how_to_read(picture.read)
    draw.csv(table, f"{run.id}-losses", "losses")


def log_end(run: Run) -> None:
    """The last lines of the run's log, as plain text."""
    with st.expander("Log", icon=":material/terminal:"):
        lines = Lines(run.path("worker.log")).last(LOG_LINES)
        if not lines:
            st.caption("This run has written no log yet.")
            return
        st.code(access.said("\n".join(map(harmless, lines))), language=None, wrap_lines=True, height=300)
        st.caption(
            f"At most the last {LOG_LINES} lines; `paraknow runs log {run.id} --follow` shows them in a terminal."
        )


def buttons(run: Run, state: str) -> None:
    """Cancel while it runs; resume after it stopped; the results once it is done."""
    if run.read_only:
        return
    a, b = st.columns([1, 3]) if state in ACTIVE else (None, None)
    if a and a.button("Cancel this run", icon=":material/cancel:", key="t.cancel"):
        run.cancel()
        st.rerun()
    if b and state == "queued" and b.button("Let it be the next", icon=":material/vertical_align_top:", key="t.first"):
        try:
            queue.first(run)
            st.rerun()
        except ParaKnowError as error:  # it was taken meanwhile
            st.error(shell.sentence(error))
    if state in ("failed", "cancelled", "lost") and st.button(
        "Resume this run", icon=":material/replay:", key="t.resume"
    ):
        try:
            queue.resume(run)
            st.rerun()
        except ParaKnowError as error:
            st.error(shell.sentence(error))
    if state == "done":
        shell.link("benchmarks", "See what it measured", run, ":material/bar_chart:")


def queue_list(rows: list[dict[str, Any]]) -> None:
    """What is under way and what waits, in the order it is taken."""
    if not rows:
        st.caption("The queue is empty.")
        return
    shown = [{k: row[k] for k in ("id", "name", "state", "stage", "method", "device", "priority")} for row in rows]
    many = f"Queue: {len(rows)} run{'s' if len(rows) > 1 else ''}"
    st.caption(f"{many}, one after the other on each device; higher priority first, then in the order they were made")
    st.dataframe(shown, hide_index=True, placeholder=shell.MISSING)


def elsewhere(run: Run | None) -> None:
    """A line on the first run under way that is not the chosen one, with a button that chooses it."""
    others = [row for row in queue.waiting() if run is None or row["id"] != run.id]
    if not others:
        return
    first, more = others[0], len(others) - 1
    what = "is under way" if first["state"] == "running" else "waits"
    behind = f", and {more} more {'wait' if more > 1 else 'waits'} behind it" if more else ""
    a, b = st.columns([5, 1], vertical_alignment="center")
    a.info(
        f"Another run {what}: {shell.escape(first['name'] or first['id'])}{behind}. The queue is at this page's end.",
        icon=":material/schedule:",
    )
    b.button("Look at it", on_click=shell.choose, args=(first["id"],), key="t.elsewhere", width="stretch")


def panel(run: Run | None) -> None:
    """The live part of the Transfer page. It asks again every second only while something is under way."""
    active = bool(queue.waiting())

    def draw() -> None:
        see_to_workers()
        if run is not None:
            queue.enforce_cancel(run)
            status = run.status()
            progress(run, status)
            buttons(run, str(status.get("state")))
            loss_chart(run)
            log_end(run)
        rows = queue.waiting()
        queue_list(rows)
        state, before = run.status().get("state") if run is not None else None, st.session_state.get("t.state")
        st.session_state["t.state"] = (run.id, state) if run is not None else None
        changed = before is not None and run is not None and before[0] == run.id and before[1] != state
        if active and (changed or not rows):
            st.rerun()  # the page around this part says how the run stands; where all is done, asking stops

    st.fragment(draw, run_every=1.0 if active else None)()
