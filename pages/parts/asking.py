"""A question to the worker, from the button that puts it to its answer: files are looked at, no model is loaded."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import streamlit as st

from pages.parts import live, shell
from paraknow.errors import ParaKnowError
from paraknow.runs import asks, questions, queue, store
from paraknow.runs.asks import State
from paraknow.runs.questions import Question
from paraknow.runs.store import Run

EVERY = 0.4  # seconds between two looks at an answer that is waited for
PATIENCE = 0.6  # seconds that a page waits at once: a pair in memory answers within them


@dataclass
class Held:
    """The last question of a slot of a run, and how it stands."""

    id: str
    question: Question | None
    state: State


def _key(slot: str, run: Run) -> str:
    return f"ask.{slot}.{run.id}"


def held(slot: str, run: Run) -> Held | None:
    """The last question that was put here."""
    return st.session_state.get(_key(slot, run))


def put(slot: str, run: Run, kind: str, values: Callable[[], dict[str, Any]]) -> None:
    """Put a question in the place of the one before; call it from a widget's callback."""
    drop(slot, run)
    try:
        question = questions.make(kind, run=run.id, **values())
        made = Held(queue.ask(question).id, question, State("waiting"))
    except ParaKnowError as error:
        made = Held("", None, State("failed", error=str(error)))
    except OSError as error:
        made = Held("", None, State("failed", error=f"the question cannot be written down ({error.strerror})."))
    st.session_state[_key(slot, run)] = made


def drop(slot: str, run: Run) -> None:
    """Forget the last question; nobody waits for it any more."""
    before = st.session_state.pop(_key(slot, run), None)
    if before is not None and not before.state.over:
        asks.named(before.id, store.runs_folder()).cancel()


def answered(slot: str, run: Run) -> Held | None:
    """The last question with its answer, once it is there. Until then this says how it stands, and asks again."""
    found = held(slot, run)
    if found is None:
        return None
    until = time.monotonic() + PATIENCE
    while not _look(found) and time.monotonic() < until:
        time.sleep(0.03)
    if not found.state.over:
        st.fragment(_waiting, run_every=EVERY)(slot, run, found)
        return None
    if found.state.name == "done":
        return found
    st.error(shell.sentence(found.state.error or "the question is gone; ask again."))
    return None


def _look(found: Held) -> bool:
    """Whether it is over. An answer is kept: its files are removed after an hour."""
    if not found.state.over:
        found.state = asks.named(found.id, store.runs_folder()).state()
    return found.state.over


def _waiting(slot: str, run: Run, found: Held) -> None:
    if _look(found):
        st.rerun()  # the page draws it, and asking stops
    st.info(_said(found), icon=":material/hourglass_top:")
    st.button(
        "Cancel the question",
        icon=":material/cancel:",
        key=f"{_key(slot, run)}.cancel",
        on_click=drop,
        args=(slot, run),
    )


def _said(found: Held) -> str:
    """What is waited for."""
    if found.state.name == "working":
        return f"The worker is at it{': ' if found.state.message else ''}{shell.escape(found.state.message)}."
    live.see_to_workers()
    if not queue.worker_alive():
        return "There is no worker, so one is being started; the first answer takes longer, as models are loaded."
    ahead = asks.before(asks.named(found.id, store.runs_folder()))
    place = "your question is next" if not ahead else f"{ahead} question{'s' * (ahead > 1)} before yours"
    busy = [row["id"] for row in queue.waiting() if row["state"] == "running"]
    if busy:
        return f"The worker is busy with {', '.join(map(shell.escape, busy))}; {place}."
    return f"The worker is being asked; {place}."
