"""What a report is made of: sections of text, tables and figures; and figures as text that a page can hold."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

import numpy as np
import plotly.graph_objects as go
from plotly.io.json import to_json_plotly

from paraknow.figures import images
from paraknow.report.picture import Picture

SVG = "http://www.w3.org/2000/svg"
TAGS = frozenset(
    "svg g path text tspan title rect line circle defs linearGradient radialGradient stop clipPath".split()
)
REFERENCE = re.compile(r"url\(#([^)]+)\)")
MISSING = "–"
MARKUP = 500  # bytes around a figure in the page
PLAIN = ("stroke", "transparent")  # an outline that nobody sees, on every cell of a map
NEEDLESS = ("role", "aria-roledescription", "aria-hidden", "aria-label", "pointer-events", "class")


@dataclass
class Text:
    """A paragraph; `strong` where it says what matters most."""

    text: str
    strong: bool = False
    kind: str = "text"


@dataclass
class Table:
    """Rows of texts under columns, with a caption; `read` says how."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    read: str = ""
    kind: str = "table"


@dataclass
class Figure:
    """A drawn figure: `svg`, or `json` for Plotly."""

    title: str
    alt: str
    read: str
    name: str
    svg: str = ""
    json: str = ""
    height: int = 0
    kind: str = "figure"


@dataclass
class Row:
    """Figures beside each other, with one text below all."""

    title: str
    figures: Sequence[Figure | Text]
    read: str
    kind: str = "row"


@dataclass
class More:
    """Blocks that are shown once they are asked for."""

    title: str
    blocks: Sequence[Any]
    kind: str = "more"


@dataclass
class Code:
    """Lines to copy."""

    caption: str
    text: str
    kind: str = "code"


@dataclass
class Section:
    """A heading with what stands under it."""

    title: str
    blocks: list[Any] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


# -- text of values ---------------------------------------------------------------------------------


def said(value: Any) -> str:
    """A value as text: missing as a dash, numbers short with a real minus, lists with commas."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return MISSING
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return f"{float(value):.3g}".replace("-", "−") if math.isfinite(value) else MISSING
    if isinstance(value, list | tuple | np.ndarray):
        return ", ".join(said(v) for v in value) or "none"
    if isinstance(value, dict):
        if {k for k, v in value.items() if v is not None} == {"name"}:  # a method without settings of its own
            return str(value["name"])
        return ", ".join(f"{k}: {said(v)}" for k, v in value.items())
    return str(value)


def interval(value: Any, bounds: Sequence[Any] | None, signed: bool = False, digits: int = 2) -> str:
    """A number with the ends of its interval behind it."""
    if value is None or value != value:
        return MISSING
    show = [f"{round(float(v), digits) + 0.0:{'+' if signed else ''}.{digits}f}" for v in (value, *(bounds or ()))]
    show = [s.replace("-", "−") if float(s) else s.lstrip("+-") for s in show]
    return f"{show[0]} [{show[1]}, {show[2]}]" if bounds is not None and "nan" not in show else show[0]


def table(caption: str, rows: Iterable[dict[str, Any]], read: str = "", names: dict[str, str] | None = None) -> Table:
    """A table of flat mappings; `names` says in words what a key is."""
    rows = list(rows)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return Table(caption, [(names or {}).get(k, k) for k in keys], [[said(r.get(k)) for k in keys] for r in rows], read)


# -- figures ----------------------------------------------------------------------------------------


class Canvas:
    """Draws figures as long as there is room in the file; `left_out` names those for which there was none."""

    def __init__(self, room: int):
        self.room = room
        self.left_out: list[str] = []
        self.drawn = 0

    def figure(self, picture: Picture) -> Figure | None:
        """A figure for the page; None where the file would become too large."""
        if self.room <= 0:
            self.left_out.append(picture.name)
            return None
        self.drawn += 1
        made = picture.draw()
        done = Figure(picture.title, picture.alt, picture.read, picture.name)
        if isinstance(made, go.Figure):
            done.json, done.height = plotly(made), int(made.layout.height or 400)
        else:
            done.svg = drawing(images.svg(images.spec(made, ink="currentColor")), f"f{self.drawn}")
        told = html.escape("".join((done.name, done.title, done.alt, done.read)))
        size = MARKUP + sum(len(text.encode()) for text in (done.json, done.svg, told))
        if size > self.room:
            self.left_out.append(picture.name)
            return None
        self.room -= size
        return done


def plotly(figure: go.Figure) -> str:
    """A figure as JSON that ends no script element; its matrices become lighter. The page has templates of its own."""
    for trace in figure.data:
        if trace.type == "heatmap":
            _lighter(trace)
    drawn = images.with_room(figure.to_plotly_json())
    drawn["layout"].pop("template", None)
    return _harmless(to_json_plotly(drawn))


def _lighter(trace: Any, most: int = 128) -> None:
    """A matrix drawn on at most `most` cells a side: the largest colour and hovered value of each."""
    parts = {name: np.asarray(trace[name]) for name in ("z", "customdata") if trace[name] is not None}
    for axis, (start, step) in enumerate((("y0", "dy"), ("x0", "dx"))):
        length = parts["z"].shape[axis]
        group = -(-length // most)
        if group > 1 and trace[step] is not None:
            firsts = np.arange(0, length, group)
            parts = {name: np.maximum.reduceat(values, firsts, axis=axis) for name, values in parts.items()}
            trace[start] += (group - 1) / 2 * trace[step]
            trace[step] *= group
    trace.update(parts)


def as_json(values: Any) -> str:
    """JSON for a script element of kind application/json."""
    return _harmless(json.dumps(values, ensure_ascii=False, separators=(",", ":"), allow_nan=False))


def _harmless(text: str) -> str:
    """The same JSON with no sign in it that HTML could read."""
    signs = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
    return re.sub("[<>&\u2028\u2029]", lambda found: signs[found.group()], text)


def drawing(text: str, prefix: str) -> str:
    """An SVG to stand among others in a page: only elements that draw, names of its own, scaled to its place."""
    ElementTree.register_namespace("", SVG)
    root = ElementTree.fromstring(text)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] not in TAGS:
                parent.remove(child)
        if "mark-rect" in parent.get("class", ""):
            _together(parent)
    for element in root.iter():
        for name in list(element.attrib):
            value = element.attrib[name]
            if name.startswith(("on", "{")) or name in NEEDLESS:
                del element.attrib[name]
            elif name == "id":
                element.attrib[name] = f"{prefix}-{value}"
            elif REFERENCE.search(value):
                element.attrib[name] = REFERENCE.sub(rf"url(#{prefix}-\1)", value)
        if element.attrib.get(PLAIN[0]) == PLAIN[1]:
            for name in ("stroke", "stroke-width"):
                element.attrib.pop(name, None)
    root.attrib.pop("height", None)
    root.attrib["style"] = f"max-width:{root.attrib.pop('width', '100%')}px"
    root.attrib["aria-hidden"] = "true"  # the figure around it has the words
    return ElementTree.tostring(root, encoding="unicode")


def _together(cells: ElementTree.Element) -> None:
    """Cells of one colour as one path: a map of a deep model has thousands."""
    paths: dict[tuple[tuple[str, str], ...], ElementTree.Element] = {}
    for cell in list(cells):
        if "transform" in cell.attrib or cell.get("d") is None:
            continue
        look = tuple(sorted((k, v) for k, v in cell.attrib.items() if k not in ("d", *NEEDLESS)))
        if look in paths:
            paths[look].set("d", f"{paths[look].get('d')}{cell.get('d')}")
            cells.remove(cell)
        else:
            paths[look] = cell
