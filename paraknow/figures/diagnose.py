"""The evidence of findings: what a rule of paraknow/diagnose counted (a finding's `numbers` as a frame), drawn."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go

from paraknow.figures.theme import (
    CONTROLS,
    EXAMINED,
    EXPECTED,
    MISSING,
    NEUTRAL,
    Style,
    bars,
    frame,
    lines,
    plain,
    short,
)

CARD, AXIS = 38, 24  # characters of a line of a title, and of the axis beside the names: figures stand inside a card


@dataclass(frozen=True)
class Series:
    """A column drawn as marks: what it is called and how it looks; `low` and `high`: its interval's columns."""

    column: str
    name: str
    style: Style
    low: str = ""
    high: str = ""


@dataclass(frozen=True)
class Drawing:
    """One kind of evidence: title, axis, how to read it, and the columns that name a line, or are drawn over one.

    across: the column that marks are drawn over (None: one line per row, its interval beside it). limit: a value that
    marks are held against, with its name.
    """

    title: str
    axis: str
    reading: str
    labels: tuple[str, ...] = ()
    series: tuple[Series, ...] = ()
    across: str | None = None
    across_title: str = ""
    limit: tuple[float, str] | None = None


_DIFFERENCE = (Series("difference (points)", "difference", EXAMINED, "from", "to"),)
DRAWINGS = {
    "controls": Drawing(
        "The method against the student and each control",
        "difference in accuracy (points)",
        "Each mark is how much more often the method answers correctly than what is named on the left, on the same "
        "items, with its paired 95 % interval. A gain is the method's own only where every bar lies right of 0.",
        ("held against", "on"),
        _DIFFERENCE,
    ),
    "seeds": Drawing(
        "The same method, other seeds",
        "difference to the student (points)",
        "Each mark is one seed of the method against the untouched student on the same items, with its paired 95 % "
        "interval. Bars that do not meet say that the result is the seed's rather than the method's.",
        ("on", "seed"),
        _DIFFERENCE,
    ),
    "readout": Drawing(
        "What answers show, and what they do not",
        "difference to the student (share of items; bits; 1 / rank)",
        "The same items by three measures: how often the answer is right, how many bits are known of it, how high the "
        "right answer ranks. Where accuracy stands at 0 and another bar lies right of 0, something arrived that is not "
        "read out.",
        ("on", "measure"),
        (Series("difference", "difference", EXAMINED, "from", "to"),),
    ),
    "changes": Drawing(
        "How large the change is, layer by layer",
        "‖ΔW‖ / ‖W‖ of a layer",
        "The size of what stays changed over the size of the weights that were there; bars run over seeds. From the "
        "dotted line on, the change outweighs the layer. Fine-tuned adapters usually stay far below it.",
        across="layer",
        across_title="student layer",
        series=(Series("‖ΔW‖ / ‖W‖", "change", EXAMINED, "over seeds from", "to"),),
        limit=(1.0, "as large as the layer"),
    ),
    "kinship": Drawing(
        "Kinship of paired layers",
        "kinship",
        "The cosine of the two models' attention matrices, matched by vocabulary; 1: the same up to a change of basis. "
        "Pairs of one lineage reach 0.8 and more; the mean of strangers stays under the dotted line; from 0.67 on, "
        "knowledge was seen to cross. It reads weights alone, no text; one number a layer, so no interval.",
        across="student layer",
        across_title="student layer",
        series=(Series("kinship", "kinship", EXAMINED),),
        limit=(0.34, "strangers, at most"),
    ),
    "cka": Drawing(
        "How alike paired layers are, module by module",
        "CKA, mean over paired layers",
        "Filled marks: the pair, its bar the mean 95 % interval. Open marks: what shuffled rows reach at most, and two "
        "untrained models of the same shapes. A filled mark that is not right of the open ones shows no likeness that "
        "training made.",
        labels=("module",),
        series=(
            Series("CKA", "this pair", EXAMINED, "from", "to"),
            Series("null, at most", "shuffled rows, at most", CONTROLS[0]),
            Series("untrained", "untrained pair", CONTROLS[1]),
        ),
    ),
    "blocks": Drawing(
        "Do two halves of the seeds choose the same?",
        "overlap (intersection over union), mean over layers",
        "Filled: how far the choices of two random halves of the seeds overlap; open: what chance gives. Where they "
        "coincide, other examples would have moved another part of the teacher. Single values, so no interval.",
        labels=("what", "module"),
        series=(Series("overlap", "halves of the seeds", EXAMINED), Series("chance", "chance", CONTROLS[0])),
    ),
    "interference": Drawing(
        "Where the block's energy lies",
        "share of energy on directions of known text, mean over layers",
        "How much of what would be added acts on directions that the student uses for what it knows. Open: noise of "
        "the same size, and chance. Right of them, known facts are more in its way than those of noise.",
        labels=("module",),
        series=(
            Series("block", "the teacher's block", EXAMINED),
            Series("noise", "noise", CONTROLS[0]),
            Series("expected", "chance", CONTROLS[2]),
        ),
    ),
    "pairing": Drawing(
        "Which layer feeds which",
        "teacher layer",
        "The teacher's layer that each student layer is paired with; the dotted line is the same depth. A line that "
        "bends away pairs layers that do other work; one that goes back has them out of order.",
        across="student layer",
        across_title="student layer",
        series=(
            Series("teacher layer", "paired with", EXAMINED),
            Series("same depth", "same depth", Style(EXPECTED, "circle-open", "dot")),
        ),
    ),
}
LINES = {"pairing"}  # whose marks are joined


def drawable(name: str, numbers: Sequence[dict]) -> bool:
    """Whether there is a figure of that name, and the numbers (which a file may hold) have what it draws."""
    drawing = DRAWINGS.get(name)
    if drawing is None:
        return False
    needed = [drawing.series[0].column, *([drawing.across] if drawing.across else [])]
    there = all(any(row.get(c) is not None for row in numbers) for c in needed)
    return there and all(isinstance(row.get(c), int | float | None) for row in numbers for c in [*needed, "n"])


def draw(name: str, numbers: Sequence[dict]) -> go.Figure | None:
    """The figure of a finding's numbers; None for a name without one, and for numbers that lack its columns."""
    table, drawing = pd.DataFrame(list(numbers)), DRAWINGS.get(name)
    if drawing is None or table.empty or drawing.series[0].column not in table:
        return None
    return _over(table, drawing, name) if drawing.across else _beside(table, drawing)


def _beside(table: pd.DataFrame, drawing: Drawing) -> go.Figure:
    """One line per row of the table from top to bottom."""
    names = [c for c in drawing.labels if c in table]
    said = [" · ".join(str(row[c]) for c in names if pd.notna(row[c])) for row in table.to_dict("records")]
    labels = ["<br>".join(plain(t) for t in textwrap.wrap(short(line, 60), 34)) for line in said]
    labels = [label if labels.index(label) == k else f"{label} ({k + 1})" for k, label in enumerate(labels)]
    figure = go.Figure()
    for series in drawing.series:
        _marks(figure, table, series, labels, horizontal=True)
    figure.add_vline(x=0, line={"color": NEUTRAL, "width": 1.5, "dash": "dot"})
    figure.update_yaxes(categoryorder="array", categoryarray=labels[::-1], automargin=True, showgrid=False)
    figure.update_xaxes(title=lines(drawing.axis, AXIS), zeroline=False)
    return _framed(figure, table, drawing, 150 + 34 * len(labels))


def _over(table: pd.DataFrame, drawing: Drawing, name: str) -> go.Figure:
    """Marks over a column, a layer as a rule."""
    figure = go.Figure()
    for series in drawing.series:
        _marks(
            figure,
            table,
            series,
            table[drawing.across].tolist(),
            False,
            "lines+markers" if name in LINES else "markers",
        )
    if drawing.limit:
        value, said = drawing.limit
        figure.add_hline(y=value, line={"color": NEUTRAL, "width": 1.5, "dash": "dot"}, annotation_text=said)
    figure.update_xaxes(title=drawing.across_title, dtick=1 if len(table) < 20 else None)
    figure.update_yaxes(title=drawing.axis, rangemode="tozero")
    return _framed(figure, table, drawing, 340)


def _marks(
    figure: go.Figure, table: pd.DataFrame, series: Series, places: list, horizontal: bool, mode: str = "markers"
) -> None:
    if series.column not in table:
        return
    values = pd.to_numeric(table[series.column], errors="coerce")
    error = None
    if series.low in table and series.high in table:
        error = bars(values, *(pd.to_numeric(table[c], errors="coerce") for c in (series.low, series.high)))
    if error:
        error |= {"color": series.style.color, "thickness": 2, "width": 4}
    held = [v if pd.notna(v) else None for v in values]
    x, y = (held, places) if horizontal else (places, held)
    figure.add_trace(
        go.Scatter(
            x=x,
            y=y,
            name=series.name,
            mode=mode,
            error_x=error if horizontal else None,
            error_y=None if horizontal else error,
            line={"color": series.style.color, "dash": series.style.dash},
            marker={"color": series.style.color, "symbol": series.style.symbol, "size": 11, "line": {"width": 2}},
            hovertemplate="%{x}: %{y}<extra>" + plain(series.name) + "</extra>",
        )
    )


def _framed(figure: go.Figure, table: pd.DataFrame, drawing: Drawing, height: int) -> go.Figure:
    several = len(drawing.series) > 1
    figure.update_layout(showlegend=several, dragmode=False, legend={"orientation": "h", "y": -0.28, "x": 0})
    note = []
    if "n" in table and table.n.notna().any():
        low, high = int(table.n.min()), int(table.n.max())
        note.append(f"n = {low if low == high else f'{low} to {high}'}{' items' if 'on' in table else ' matrices'}")
    if any(s.low in table for s in drawing.series if s.low):
        note.append("bars over seeds" if drawing.series[0].low.startswith("over") else "bars: 95 % intervals")
    return frame(figure, drawing.title, height + 40 * several, "; ".join(note), CARD, b=90 if several else 50)


def describe(name: str, numbers: Sequence[dict]) -> str:
    """The figure in words, for screen readers."""
    drawing, parts = DRAWINGS[name], []
    columns = (drawing.across,) if drawing.across else drawing.labels
    before = f"{drawing.across_title} " if drawing.across else ""
    for row in numbers:
        label = " ".join(str(row[c]) for c in columns if row.get(c) is not None)
        held = {s.name: row.get(s.column) for s in drawing.series if s.column in row}
        values = ", ".join(f"{name} {MISSING if value is None else value}" for name, value in held.items())
        parts.append(f"{before}{label}: {values}")
    return f"{drawing.title}. {drawing.axis}. {'; '.join(parts[:40])}."
