"""The calibration ladder: what share of never-shown knowledge arrived, on pairs from a known answer to none at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from paraknow.demo.rungs import BETWEEN, LADDER, RUNGS
from paraknow.figures.theme import (
    BASELINES,
    CONTROLS,
    EXAMINED,
    MISSING,
    NEUTRAL,
    STUDENT,
    TEACHER,
    Style,
    bars,
    frame,
    plain,
    short,
    side_by_side,
    signed,
)

ORDER = (*(r for r in LADDER if r in ("clone", "sibling")), *BETWEEN, "stranger", "equal")  # nearest kin first
REFERENCES = ("oracle", "zero")  # what all methods are held against: the known answer, and nothing moved
# Columns that are numbers where a calibration has them; the last five say how alike a pair is.
NUMBERS = ("n", "accuracy", "known", "bits", "kinship", "cka", "r2", "fit_turned", "fit_same")
FLOOR, CEILING = -0.3, 1.35  # what lies beyond is drawn at the edge, with its number
WIDTH = 0.74  # of a rung's place, that its marks take up
SYMBOLS = (
    "diamond",
    "circle",
    "triangle-up",
    "square",
    "pentagon",
    "hexagon",
    "star-triangle-down",
    "hexagram",
    "bowtie",
)
COLORS = (EXAMINED.color, *(s.color for s in BASELINES), STUDENT.color)


def part_of(model: str) -> str:
    """A model's part in a calibration: pair (teacher, student), reference, control or method."""
    if model in ("teacher", "student"):
        return "pair"
    return "reference" if model in REFERENCES else "control" if "+" in model else "method"


def methods(models: Sequence[str]) -> list[str]:
    """The methods among model labels, each once."""
    return [m for m in dict.fromkeys(models) if part_of(m) == "method"]


def ordered(rungs: Sequence[str]) -> list[str]:
    """Rungs from nearest kin to none; unknown ones last."""
    known = list(dict.fromkeys(rungs))
    return [r for r in ORDER if r in known] + [r for r in known if r not in ORDER]


def words(rung: str) -> str:
    """What the two models of a rung have in common."""
    return RUNGS[rung].words if rung in RUNGS else "no words for this pair"


def tables(found: dict[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(rows, pooled) of a calibration with intervals as two columns `lo` and `hi` and the part of every model.

    Missing numbers are NaN.
    """
    made = []
    for name in ("rows", "pooled"):
        values = pd.DataFrame(found[name])
        bounds: list[Any] = [x if isinstance(x, list) and len(x) == 2 else (None, None) for x in values["share_ci"]]
        values = values.assign(
            lo=pd.Series([b[0] for b in bounds]),
            hi=pd.Series([b[1] for b in bounds]),
            part=[part_of(str(m)) for m in values.model],
        )
        numbers = ["share", "lo", "hi", *(c for c in NUMBERS if c in values)]
        values[numbers] = values[numbers].apply(pd.to_numeric, errors="coerce")
        made.append(values)
    return made[0], made[1]


def guessing(rows: pd.DataFrame) -> dict[str, float]:
    """Per rung the share of a model that only guesses among the candidates: −b_S / (b_T − b_S), mean over worlds.

    b: bits beyond guessing. Below 0 where the student knows some of the facts already.
    """
    made: dict[str, float] = {}
    if "bits" not in rows:
        return made
    for rung, part in rows.groupby("rung", sort=False):
        bits = part[part.part == "pair"].pivot_table(index="world", columns="model", values="bits")
        if {"teacher", "student"} <= set(bits.columns):
            share = (-bits.student / (bits.teacher - bits.student)).replace([float("inf"), -float("inf")], float("nan"))
            if share.notna().any():
                made[str(rung)] = float(share.mean())
    return made


def styles(labels: Sequence[str]) -> dict[str, Style]:
    """A colour and a marker per method or rung, in order; both differ, and pairs of them repeat late."""
    return {x: Style(COLORS[k % len(COLORS)], SYMBOLS[k % len(SYMBOLS)]) for k, x in enumerate(labels)}


def rung_styles() -> dict[str, Style]:
    """A rung looks the same in every figure, whichever rungs are there."""
    return styles((*LADDER, *BETWEEN))


def _lines(table: pd.DataFrame) -> list[Any]:
    return list(table.itertuples())


def number(value: Any, low: Any = float("nan"), high: Any = float("nan")) -> str:
    """A share with its interval; the sign for missing where there is none."""
    if pd.isna(value):
        return MISSING
    plain_ = lambda v: f"{round(float(v), 2) + 0.0:.2f}".replace("-", "−")  # noqa: E731
    return plain_(value) if pd.isna(low) or pd.isna(high) else f"{plain_(value)} ({plain_(low)} to {plain_(high)})"


# -- shares on the ladder ---------------------------------------------------------------------------


def shares(
    rows: pd.DataFrame, pooled: pd.DataFrame, names: dict[str, str], whole: bool = False, shown: Sequence[str] = ()
) -> go.Figure:
    """Share of the teacher's never-shown knowledge that arrived: one place per rung, one mark per method and rung.

    Controls stand muted beside their method, single worlds faint behind it. `whole`: the range holds every mark;
    otherwise what lies far outside 0 to 1 is drawn as an arrow at the edge. `shown`: the methods to draw; all.
    `names` holds titles of controls.
    """
    every = methods([str(m) for m in pooled.model])
    drawn = [m for m in every if not shown or m in shown]
    keep = pooled.part.eq("reference") | pooled.model.map(lambda m: str(m).partition("+")[0]).isin(
        [*drawn, *REFERENCES]
    )
    pooled = pooled[keep & pooled.part.ne("pair")]
    rungs = ordered([str(r) for r in pooled.rung])
    place = {rung: float(k) for k, rung in enumerate(rungs)}
    slots = side_by_side(range(len(drawn) + 1), WIDTH)
    step = WIDTH / max(1, len(drawn))
    offset = {m: slots[k + 1] for k, m in enumerate(drawn)} | dict.fromkeys(REFERENCES, slots[0])
    low, high = _range(pooled, rows[rows.model.isin(drawn)], whole)
    figure = go.Figure()
    for y in (0.0, 1.0):
        figure.add_hline(y=y, line={"color": NEUTRAL, "width": 1.5, "dash": "dot" if y else "solid"}, layer="below")
    for k in range(1, len(rungs)):
        figure.add_vline(x=k - 0.5, line={"color": "rgba(124,135,148,0.3)", "width": 1}, layer="below")
    _guessing(figure, guessing(rows), place, (low, high))
    _controls(figure, pooled, names, place, offset, step, (low, high))
    made = styles(every)
    worlds = rows.groupby(["rung", "model"]).share.transform("count") > 1
    for model in drawn:
        single = rows[(rows.model == model) & worlds & rows.share.notna()]
        single = single[single.rung.isin(rungs)]
        style = made[model]
        if len(single):
            _worlds(figure, single, [place[r] + offset[model] for r in single.rung], style, (low, high))
        own = pooled[pooled.model == model]
        _marks(figure, own, [place[r] + offset[model] for r in own.rung], plain(model), style, (low, high), 12)
        _missing(figure, own, rows, [place[r] + offset[model] for r in own.rung])
    own = pooled[pooled.model == "oracle"]
    if len(own):
        known = Style(TEACHER.color, TEACHER.symbol)
        _marks(figure, own, [place[r] + slots[0] for r in own.rung], "the known answer", known, (low, high), 14)
        _missing(figure, own, rows, [place[r] + slots[0] for r in own.rung])
    figure.update_xaxes(
        tickvals=list(place.values()),
        ticktext=[plain(r).replace("_", "<br>") for r in rungs],
        range=[-0.55, len(rungs) - 0.45],
        showgrid=False,
        zeroline=False,
        title="pair, from nearest kin to strangers",
    )
    figure.update_yaxes(title="share that arrived", range=[low, high], zeroline=False)
    figure.update_layout(
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0, "font": {"size": 12}},
        dragmode=False,
    )
    many = int(pooled.measured.max()) if "measured" in pooled and len(pooled) else 1
    bars = f"95 % over up to {many} worlds" if many > 1 else "95 % over items (one world)"
    n = rows.n.max() if "n" in rows else float("nan")
    asked = f"n = {int(n)} items; " if n == n else ""
    title, lines = "Share of never-shown knowledge that arrived", len(drawn) + 5
    return frame(figure, title, 490 + 10 * lines, f"{asked}bars: {bars}", b=80 + 6 * lines)


def _controls(
    figure: go.Figure,
    pooled: pd.DataFrame,
    names: dict[str, str],
    place: dict[str, float],
    offset: dict[str, float],
    step: float,
    span: tuple[float, float],
) -> None:
    """Every kind of control in one muted style, to the right of the method it belongs to."""
    muted = [str(m) for m in pooled.model if part_of(str(m)) == "control" or m == "zero"]
    for k, kind in enumerate(dict.fromkeys(m.rpartition("+")[2] for m in muted)):
        own = pooled[[str(m).rpartition("+")[2] == kind and m in muted for m in pooled.model]]
        beside = (0.2 + 0.14 * (k % 3)) * step
        xs = [
            place[rung] + offset[str(m).partition("+")[0]] + (beside if "+" in str(m) else 0.0)
            for rung, m in zip(own.rung, own.model, strict=True)
        ]
        title = f"control: {plain(short(names.get(kind, kind), 40))}"
        _marks(figure, own, xs, title, CONTROLS[k % len(CONTROLS)], span, 8, 0.75, k % 3)


def _range(pooled: pd.DataFrame, rows: pd.DataFrame, whole: bool) -> tuple[float, float]:
    values = pd.concat([pooled[c] for c in ("share", "lo", "hi")] + [rows.share]).dropna()
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if not whole:
        low, high = max(low, FLOOR), min(high, CEILING)
    low, high = min(low, -0.1), max(high, 1.05)
    return low - 0.08 * (high - low), high + 0.04 * (high - low)


def _inside(values: Sequence[float], span: tuple[float, float], level: int = 0) -> tuple[list[float | None], list[int]]:
    """Values moved to the edge of the range, and −1, 0 or 1 for below, inside or above it; missing ones stay so.

    `level`: how many lines of numbers at the edge are taken already.
    """
    edge = (0.03 + 0.04 * level) * (span[1] - span[0])
    low, high = span[0] + edge, span[1] - edge
    sides = [0 if pd.isna(v) else -1 if v < span[0] else 1 if v > span[1] else 0 for v in values]
    moved: list[float | None] = []
    for value, side in zip(values, sides, strict=True):
        moved.append(None if pd.isna(value) else (low if side < 0 else high) if side else float(value))
    return moved, sides


def _marks(
    figure: go.Figure,
    own: pd.DataFrame,
    xs: Sequence[float],
    name: str,
    style: Style,
    span: tuple[float, float],
    size: int,
    opacity: float = 1.0,
    level: int = 0,
) -> None:
    """One model's marks over rungs with intervals; what lies outside the range is an arrow with its number."""
    ys, sides = _inside(own.share.tolist(), span, level)
    clip = lambda v: min(max(v, span[0]), span[1])  # noqa: E731
    ends = ([None if s else clip(v) for v, s in zip(own[c], sides, strict=True)] for c in ("lo", "hi"))
    within = bars(ys, *ends)
    if within:
        within |= {"color": style.color, "thickness": 2 if opacity == 1 else 1, "width": 4 if opacity == 1 else 2}
    arrows = {-1: "arrow-down-open" if opacity < 1 else "arrow-down", 1: "arrow-up", 0: style.symbol}
    said = [f"{plain(r.model)} on {plain(r.rung)}: {number(r.share, r.lo, r.hi)}" for r in _lines(own)]
    figure.add_trace(
        go.Scatter(
            x=list(xs),
            y=ys,
            name=name,
            legendrank=1000 if opacity == 1 else 1001,
            mode="markers+text",
            text=[signed(v, 1) if s else "" for v, s in zip(own.share, sides, strict=True)],
            textposition="middle right",
            textfont={"size": 10},
            marker={
                "color": style.color,
                "symbol": [arrows[s] for s in sides],
                "size": size,
                "opacity": opacity,
                "line": {"width": 1.5, "color": style.color},
            },
            error_y=within,
            customdata=said,
            hovertemplate="%{customdata}<extra></extra>",
        )
    )


def _worlds(
    figure: go.Figure, rows: pd.DataFrame, xs: Sequence[float], style: Style, span: tuple[float, float]
) -> None:
    ys, _ = _inside(rows.share.tolist(), span)
    said = [f"{plain(r.model)} on {plain(r.rung)}, world {plain(r.world)}: {number(r.share)}" for r in _lines(rows)]
    figure.add_trace(
        go.Scatter(
            x=list(xs),
            y=ys,
            mode="markers",
            showlegend=False,
            marker={"color": style.color, "symbol": "circle", "size": 7, "opacity": 0.35},
            customdata=said,
            hovertemplate="%{customdata}<extra></extra>",
        )
    )


def _missing(figure: go.Figure, own: pd.DataFrame, rows: pd.DataFrame, xs: Sequence[float]) -> None:
    """A word where a model was run on a rung and has no share, with the reason."""
    lacking = [(x, r) for x, r in zip(xs, _lines(own), strict=True) if pd.isna(r.share)]
    if not lacking:
        return
    said = []
    for _, r in lacking:
        at = rows[(rows.model == r.model) & (rows.rung == r.rung)]
        reasons = [str(m) for m in at.get("missing", pd.Series(dtype=object)) if isinstance(m, str)]
        said.append(f"{plain(r.model)} on {plain(r.rung)}: missing" + (f" ({plain(reasons[0])})" if reasons else ""))
    for (x, _), text in zip(lacking, said, strict=True):  # upright, for marks of other methods stand on both sides
        words_ = {"text": "missing", "textangle": -90, "font": {"size": 11, "color": NEUTRAL}, "hovertext": text}
        figure.add_annotation(x=x, y=0.04, yanchor="bottom", showarrow=False, **words_)


def _guessing(figure: go.Figure, at: dict[str, float], place: dict[str, float], span: tuple[float, float]) -> None:
    """A short line per rung at what guessing would score; left out where it is below the range."""
    xs: list[float | None] = []
    ys: list[float | None] = []
    for rung, value in at.items():
        if rung in place and span[0] <= value <= span[1]:
            xs += [place[rung] - 0.45, place[rung] + 0.45, None]
            ys += [value, value, None]
    if xs:
        line = {"color": CONTROLS[1].color, "width": 2, "dash": "dash"}
        figure.add_trace(
            go.Scatter(
                x=xs,
                y=ys,
                mode="lines",
                name="guessing",
                legendrank=1002,
                line=line,
                hovertemplate="guessing: %{y:.2f}<extra></extra>",
            )
        )


def describe(pooled: pd.DataFrame) -> str:
    """The shares in words, for screen readers."""
    parts = []
    for rung in ordered([str(r) for r in pooled.rung]):
        own = pooled[(pooled.rung == rung) & (pooled.part != "pair")]
        parts.append(f"{rung}: " + ", ".join(f"{r.model} {number(r.share, r.lo, r.hi)}" for r in _lines(own)))
    return "Share of never-shown knowledge that arrived. " + "; ".join(parts) + "."
