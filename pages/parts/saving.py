"""A figure as a file to take along. Nothing is drawn before it is asked for: a closed menu costs a button."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import altair as alt
import plotly.graph_objects as go
import streamlit as st

from pages.parts import shell
from paraknow.figures import images

MIMES = {"svg": "image/svg+xml", "png": "image/png", "pdf": "application/pdf"}


def _content(figure: Any) -> str:
    return str(figure.to_json())


@st.cache_data(
    max_entries=12, show_spinner=False, hash_funcs={t: _content for t in (go.Figure, alt.Chart, alt.LayerChart)}
)
def picture(figure: Any, format: images.Format, talk: bool) -> bytes:
    """The figure as a picture file, drawn once per content. Raises InputError as images.render does."""
    return images.render(images.for_slides(figure) if talk else figure, format)


def menu(figure: Any, key: str, name: str, place: Any = st) -> None:
    """A small menu under a figure: SVG, PNG and PDF, as on the page or with large text for slides.

    name: of the file, without an ending. place: a column, or where the page stands.
    """
    opened = place.popover(
        "Save",
        key=f"save-{key}",
        type="tertiary",
        icon=":material/image:",
        on_change="rerun",
        help="As a picture file.",
    )
    if not opened.open:
        return
    with opened:
        if lacks := images.lacking(figure):
            st.caption(shell.escape(lacks))
            return
        talk = st.toggle(
            "For slides", key=f"save-{key}-talk", help=f"All text at least {images.LEAST:.0f} pixels high."
        )
        file = re.sub(r"[^A-Za-z0-9.+-]+", "-", name).strip("-.")[:100] or "figure"
        buttons = st.container(horizontal=True)
        for format, mime in MIMES.items():
            buttons.download_button(
                format.upper(),
                partial(picture, figure, format, talk),
                f"{file}.{format}",
                mime,
                key=f"save-{key}-{format}",
                on_click="ignore",
            )
