"""Figures of two runs side by side, and their difference (no torch)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from paraknow.figures import deltas, differences, heatmaps, similarity, tables
from paraknow.report import alike, answers, located
from paraknow.report.picture import Picture, number, slug
from paraknow.report.source import Source
from paraknow.runs.compare import Across

SECTION = "Side by side"


@dataclass(frozen=True)
class Sides:
    """One figure of both runs in one range (first, second), and second − first; `lacking` says why there is none."""

    name: str
    title: str
    read: str
    first: Picture
    second: Picture
    difference: Picture | None
    lacking: str = ""


def sides(first: Source, second: Source, found: Across) -> list[Sides]:
    """What both runs can be drawn side by side on; `found` is compare.across of them. Nothing is drawn yet."""
    return [*_measured(first, second, found), *_sensitivity(first, second), *_maps(first, second)]


def _picture(name: str, side: str, title: str, draw: Any, alt: str) -> Picture:
    return Picture(f"{name}.{side}", SECTION, title, draw, f"{side}: {alt}", "")


# -- maps -------------------------------------------------------------------------------------------


def _sensitivity(first: Source, second: Source) -> Iterator[Sides]:
    whole = [_whole(source) for source in (first, second)]
    if any(table is None for table in whole):
        return
    a, b = whole
    tasks = [t for t in dict.fromkeys(a.task) if t in set(b.task)]
    tasks = tasks or [None]  # of other tasks: the first of each
    for place, task in enumerate(tasks):
        for model in located.SIDES:
            own = [_part(table, model, task) for table in (a, b)]
            span = heatmaps.clip_range(pd.concat(own)[located.VALUE].to_numpy())
            if span is None or any(table.empty for table in own):
                continue
            named = [source.titles[model] for source in (first, second)]
            name = slug("sensitivity", model) if not place else slug("sensitivity", model, task)
            drawn = [
                _picture(
                    name, side, title, partial(heatmaps.layer_map, table, located.VALUE, span, title, None), f"sensitivity of {title}"
                )
                for side, title, table in zip((differences.FIRST, differences.SECOND), named, own, strict=True)
            ]
            what = f"{heatmaps.UNITS[located.VALUE]}"
            title = named[0] if named[0] == named[1] else f"{named[0]} / {named[1]}"
            moved = differences.minus(*own, ["layer", "module"], located.VALUE)
            yield Sides(
                name,
                f"Sensitivity of the {model} by layer and matrix" + (f", {task}" if len(tasks) > 1 else ""),
                f"Cells hold the {what}. The runs' maps share one logarithmic colour range; in the difference orange "
                "cells hold a larger share in the second run, blue ones a smaller, white ones the same, and crossed "
                "ones are in one run only.",
                *drawn,
                _picture(
                    name,
                    differences.DIFFERENCE,
                    title,
                    partial(differences.layer_map, *own, located.VALUE, located.VALUE, title),
                    f"sensitivity of {title}; {_largest(moved, 'layer {layer}, {module}')}",
                ),
            )


def _whole(source: Source) -> pd.DataFrame | None:
    table = source.table("locate/sensitivity.parquet")
    return None if table is None else table[(table.seed == -1) & table.module.isin(heatmaps.MODULES)]


def _part(table: pd.DataFrame, model: str, task: str | None) -> pd.DataFrame:
    own = table[(table.model == model) & (table.task == (table.task.iloc[0] if task is None else task))]
    return own[["layer", "module", *heatmaps.UNITS]].drop_duplicates(["layer", "module"])


def _largest(moved: pd.DataFrame, where: str) -> str:
    known = moved[moved.difference.notna()]
    if known.empty:
        return "no cell is in both runs"
    top = known.loc[known.difference.abs().idxmax()]
    return f"largest difference {top.difference:+.3g} in {where.format(**top)}".replace("-", "−")


def _maps(first: Source, second: Source) -> Iterator[Sides]:
    """CKA by module of the first task that both have, and stitching."""
    for file, value, what in (
        ("similarity/cka.parquet", "cka", "CKA of {}"),
        ("similarity/stitching.parquet", "r2", "R² of the ridge map"),
    ):
        a, b = (source.table(file) for source in (first, second))
        if a is None or b is None:
            continue
        if value == "cka":
            task = next((t for t in dict.fromkeys(a.task) if t in set(b.task)), None)
            a, b = (t[t.task == (t.task.iloc[0] if task is None else task)] for t in (a, b))
            for module in [m for m in similarity.MODULES if m in set(a.module) & set(b.module)]:
                own = [t[t.module == module] for t in (a, b)]
                yield _pair_maps(first, second, slug("cka", module), *own, value, what.format(module))
        else:
            yield _pair_maps(first, second, "stitching", a, b, value, what)


def _pair_maps(
    first: Source, second: Source, name: str, a: pd.DataFrame, b: pd.DataFrame, value: str, what: str
) -> Sides:
    drawn = []
    for side, source, table in ((differences.FIRST, first, a), (differences.SECOND, second, b)):
        rings = alike.pairing(source)
        args = (table, value, source.titles, what, (0.0, 1.0), False, rings, None, False)
        alt = f"{what}, mean {number(table[value].mean())}"
        drawn.append(_picture(name, side, what, partial(similarity.pair_map, *args), alt))
    both = {
        m: t if (t := first.titles[m]) == second.titles[m] else f"{t} / {second.titles[m]}" for m in located.SIDES
    }
    moved = differences.minus(a, b, ["teacher_layer", "student_layer"], value)
    draw = partial(differences.pair_map, a, b, value, what, both)
    alt = f"{what}; {_largest(moved, 'layers {teacher_layer:.0f} and {student_layer:.0f}')}"
    return Sides(
        name,
        what,
        f"Both maps of {what} share one colour range. In the difference orange pairs of layers are more alike in the "
        "second run, blue ones less; crossed cells are in one run only. Rings: each run's own layer pairing.",
        *drawn,
        _picture(name, differences.DIFFERENCE, what, draw, alt),
    )


# -- what was measured ------------------------------------------------------------------------------


def _measured(first: Source, second: Source, found: Across) -> Iterator[Sides]:
    if not first.rows or not second.rows:
        return
    keys = [key for key, _ in first.frame.groupby(["suite", "group"], sort=False)]
    theirs = {key for key, _ in second.frame.groupby(["suite", "group"], sort=False)}
    paired = _paired(first, found)
    for suite, group in sorted((k for k in keys if k in theirs), key=lambda k: k[1] not in answers.MAIN):
        own = [s.frame[(s.frame.suite == suite) & (s.frame.group == group)] for s in (first, second)]
        span = deltas.limits(pd.concat(own), deltas.DELTA)
        title = tables.panel_title(suite, group)
        name = slug("delta", suite, group)
        drawn = [
            _picture(
                name,
                side,
                title,
                partial(deltas.panel, part, deltas.DELTA, title, source.model_titles(list(source.kinds)), span, source.kinds),
                deltas.describe(part, deltas.DELTA, title),
            )
            for side, source, part in zip((differences.FIRST, differences.SECOND), (first, second), own, strict=True)
        ]
        rows = paired[(paired.suite == suite) & (paired.group == group)]
        kinds = second.kinds | first.kinds
        difference, lacking = None, "No model of both runs was measured on the same items of it."
        if len(rows):
            draw = partial(differences.panel, rows, f"{differences.DIFFERENCE}: {title}", first.titles, kinds)
            alt = deltas.describe(rows, differences.PAIRED, title)
            difference, lacking = _picture(name, differences.DIFFERENCE, title, draw, alt), ""
        elif found.notes:
            lacking = " ".join(found.notes)
        yield Sides(
            name,
            f"{title}: difference to the student",
            "Left and middle: how much more often each run's models are right than its untouched student, in one range. "
            "The difference holds every model of both runs on the same items: right of 0 the second run's is right "
            "more often, with a paired 95 % interval. Teacher and student were not changed: what they differ by is the "
            "machines', not a method's.",
            *drawn,
            difference,
            first.said(lacking),
        )


def _paired(first: Source, found: Across) -> pd.DataFrame:
    """The rows of compare.across as figures take them."""
    columns = "suite group model kind title n delta delta_lo delta_hi".split()
    if not found.rows:
        return pd.DataFrame(columns=columns)
    rows = pd.DataFrame(first.said(found.rows))
    titles = first.model_titles(list(dict.fromkeys(rows.model)))
    rows["kind"] = [first.kinds.get(m, "control" if "+" in m else "baseline") for m in rows.model]
    rows["title"] = [titles[m] + (" (control)" if k == "control" else "") for m, k in zip(rows.model, rows.kind, strict=True)]
    rows["delta_lo"], rows["delta_hi"] = rows.delta_ci.str[0], rows.delta_ci.str[1]
    return rows
