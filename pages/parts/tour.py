"""A short walk over the recorded run: four pages, what to look at on each, and the way on."""

from __future__ import annotations

import streamlit as st

from pages.parts import shell
from paraknow.runs import store

STEPS = (  # page, its title, what to look at
    (
        "sensitivity",
        "Where the knowledge is",
        "The two maps show which matrices the answers depend on: the brighter, the more. Click a bright cell of the "
        "teacher and look below: the outlined rectangle is the block that is cut out for the student.",
    ),
    (
        "similarity",
        "How alike the two models are",
        "The left map compares every layer of the teacher with every layer of the student. Look at the map beside it "
        "before you believe the colours: that much two models share that have nothing to do with each other.",
    ),
    (
        "benchmarks",
        "What arrived",
        "Look at the facts nobody showed the student. The method would have moved knowledge if its bar lay right of "
        "0 and above every control. Then look at the facts in the fine-tuning set: training alone explains those.",
    ),
    (
        "ladder",
        "Can the measurement be believed?",
        "On the clone pair the right answer is known, and it is found. On siblings much arrives, between strangers "
        "nothing: not because nothing could be seen, but because nothing crossed.",
    ),
)


def step() -> int | None:
    """The step of the tour that is shown, from 1; None outside of it."""
    return st.session_state.get("tour")


def go(number: int) -> None:
    """Open the page of a step, on the recorded run."""
    st.session_state["tour"] = number
    st.session_state["tour_in_address"] = str(number)
    st.session_state.pop(
        "run_in_address", None
    )  # so that the address below counts: changing pages drops what was picked
    run = {"run": recorded.id} if (recorded := next(iter(store.recorded_runs()), None)) else {}
    st.switch_page(f"pages/{STEPS[number - 1][0]}.py", query_params={**run, "tour": str(number)})


def followed() -> None:
    """A link with `?tour=2` begins or moves the tour."""
    asked = st.query_params.get("tour")
    if not asked or asked == st.session_state.get("tour_in_address"):
        return
    if asked in map(str, range(1, len(STEPS) + 1)):
        go(int(asked))
    leave()
    st.warning(f"The link names step “{shell.escape(asked[:20])}” of the tour, which has steps 1 to {len(STEPS)}.")


def leave() -> None:
    """End the tour; the page stays."""
    st.session_state.pop("tour", None)
    st.session_state.pop("tour_in_address", None)
    st.query_params.pop("tour", None)


def invitation() -> None:
    """The button that begins the tour, where there is a recorded run to walk over."""
    if (
        step() is None
        and store.recorded_runs()
        and st.button("Take the tour: four pages, two minutes", icon=":material/tour:", key="tour.start")
    ):
        go(1)


def card(page: str) -> None:
    """The step of the tour above the page it is on; elsewhere, a way back to it. `page`: the address's own name."""
    followed()
    number = step()
    if number is None:
        return
    st.session_state["tour_in_address"] = st.query_params["tour"] = str(number)
    there, title, text = STEPS[number - 1]
    with st.container(border=True, key="tour"):
        st.markdown(f"**Tour, step {number} of {len(STEPS)}: {title}**")
        if page == there:
            st.markdown(text)
        else:
            st.caption("This page is beside the tour; look around, and go on where you left it.")
        with st.container(horizontal=True):
            if st.button("Back", icon=":material/arrow_back:", key="tour.back", disabled=number == 1):
                go(number - 1)
            if page != there and st.button("Return to the tour", key="tour.return", type="primary"):
                go(number)
            if number < len(STEPS) and st.button(
                "Next",
                icon=":material/arrow_forward:",
                key="tour.next",
                type="primary" if page == there else "secondary",
            ):
                go(number + 1)
            st.button("Leave the tour", key="tour.leave", on_click=leave, type="tertiary")
