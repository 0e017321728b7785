"""Charts on pages: made once per content, with their text for screen readers, the line under them, and their data."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from pages.parts import saving, talk

PLOTLY = {
    "displaylogo": False,
    "toImageButtonOptions": {"format": "svg"},
    "modeBarButtonsToRemove": ["lasso2d", "autoScale2d"],
}


def _column(values: pd.Series) -> bytes:
    try:
        return pd.util.hash_pandas_object(values, index=False).to_numpy().tobytes()
    except TypeError:  # lists in cells
        return repr([v.tolist() if isinstance(v, np.ndarray) else v for v in values]).encode()


def _frame(frame: pd.DataFrame) -> list[Any]:
    """All that a table holds; Streamlit by itself reads a sample of a long one, and pickles one with lists in it."""
    index = pd.util.hash_pandas_object(frame.index).to_numpy().tobytes()
    columns = [(str(name), str(values.dtype), _column(values)) for name, values in frame.items()]
    return [frame.shape, index, *columns]


# What arguments are told apart by: all of their content, where Streamlit would take a sample or an address in memory.
CONTENT: dict[type, Callable[[Any], Any]] = {
    pd.DataFrame: _frame,
    pd.Series: lambda row: [str(row.dtype), repr(list(row.items()))],
    np.ndarray: lambda values: [str(values.dtype), values.shape, values.tobytes()],
    set: lambda values: sorted(map(repr, values)),
    FunctionType: lambda function: f"{function.__module__}.{function.__qualname__}",
    partial: lambda call: [call.func, call.args, call.keywords],
}


@st.cache_resource(max_entries=96, show_spinner=False, hash_funcs=CONTENT)
def made(make: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
    """What a function of paraknow.figures makes of its arguments, made once per content and shared by all visitors.

    Whoever shows a figure differently changes a copy of it.
    """
    return make(*arguments, **more)


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
