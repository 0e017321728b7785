"""A run while it is carried out: stage, step, time left, losses; and the queue."""

from __future__ import annotations

import time
from typing import Any

import streamlit as st

from pages.parts import artifacts, shell
from paraknow.errors import ParaKnowError
from paraknow.figures import losses
from paraknow.runs import queue, store
from paraknow.runs.store import Run

STAGES = ("load", "locate", "similarity", "align", "tune", "evaluate")
ACTIVE = ("queued", "running")
RESTART = 15.0  # seconds between two attempts to start a worker: a new one needs a moment to take its lock


def waiting() -> list[Run]:
    """Runs that are queued or under way, oldest first."""
    return [r for r in reversed(store.all_runs()) if not r.recorded and r.status().get("state") in ACTIVE]


def see_to_worker(queued: bool) -> None:
    """Start a worker where runs wait and none lives (the machine was restarted, or it was killed)."""
    last = st.session_state.get("worker_started", 0.0)
    if queued and time.time() - last > RESTART and not queue.worker_alive():
        st.session_state["worker_started"] = time.time()
        queue.ensure_worker()


def progress(run: Run, status: dict[str, Any]) -> None:
    """State, stage, step and time left as one line and one bar."""
    state, stage = status.get("state", shell.MISSING), status.get("stage")
    finished = status.get("stages") or []
    icon = shell.STATE_ICONS.get(state, "")
    if state == "queued":
        st.markdown(f"{icon} **Queued.** It starts when the runs before it have ended.")
        return
    if state == "running":
        step, total = status.get("step") or 0, status.get("total")
        share = min(1.0, step / total) if total else 0.0
        number = STAGES.index(stage) + 1 if stage in STAGES else 1
        left = (
            f"about {shell.duration(status['eta'])} left in this stage"
            if status.get("eta") is not None
            else "time left not known yet"
        )
        count = f"step {step} of {total}" if total else "starting"
        st.markdown(f"{icon} **Running**: stage {number} of {len(STAGES)}, {shell.escape(stage)} · {count} · {left}")
        st.progress(share, text=shell.escape(status.get("message") or stage or ""))
        return
    took = None
    if status.get("finished") and status.get("started"):
        took = status["finished"] - status["started"]
    names = {"done": "Done", "failed": "Failed", "cancelled": "Cancelled", "lost": "Lost: its process is gone"}
    done = ", ".join(s for s in STAGES if s in finished) or "none"
    st.markdown(
        f"{icon} **{names.get(state) or shell.escape(state)}** after {shell.duration(took)} · finished stages: {done}"
    )
    if status.get("error"):
        st.error(shell.sentence(status["error"]))


def loss_chart(run: Run) -> None:
    """Losses so far, from events.jsonl."""
    table = losses.from_events(run.events())
    if table.empty:
        st.caption("Losses appear here once fine-tuning has begun.")
        return
    labels = list(dict.fromkeys(table.label))
    titles = artifacts.model_titles(run, labels)
    kinds = {x: "control" if "+" in x else "baseline" for x in labels} | {labels[0]: "examined"}
    figure = losses.curves(table, kinds, titles)
    last = table.groupby("label", sort=False).loss.last()
    shell.plot(
        figure,
        "t.loss",
        "Fine-tuning loss; last values: " + "; ".join(f"{titles[k]} {v:.2f}" for k, v in last.items()) + " nats.",
    )
    shell.how_to_read(
        "The loss of each optimiser step's batch, in nats per answer token (single values, so no interval); every "
        "model sees the same batches in the same order. A lower curve says the training set was fitted better, "
        "not that knowledge was transferred."
    )
    shell.csv(table, f"{run.id}-losses", "losses")


def buttons(run: Run, state: str) -> None:
    """Cancel while it runs; resume after it stopped; the results once it is done."""
    if run.recorded:
        return
    if state in ACTIVE and st.button("Cancel this run", icon=":material/cancel:", key="t.cancel"):
        run.cancel()
        st.rerun()
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


def queue_list(runs: list[Run]) -> None:
    """What is under way and what waits."""
    if not runs:
        st.caption("The queue is empty.")
        return
    lines = [{"id": r.id, "state": (s := r.status()).get("state"), "stage": s.get("stage")} for r in runs]
    st.caption(f"Queue: {len(runs)} run{'s' if len(runs) > 1 else ''}, one after the other")
    st.dataframe(lines, hide_index=True, placeholder=shell.MISSING)


def panel(run: Run | None) -> None:
    """The live part of the Transfer page. It asks again every second only while something is under way."""
    active = bool(waiting())

    def draw() -> None:
        now = waiting()
        see_to_worker(any(r.status().get("state") == "queued" for r in now))
        if run is not None:
            status = run.status()
            progress(run, status)
            buttons(run, str(status.get("state")))
            loss_chart(run)
        queue_list(now)
        if active and not now:
            st.rerun()  # all is done: the page around this part changes, and asking stops

    st.fragment(draw, run_every=1.0 if active else None)()
