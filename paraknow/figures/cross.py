"""The cross matrix as a heat map: knowledge located on a task (down), measured on a task (across)."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from paraknow.figures.similarity import ABSENT, DIVERGING, INK
from paraknow.figures.theme import EXAMINED, NEUTRAL, frame, plain, short, signed

NOTHING = "nothing (noise)"
STUDENT = "student"
HELD = {STUDENT: "the student", "noise": "noise of the same size", "random_window": "a random block of the teacher"}
SCOPES = {
    "all": "all items",
    "known": "facts both models know",
    "shown": "facts in the fine-tuning set",
    "never_shown": "facts nobody showed the student",
}
LEAST = 0.1  # differences smaller than this do not get the full colours
PAPER = "#FFFFFF"
WRAP = 14  # characters of a task's name in a line


def cells(found: Mapping[str, Any], scope: str = "all", held: str = STUDENT) -> pd.DataFrame:
    """One line per cell of one scope: located, measured, own, n, value, lo, hi, state, error; missing is NaN.

    `held` names what is subtracted: the student, or a control. The row of noise has no difference to controls.
    Raises KeyError where a cell lacks what every version of the command writes.
    """
    lines = []
    for cell in found["cells"]:
        if cell["scope"] != scope or (cell["located"] is None and held != STUDENT):
            continue
        source = cell if held == STUDENT else (cell["against"] or {}).get(held, {})
        low, high = source.get("delta_ci") or (math.nan, math.nan)
        value = source.get("delta")
        lines.append(
            {
                "located": NOTHING if cell["located"] is None else cell["located"],
                **{k: cell[k] for k in ("measured", "own", "n", "state", "error", "run")},
                "value": math.nan if value is None else float(value),
                "lo": float(low),
                "hi": float(high),
            }
        )
    return pd.DataFrame(lines)


def scopes(found: Mapping[str, Any]) -> list[str]:
    """The scopes that were measured, all items first."""
    there = {cell["scope"] for cell in found["cells"]}
    return [s for s in SCOPES if s in there]


def span(table: pd.DataFrame) -> float:
    """Half the colour range: what the largest difference asks for, at least ±0.1."""
    values = [abs(v) for v in table.value.astype(float) if v == v] if len(table) else []
    return max([LEAST, *values])


def matrix(table: pd.DataFrame, tasks: Sequence[str], method: str, scope: str, held: str = STUDENT) -> go.Figure:
    """Rows: located on; columns: measured on; numbers in the cells, 95 % intervals below them, the diagonal framed."""
    rows = [*tasks, *([NOTHING] if (table.located == NOTHING).any() else [])]
    at = {(line.located, line.measured): line for line in _lines(table)}
    limit = span(table)
    values = [[_value(at.get((row, column))) for column in tasks] for row in rows]
    said = [[_said(at.get((row, column)), row, column) for column in tasks] for row in rows]
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=list(range(len(tasks))),
            y=list(range(len(rows))),
            zmin=-limit,
            zmax=limit,
            colorscale=[[k / 4, color] for k, color in enumerate(DIVERGING)],
            xgap=3,
            ygap=3,
            customdata=said,
            hovertemplate="%{customdata}<extra></extra>",
            hoverongaps=False,
            colorbar={"thickness": 16, "tickformat": "+.2~f", "title": {"text": "difference", "side": "right"}},
        )
    )
    size = 24 if len(tasks) <= 4 else 18 if len(tasks) <= 7 else 13
    for y, row in enumerate(rows):
        for x, column in enumerate(tasks):
            _write(figure, at.get((row, column)), x, y, limit, size)
            if row == column:
                box = {"x0": x - 0.49, "x1": x + 0.49, "y0": y - 0.49, "y1": y + 0.49}
                for color, width in ((PAPER, 7), (EXAMINED.color, 4)):  # a white edge keeps it apart from every colour
                    figure.add_shape(type="rect", **box, line={"color": color, "width": width})
    if len(rows) > len(tasks):
        border = len(tasks) - 0.5
        line = {"color": NEUTRAL, "width": 2, "dash": "dot"}
        figure.add_shape(type="line", xref="paper", x0=0, x1=1, y0=border, y1=border, line=line)
    font = {"size": 15}
    across = {"tickvals": list(range(len(tasks))), "ticktext": [_name(t) for t in tasks], "tickfont": font}
    figure.update_xaxes(title={"text": "measured on", "font": font}, **across, showgrid=False, zeroline=False)
    down = {"tickvals": list(range(len(rows))), "ticktext": [_name(r) for r in rows], "tickfont": font}
    figure.update_yaxes(
        title={"text": "located on", "font": font},
        **down,
        range=[len(rows) - 0.5, -0.5],
        automargin=True,
        showgrid=False,
        zeroline=False,
    )
    figure.update_layout(dragmode=False)
    n = "; ".join(f"{plain(short(t, 24))} {_count(table, t)}" for t in tasks)
    title = f"{plain(short(method, 30))}: difference in accuracy to {HELD[held]}, {SCOPES[scope]}"
    return frame(figure, title, 170 + max(64, 3 * size + 20) * len(rows), f"n items: {n}; framed: own task", b=70)


def _count(table: pd.DataFrame, task: str) -> str:
    known = [int(n) for n in table[table.measured == task].n if not pd.isna(n)]
    return str(max(known)) if known else "missing"


def _name(task: str) -> str:
    whole = task if len(task) <= 2 * WRAP else "…" + task[-(2 * WRAP - 1) :]
    return "<br>".join(plain(part) for part in textwrap.wrap(whole, WRAP))


def _lines(table: pd.DataFrame) -> Iterator[Any]:
    yield from table.itertuples()


def _value(line: Any) -> float | None:
    return None if line is None or line.value != line.value else line.value


def _write(figure: go.Figure, line: Any, x: int, y: int, limit: float, size: int) -> None:
    """The number of a cell and its interval; a missing cell is grey and says so."""
    value = _value(line)
    about = {"x": x, "y": y, "showarrow": False}
    if value is None:
        figure.add_shape(
            type="rect", x0=x - 0.49, x1=x + 0.49, y0=y - 0.49, y1=y + 0.49, fillcolor=ABSENT, line={"width": 0}
        )
        figure.add_annotation(**about, text="missing", font={"size": max(12, size - 8), "color": INK})
        return
    ink = PAPER if abs(value) > 0.75 * limit else INK  # both ends of the scale are dark
    figure.add_annotation(
        **about, yshift=0.45 * size, text=f"<b>{signed(value)}</b>", font={"size": size, "color": ink}
    )
    interval = f"{signed(line.lo)} to {signed(line.hi)}"
    figure.add_annotation(**about, yshift=-0.75 * size, text=interval, font={"size": max(10, size - 10), "color": ink})


def _said(line: Any, row: str, column: str) -> str:
    where = f"located on {plain(row)}, measured on {plain(column)}"
    if _value(line) is None:
        why = "" if line is None or not isinstance(line.error, str) else f" ({plain(line.error)})"
        return f"{where}: missing{why}"
    return f"{where}: {signed(line.value, 3)} ({signed(line.lo, 3)} to {signed(line.hi, 3)})"


def describe(table: pd.DataFrame) -> str:
    """The matrix in words, for screen readers."""
    parts = []
    for line in _lines(table):
        number = "missing" if _value(line) is None else f"{signed(line.value)} ({signed(line.lo)} to {signed(line.hi)})"
        parts.append(f"located on {line.located}, measured on {line.measured}: {number}")
    return "Differences in accuracy. " + "; ".join(parts) + "."
