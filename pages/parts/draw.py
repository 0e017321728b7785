"""Charts on pages: with their text for screen readers, the line under them, and their data."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from pages.parts import saving, talk

PLOTLY = {
    "displaylogo": False,
    "toImageButtonOptions": {"format": "svg"},
    "modeBarButtonsToRemove": ["lasso2d", "autoScale2d"],
}


def how_to_read(text: str) -> None:
    """The line under every figure."""
    if stage := talk.stage():
        return stage.tell(text)
    st.caption(f"**How to read this.** {text}")


def csv(frame: pd.DataFrame, name: str, key: str, label: str = "Data (CSV)") -> None:
    """A download of the numbers behind a figure, put together when it is pressed; none in a talk."""
    if talk.stage():
        return
    st.download_button(
        label,
        lambda: frame.to_csv(index=False).encode(),
        f"{name}.csv",
        "text/csv",
        key=f"csv-{key}",
        type="tertiary",
        icon=":material/download:",
        on_click="ignore",
    )


def plot(figure: Any, key: str, alt: str, **options: Any) -> Any:
    """A Plotly figure with its text for screen readers."""
    if stage := talk.stage():
        return stage.add(figure, alt, key)
    bar = "hover" if options else False
    event = st.plotly_chart(figure, key=key, alt=alt, config={**PLOTLY, "displayModeBar": bar}, **options)
    saving.menu(figure, key, key)
    return event


def chart(figure: Any, alt: str, key: str | None = None, place: Any = st, **options: Any) -> Any:
    """An Altair chart with its text for screen readers, in a column or where the page stands."""
    if stage := talk.stage():
        return stage.add(figure, alt, key)
    event = place.altair_chart(figure, key=key, alt=alt, **options)
    saving.menu(figure, key or alt, key or alt, place)
    return event
