"""Talk mode (`?talk=1`): one figure fills the screen, with what is read from it and how, and nothing else.

The page runs as always, unseen, so its widgets keep what was chosen; its charts are collected in place of being drawn
(pages/parts/draw.py), and one of them is drawn large.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import streamlit as st

from pages.parts import shell
from paraknow.figures import enlarged

STYLE = Path(__file__).with_name("talk.css")
PLOTLY = {"displaylogo": False, "displayModeBar": False}


@dataclass
class Shown:
    """A figure of the page, with its text for screen readers and its line of how to read it."""

    figure: Any
    alt: str
    key: str | None
    how: str = ""


@dataclass
class Stage:
    """The figures of one run of a page, and the place where one of them is drawn."""

    page: str
    figures: list[Shown] = field(default_factory=list)
    place: Any = None
    key: str | None = None  # of the figure that is drawn
    number: int = 1

    def add(self, figure: Any, alt: str, key: str | None) -> None:
        """A figure of the page; once the page has run, a part that redraws itself brings the drawn one anew."""
        if self.place is None:
            self.figures.append(Shown(figure, alt, key))
        elif key is not None and key == self.key:
            _draw(self.place, enlarged.enlarge(figure), alt)

    def tell(self, text: str) -> None:
        """How to read the figures since the last such line."""
        for shown in reversed(self.figures):
            if shown.how:
                return
            shown.how = text


def on() -> bool:
    """Whether the address asks for talk mode."""
    return st.query_params.get("talk") == "1"


def stage() -> Stage | None:
    """Where figures go in talk mode; None outside of it, and before the page runs."""
    return st.session_state.get("talk.stage") if on() else None


def switch() -> None:
    """The way into talk mode, in the sidebar."""
    with st.sidebar:
        st.button(
            "Talk mode", on_click=enter, icon=":material/slideshow:", key="talk.enter", help="One figure a screen."
        )


def enter() -> None:
    st.query_params.update({"talk": "1", "figure": "1"})


def leave() -> None:
    for name in ("talk", "figure"):
        st.query_params.pop(name, None)
    st.session_state.pop("talk.stage", None)


def show(page: Any) -> None:
    """Run the page unseen and draw the figure that the address names."""
    name = page.url_path or shell.PAGES[0][0]
    _walk(name)
    made = st.session_state["talk.stage"] = Stage(name)
    st.html(STYLE)
    with st.container(key="talk-page"), suppress(shell.Ended):
        page.run()
    with st.container(key="talk"):
        made.number, wrong = _number(len(made.figures))
        if made.figures:
            shown = made.figures[made.number - 1]
            made.key = shown.key
            large = enlarged.enlarge(shown.figure)
            st.title(shell.escape(large.title or page.title), anchor=False)
            if large.note:
                st.markdown(shell.escape(large.note))
            made.place = st.container(key="talk-figure", height="stretch").empty()
            _draw(made.place, large, shown.alt)
            with st.container(key="talk-how"):
                st.caption(shown.how)
        else:
            st.title(page.title, anchor=False)
            with st.container(key="talk-figure", height="stretch"):
                st.info("This page has no figure to show for this run.", icon=":material/info:")
        if wrong:
            st.caption(wrong)
        _bar(page.title, made)


def _draw(place: Any, large: enlarged.Enlarged, alt: str) -> None:
    if hasattr(large.figure, "to_plotly_json"):
        place.plotly_chart(large.figure, height="stretch", key="talk.plot", alt=alt, config=PLOTLY)
    else:
        place.altair_chart(large.figure, height="stretch", width="stretch", key="talk.chart", alt=alt)


# -- which figure ---------------------------------------------------------------------------------


def _number(count: int) -> tuple[int, str]:
    """The figure that the address names, from 1, and a sentence where there is none of that number."""
    asked = st.query_params.get("figure", "1")
    if asked == "last":
        number = max(1, count)
    elif asked.isdecimal() and len(asked) < 6 and 1 <= int(asked) <= max(1, count):
        return int(asked), ""
    else:
        number = 1
    st.query_params["figure"] = str(number)
    wrong = f"The link names figure {shell.escape(asked[:20])}; this page has {count}. The first one is shown."
    return number, "" if asked == "last" else wrong


def _walk(name: str) -> None:
    """Take the step that a button asked for, beyond the last figure to the next page."""
    step, last = st.session_state.pop("talk.step", 0), st.session_state.get("talk.stage")
    if not step or last is None or last.page != name:
        return
    number = last.number + step
    if 1 <= number <= len(last.figures):
        st.query_params["figure"] = str(number)
    elif beside := _beside(name, step):
        to(beside, "1" if step > 0 else "last")


def _beside(name: str, step: int) -> str | None:
    """The page before or after; None at the ends."""
    names = [n for n, *_ in shell.PAGES]
    place = names.index(name) + step
    return names[place] if 0 <= place < len(names) else None


def to(page: str, figure: str = "1") -> None:
    """Go to another page's figure; the run stays."""
    st.switch_page(f"pages/{page}.py", query_params=_address(figure))


def _address(figure: str) -> dict[str, str]:
    return {"talk": "1", "figure": figure, "run": st.session_state.get("run") or ""}


def _bar(title: str, made: Stage) -> None:
    """Previous, where we are, next, another page, out: by mouse, by keys, by a clicker."""
    count = len(made.figures)
    with st.container(key="talk-bar", horizontal=True, vertical_alignment="center"):
        first, last = _beside(made.page, -1) is None, _beside(made.page, 1) is None
        for label, icon, keys, step, end in (
            ("Previous", ":material/arrow_back:", ("Left", "PageUp"), -1, first and made.number <= 1),
            ("Next", ":material/arrow_forward:", ("Right", "PageDown"), 1, last and made.number >= count),
        ):
            for key in keys:  # a button takes one key: the second one is there for clickers, and unseen
                with st.container(key=f"talk-{key}", width="content"):
                    st.button(
                        label, on_click=_step, args=(step,), icon=icon, key=f"talk.{key}", disabled=end, shortcut=key
                    )
            if step < 0:
                st.markdown(f"**{made.number if count else 0} / {count}** · {title}", width="content")
        with st.popover("Pages", icon=":material/menu:"):
            for name, label, icon in shell.PAGES:
                st.page_link(f"pages/{name}.py", label=label, icon=icon, query_params=_address("1"))
        st.button("Leave", on_click=leave, icon=":material/close:", key="talk.leave", shortcut="Esc")


def _step(step: int) -> None:
    st.session_state["talk.step"] = step
