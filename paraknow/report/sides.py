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
Span = tuple[float, float]


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
    a, b = _whole(first), _whole(second)
    if a is None or b is None:
        return
    tasks = [str(t) for t in dict.fromkeys(a.task) if t in set(b.task)]
    for place, task in enumerate(tasks or [""]):
        for model in located.SIDES:
            one, other = _part(a, model, task), _part(b, model, task)
            span = heatmaps.clip_range(pd.concat([one, other])[located.VALUE].to_numpy())
            if span is not None and len(one) and len(other):
                name = slug("sensitivity", model) if not place else slug("sensitivity", model, task)
                yield _layer_maps(first, second, name, model, task if len(tasks) > 1 else "", one, other, span)


def _layer_maps(
    first: Source, second: Source, name: str, model: str, task: str, a: pd.DataFrame, b: pd.DataFrame, span: Span
) -> Sides:
    value, drawn = located.VALUE, []
    for side, source, own in ((differences.FIRST, first, a), (differences.SECOND, second, b)):
        title = source.titles[model]
        draw = partial(heatmaps.layer_map, own, value, span, title, None)
        drawn.append(_picture(name, side, title, draw, f"sensitivity of {title}"))
    title = _either(first, second, model)
    moved = _largest(differences.minus(a, b, ["layer", "module"], value), "layer {layer}, {module}")
    change = partial(differences.layer_map, a, b, value, value, title)
    return Sides(
        name,
        f"Sensitivity of the {model} by layer and matrix" + (f", {task}" if task else ""),
        f"Cells hold the {heatmaps.UNITS[value]}. The runs' maps share one logarithmic colour range; in the difference "
        "orange cells hold a larger share in the second run, blue ones a smaller, white ones the same, and crossed "
        "ones are in one run only.",
        drawn[0],
        drawn[1],
        _picture(name, differences.DIFFERENCE, title, change, f"sensitivity of {title}; {moved}"),
    )


def _either(first: Source, second: Source, model: str) -> str:
    """What a model is called where the runs' may be two."""
    names = dict.fromkeys(source.titles[model] for source in (first, second))
    return " / ".join(names)


def _whole(source: Source) -> pd.DataFrame | None:
    table = source.table("locate/sensitivity.parquet")
    return None if table is None else table[(table.seed == -1) & table.module.isin(heatmaps.MODULES)]


def _part(table: pd.DataFrame, model: str, task: str) -> pd.DataFrame:
    """A model's cells of a task; of the first one where the runs have none in common."""
    own = table[(table.model == model) & (table.task == (task or table.task.iloc[0]))]
    return own[["layer", "module", *heatmaps.UNITS]].drop_duplicates(["layer", "module"])


def _largest(moved: pd.DataFrame, where: str) -> str:
    known = moved[moved.difference.notna()]
    if known.empty:
        return "no cell is in both runs"
    top: Any = known.iloc[int(known.difference.abs().argmax())]
    return f"largest difference {top.difference:+.3g} in {where.format(**top)}".replace("-", "−")


def _maps(first: Source, second: Source) -> Iterator[Sides]:
    """CKA by module, of the first task that both have (else of each its first), and stitching."""
    a, b = (source.table("similarity/cka.parquet") for source in (first, second))
    if a is not None and b is not None:
        task = next((t for t in dict.fromkeys(a.task) if t in set(b.task)), None)
        a, b = (t[t.task == (t.task.iloc[0] if task is None else task)] for t in (a, b))
        for module in [m for m in similarity.MODULES if m in set(a.module) & set(b.module)]:
            own = a[a.module == module], b[b.module == module]
            yield _pair_maps(first, second, slug("cka", module), own[0], own[1], "cka", f"CKA of {module}")
    a, b = (source.table("similarity/stitching.parquet") for source in (first, second))
    if a is not None and b is not None:
        yield _pair_maps(first, second, "stitching", a, b, "r2", "R² of the ridge map")


def _pair_maps(
    first: Source, second: Source, name: str, a: pd.DataFrame, b: pd.DataFrame, value: str, what: str
) -> Sides:
    drawn = []
    for side, source, table in ((differences.FIRST, first, a), (differences.SECOND, second, b)):
        rings = alike.pairing(source)
        args = (table, value, source.titles, what, (0.0, 1.0), False, rings, None, False)
        alt = f"{what}, mean {number(table[value].mean())}"
        drawn.append(_picture(name, side, what, partial(similarity.pair_map, *args), alt))
    both = {m: _either(first, second, m) for m in located.SIDES}
    moved = differences.minus(a, b, ["teacher_layer", "student_layer"], value)
    draw = partial(differences.pair_map, a, b, value, what, both)
    alt = f"{what}; {_largest(moved, 'layers {teacher_layer:.0f} and {student_layer:.0f}')}"
    return Sides(
        name,
        what,
        f"Both maps of {what} share one colour range. In the difference orange pairs of layers are more alike in the "
        "second run, blue ones less; crossed cells are in one run only. Rings: each run's own layer pairing.",
        drawn[0],
        drawn[1],
        _picture(name, differences.DIFFERENCE, what, draw, alt),
    )


# -- what was measured ------------------------------------------------------------------------------


def _measured(first: Source, second: Source, found: Across) -> Iterator[Sides]:
    if not first.rows or not second.rows:
        return
    keys = [list(dict.fromkeys(zip(s.frame.suite, s.frame.group, strict=True))) for s in (first, second)]
    common = [key for key in keys[0] if key in keys[1]]
    paired = _paired(first, found)
    for suite, group in sorted(common, key=lambda key: key[1] not in answers.MAIN):
        rows = paired[(paired.suite == suite) & (paired.group == group)]
        why = "None of its items was asked in both runs." if found.rows else " ".join(found.notes)
        yield _panels(first, second, str(suite), str(group), rows, why)


def _panels(first: Source, second: Source, suite: str, group: str, rows: pd.DataFrame, why: str) -> Sides:
    title, name = tables.panel_title(suite, group), slug("delta", suite, group)
    own = [s.frame[(s.frame.suite == suite) & (s.frame.group == group)] for s in (first, second)]
    span, drawn = deltas.limits(pd.concat(own), deltas.DELTA), []
    for side, source, part in zip((differences.FIRST, differences.SECOND), (first, second), own, strict=True):
        titles = source.model_titles(list(source.kinds))
        draw = partial(deltas.panel, part, deltas.DELTA, title, titles, span, source.kinds)
        drawn.append(_picture(name, side, title, draw, deltas.describe(part, deltas.DELTA, title)))
    difference = None
    if len(rows):
        kinds = second.kinds | first.kinds
        draw = partial(differences.panel, rows, f"{differences.DIFFERENCE}: {title}", first.titles, kinds)
        alt = deltas.describe(rows, differences.PAIRED, title)
        difference = _picture(name, differences.DIFFERENCE, title, draw, alt)
    return Sides(
        name,
        f"{title}: difference to the student",
        "The first two: how much more often each run's models are right than its untouched student, in one range. The "
        "difference holds every model of both runs on the same items: right of 0 the second run's is right more often, "
        "with a paired 95 % interval. Teacher and student were not changed: what they differ by is the machines', not "
        "a method's.",
        drawn[0],
        drawn[1],
        difference,
        "" if len(rows) else first.said(why),
    )


def _paired(first: Source, found: Across) -> pd.DataFrame:
    """The rows of compare.across as figures take them."""
    columns = "suite group model kind title n delta delta_lo delta_hi".split()
    if not found.rows:
        return pd.DataFrame(columns=columns)
    rows = pd.DataFrame(first.said(found.rows))
    titles = first.model_titles(list(dict.fromkeys(rows.model)))
    rows["kind"] = [first.kinds.get(m, "control" if "+" in m else "baseline") for m in rows.model]
    rows["title"] = [
        titles[m] + (" (control)" if k == "control" else "") for m, k in zip(rows.model, rows.kind, strict=True)
    ]
    rows["delta_lo"], rows["delta_hi"] = rows.delta_ci.str[0], rows.delta_ci.str[1]
    return rows
