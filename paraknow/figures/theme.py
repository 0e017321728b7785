"""Colours, markers and names that all figures share."""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import plotly.graph_objects as go

LIGHT, DARK = "#FFFFFF", "#10151C"  # page backgrounds, as in .streamlit/config.toml
NEUTRAL = "#7C8794"
BLOCK = "#E8590C"  # outline of a chosen block: apart from both ends of Cividis
MISSING = "–"


@dataclass(frozen=True)
class Style:
    """How one model is drawn: colour, Plotly marker, line dash."""

    color: str
    symbol: str
    dash: str = "solid"


TEACHER = Style("#C96F00", "star")
STUDENT = Style("#2F7FC1", "circle-open")
EXAMINED = Style("#C2508F", "diamond")
EXPECTED = EXAMINED.color  # what arithmetic or chance alone would give
BASELINES = (
    Style("#0E8F72", "circle", "dash"),
    Style("#8A6FD1", "triangle-up", "dashdot"),
    Style("#8A7A00", "pentagon", "longdash"),
    Style("#D2553C", "hexagon", "longdashdot"),
)
CONTROLS = (
    Style("#7C8794", "square-open", "dot"),
    Style("#5B8DB8", "x-thin-open", "dot"),
    Style("#9A7B4F", "triangle-down-open", "dot"),
    Style("#7B86A0", "cross-open", "dot"),
)
OF_CONTROL = dict(zip(("zero", "noise", "random_window", "shuffled_teacher"), CONTROLS, strict=True))


def styles(kinds: dict[str, str]) -> dict[str, Style]:
    """A style per model label; `kinds` maps labels to teacher, student, examined, baseline or control.

    A usual control looks the same in every figure and run; others take their turn.
    """
    fixed = {"teacher": TEACHER, "student": STUDENT, "examined": EXAMINED}
    counts = {"baseline": 0, "control": 0}
    made = {}
    for label, kind in kinds.items():
        control = label.rpartition("+")[2]
        if kind in fixed or (kind == "control" and control in OF_CONTROL):
            made[label] = fixed[kind] if kind in fixed else OF_CONTROL[control]
            continue
        palette = BASELINES if kind == "baseline" else CONTROLS
        made[label] = palette[counts[kind] % len(palette)]
        counts[kind] += 1
    return made


def plain(text: object) -> str:
    """Text for a Plotly label: what users typed must not be read as markup, as a formula or as a place for a value."""
    escaped = html.escape(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", str(text)), quote=False)
    return escaped.replace("$", "&#36;").replace("%{", "&#37;{")


SHORTEST = 20  # characters: no figure cuts a name shorter


def short(text: object, length: int = 34) -> str:
    """At most `length` characters: the middle is left out, because names of models differ at their ends."""
    shown = str(text)
    if len(shown) <= length:
        return shown
    tail = length // 2
    return f"{shown[: length - 1 - tail]}…{shown[-tail:]}"


def distinct(names: Mapping[str, str], length: int = SHORTEST) -> dict[str, str]:
    """The same names where no two look alike when cut to `length`.

    Of those that would, only the ends that differ are kept (…70B-chat and …7B-chat); where that does not help they are
    numbered, the first one excepted. What differs when cut to `length` also differs when cut to more.
    """
    made = {key: str(name) for key, name in names.items()}
    alike: dict[str, list[str]] = {}
    for key, name in made.items():
        alike.setdefault(short(name, length), []).append(key)
    for keys in alike.values():
        if len(keys) > 1:
            made |= _ends({key: made[key] for key in keys}, length)
    taken: set[str] = set()
    for key, name in made.items():
        number = 1
        while short(made[key], length) in taken:
            number += 1
            made[key] = f"{name} ({number})"
        taken.add(short(made[key], length))
    return made


def _ends(names: dict[str, str], length: int) -> dict[str, str]:
    """Names without the parts that they begin with in common, broken between words; as they are where that is vain."""
    begin = 0
    for place, letters in enumerate(zip(*names.values(), strict=False), 1):
        if len(set(letters)) > 1:
            break
        begin = place if letters[0] in "/-_. " else begin
    ends = {key: f"…{name[begin:]}" for key, name in names.items()}
    return ends if begin and len({short(e, length) for e in ends.values()}) == len(ends) else names


def sparse(count: int, room: int = 24) -> int:
    """Label every k-th of `count` layers, so that at most `room` labels are drawn: k of 1, 2, 5, 10, 20, …"""
    scale = 1
    while True:
        for step in (scale, 2 * scale, 5 * scale):
            if count <= room * step:
                return step
        scale *= 10


def titled(text: str, note: str = "") -> alt.TitleParams:
    """Title of an Altair chart with a note under it that can be read on both page backgrounds."""
    return alt.TitleParams(
        text, subtitle=note or alt.Undefined, subtitleColor=NEUTRAL, subtitleFontSize=12, anchor="start", offset=8
    )


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign and a real minus; what rounds to zero has no sign."""
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}".replace("-", "−") if rounded else f"{0:.{digits}f}"


def bars(values: Any, lows: Any, highs: Any) -> dict[str, Any] | None:
    """Plotly's error bars of marks at `values` (n,) from `lows` to `highs`; None where there is no interval.

    Where an end is missing there is no bar. The lengths stay arrays: in a list, a missing one would reach the browser
    as null, which Plotly draws as a bar of length 0 with its caps.
    """
    at, low, high = (np.asarray([np.nan if v is None else v for v in x], float) for x in (values, lows, highs))
    known = np.isfinite(at + low + high)
    if not known.any():
        return None
    above, below = (np.where(known, np.maximum(length, 0), np.nan) for length in (high - at, at - low))
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below}


def side_by_side(layers: Iterable[Any], width: float) -> dict[Any, float]:
    """An offset per layer, first to last from left to right within `width`, so that marks do not hide each other."""
    order = sorted(set(layers))
    return {layer: width * (k / (len(order) - 1) - 0.5) if len(order) > 1 else 0.0 for k, layer in enumerate(order)}


TITLE_WIDTH, NOTE_WIDTH = 48, 62  # characters of a line that a window of 390 pixels still shows whole
LINE = 20  # pixels


def lines(text: str, width: int) -> str:
    """Text in lines of at most `width` characters, broken at spaces; names without one stay whole, as does n = …"""
    text = re.sub(r"\bn = ", "n\u00a0=\u00a0", text)
    found = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return "<br>".join(found).replace("\u00a0", " ")


def frame(
    figure: go.Figure, title: str, height: int, note: str = "", width: int = TITLE_WIDTH, **margins: int
) -> go.Figure:
    """Title, note under it, margins and sizes of every Plotly figure; text takes its colour from the page's theme.

    `height` is what the figure needs with a title of one line of `width` characters; more lines make it higher.
    """
    title, note = lines(title, width), lines(note, NOTE_WIDTH)
    further = title.count("<br>")
    more = LINE * further + (LINE - 4) * note.count("<br>")
    height += more
    figure.update_layout(
        title={
            "text": title,
            "subtitle": {"text": note, "font": {"size": 12}},
            "font": {"size": 15},
            "x": 0,
            "xanchor": "left",
            "yref": "container",
            "y": 1 - (12 + LINE // 2 * further) / height,
            "yanchor": "top",
        },
        height=height,
        margin={"l": 10, "r": 10, "t": (62 if note else 44) + more, "b": 46, **margins},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": NEUTRAL, "activecolor": EXAMINED.color},
        font={"size": 13},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hoverlabel={"align": "left"},
    )
    # Otherwise the browser measures every label of every axis, several times over, to hide one that would be cut:
    # a fifth of the time that a figure takes to be drawn. None is cut where margins leave room for labels.
    figure.update_xaxes(ticklabeloverflow="allow")
    figure.update_yaxes(ticklabeloverflow="allow")
    return figure
