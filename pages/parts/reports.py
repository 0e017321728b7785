"""On the Runs page: reports to take along, and figures of two runs side by side with their difference."""

from __future__ import annotations

from functools import partial
from typing import Any
from urllib.parse import urlsplit

import streamlit as st

from pages.parts import artifacts, draw, shell
from paraknow.errors import ParaKnowError
from paraknow.report import page, sides, source
from paraknow.runs import compare, store
from paraknow.runs.store import Run

READ = (  # what figures side by side are made from
    "config.yaml",
    "environment.json",
    "evaluate/deltas.json",
    "evaluate/items.parquet",
    "locate/sensitivity.parquet",
    "similarity/cka.parquet",
    "similarity/stitching.parquet",
)


def download(*runs: Run) -> None:
    """A button that makes the report of a run, or of several side by side, when it is pressed."""
    names = "-against-".join(run.id for run in runs)
    for run in runs:
        try:
            run.config()
        except ParaKnowError as error:
            st.caption(f"No report: {shell.sentence(error)}")
            return
    st.download_button(
        "Report (HTML)" if len(runs) == 1 else "Report on both (HTML)",
        partial(_made, [run.id for run in runs], _address()),
        f"{names}.html",
        "text/html",
        key=f"r.report.{len(runs)}",
        icon=":material/description:",
        on_click="ignore",
        help="One file to read offline: answer, figures, tables, settings, versions. Making it takes some seconds.",
    )


def _made(ids: list[str], address: str) -> bytes:
    return page.compose([store.find(name) for name in ids], address).encode()


def _address() -> str:
    """Where this dashboard is reached, without the page that is open."""
    parts = urlsplit(st.context.url or page.ADDRESS)
    return f"{parts.scheme}://{parts.netloc}"


@st.cache_resource(max_entries=4, show_spinner="Reading both runs …")
def _sides(folders: tuple[str, str], content: tuple[Any, ...]) -> list[sides.Sides]:
    """What both runs can be drawn on; `content` holds their files' hashes."""
    first, second = (store.named(name) for name in folders)
    assert first and second
    return sides.sides(source.Source(first), source.Source(second), compare.across(first, second))


def beside(first: Run, second: Run) -> None:
    """A figure of both runs in one range, and second − first."""
    st.subheader("Figures side by side, and their difference")
    if not st.toggle("Draw them", key="r.beside", persist_state="session"):
        return
    content = tuple(artifacts.fingerprint(r, n) for r in (first, second) for n in READ if artifacts.has(r, n))
    try:
        found = {s.name: s for s in _sides((first.id, second.id), content)}
    except ParaKnowError as error:
        st.info(shell.sentence(error))
        return
    if not found:
        st.info("The two runs have no figure in common: they share no stage that was finished.")
        return
    name = st.selectbox(
        "Figure", list(found), key="r.figure", format_func=lambda n: found[n].title, persist_state="session"
    )
    chosen = found[name]
    drawn = (("First", chosen.first), ("Second", chosen.second), ("Second − first", chosen.difference))
    for column, (label, picture) in zip(st.columns(3), drawn, strict=True):
        with column:
            st.caption(f"**{label}**")
            if picture is None:
                st.info(shell.sentence(chosen.lacking))
                continue
            figure, key = picture.draw(), f"r.{picture.name}"
            if hasattr(figure, "to_plotly_json"):
                draw.plot(figure, key, picture.alt)
            else:
                draw.chart(figure, picture.alt, key)
    draw.how_to_read(shell.escape(chosen.read))
