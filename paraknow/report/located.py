"""Figures of where the knowledge lies: sensitivity, layers, one matrix, agreement, neurons."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from paraknow.figures import heatmaps, layers, neurons, taskmaps
from paraknow.figures.theme import short
from paraknow.report.picture import Picture, each, number, slug
from paraknow.report.source import Source

SIDES = ("teacher", "student")
SECTION = "Where the knowledge lies"
VALUE = "share"  # what the cells of a report's map hold
POOLED = {"max": "largest value"}
WHAT = {"block": "chosen blocks", "map": "maps"}


def pictures(source: Source) -> Iterator[Picture]:
    """All figures of the locate stage that the run's tables allow."""
    table = source.table("locate/sensitivity.parquet")
    if table is not None:
        for number_, task in enumerate(dict.fromkeys(table.task)):
            whole = table[(table.task == task) & (table.seed == -1)]
            yield from _maps(source, whole, table, str(task), number_ == 0)
            yield from _layers(source, table, str(task), number_ == 0)
        yield from _between(source, table[table.seed == -1])
        yield from _matrices(source, table)
    yield from _agreement(source)
    yield from _neurons(source)


def _maps(source: Source, whole: pd.DataFrame, table: pd.DataFrame, task: str, first: bool) -> Iterator[Picture]:
    shown = whole[whole.module.isin(heatmaps.MODULES)]
    span = heatmaps.clip_range(shown[VALUE].to_numpy()) if len(shown) else None
    if span is None:
        return
    count = table[(table.task == task) & (table.seed >= 0)].seed.nunique()
    for model in SIDES:
        own = shown[shown.model == model]
        if own.empty or not own[VALUE].notna().any():
            continue
        title, top = source.titles[model], own.iloc[int(own[VALUE].argmax())]
        cells = own[["layer", "module", *heatmaps.UNITS]]
        yield Picture(
            slug("sensitivity", model) if first else slug("sensitivity", model, task),
            SECTION,
            f"Sensitivity of {title} by layer and matrix",
            partial(heatmaps.layer_map, cells, VALUE, span, title, None),
            f"Heat map of {title}: {heatmaps.UNITS[VALUE]} by layer and matrix; largest in {top.module} of layer "
            f"{top.layer} ({top[VALUE]:.1%}).",
            "One cell is one matrix; brighter means that the answer depends more on it. Both models' maps share one "
            f"logarithmic colour range, clipped at percentiles {heatmaps.CLIP[0]:.0f} and {heatmaps.CLIP[1]:.0f}. Task "
            f"{task}, n = {count} seed examples of its training split.",
            first,
        )


def _between(source: Source, whole: pd.DataFrame) -> Iterator[Picture]:
    """Every two tasks' shares held against each other in each model."""
    for one, other in combinations(dict.fromkeys(whole.task.astype(str)), 2):
        found = {m: taskmaps.difference(whole[whole.model == m], one, other) for m in SIDES}
        limit, sides = taskmaps.bound(*found.values()), {"one": one, "other": other}
        note = f"orange: more in {short(one, 24)}; blue: in {short(other, 24)}"
        for model, table in found.items():
            if not table.difference.notna().any():
                continue
            model_title = source.titles[model]
            top: Any = table.iloc[int(np.nanargmax(table.difference.abs().to_numpy(float)))]
            title = f"{short(model_title, 34)}: difference of the shares"
            yield Picture(
                slug("tasks-difference", model, one, other),
                SECTION,
                f"{one} against {other} in {model_title}",
                partial(taskmaps.difference_map, table, sides, limit, model_title, title, note),
                f"Share for {one} minus share for {other} in {model_title}. Largest: {top.module} of layer "
                f"{top.layer}, {top.difference:+.2%}.",
                f"Share minus share, in points of the whole: orange where {one} leans on a matrix more, blue where "
                f"{other} does, pale where the two do not differ. Both models share one range.",
                False,
            )


def _layers(source: Source, table: pd.DataFrame, task: str, first: bool) -> Iterator[Picture]:
    scores = source.table("locate/layers.parquet")
    own = None if scores is None else scores[(scores.task == task) & (scores.model == "teacher")]
    if own is None or own.empty:
        return
    fed = "; ".join(
        f"{int(r.layer)} → {int(r.student_layer)}" for r in each(own[own.chosen]) if pd.notna(r.student_layer)
    )
    teacher, student = (source.titles[m] for m in SIDES)
    yield Picture(
        "layers" if first else slug("layers", task),
        SECTION,
        f"Layers of {teacher} and where they go",
        partial(layers.scores, own, layers.seed_spread(table, "teacher", task), teacher, student),
        f"Layer scores; teacher layers that feed student layers: {fed}.",
        f"A bar is a layer's summed sensitivity, norms and biases included. Filled layers were chosen (rule: "
        f"{', '.join(own.by.unique())}) and feed the student's layer written beside them.",
        first,
    )


def _matrices(source: Source, table: pd.DataFrame) -> Iterator[Picture]:
    """The most sensitive matrix of each model, pooled; in the teacher's with the block that is taken."""
    whole = table[(table.seed == -1) & table.module.isin(heatmaps.MODULES)]
    for model in SIDES:
        own = whole[(whole.model == model) & whole["mean"].notna()]
        if own.empty:
            continue
        top: Any = own.iloc[int(own["mean"].argmax())]
        layer, module = int(top.layer), str(top.module)
        found = source.map(model, layer, module)
        if found is None:
            continue
        values, notes = found
        shape, pooled = notes["shape"], POOLED.get(notes["pooling"], notes["pooling"])
        title = f"{source.titles[model]}: |w · ∇| of {module} in layer {layer} ({shape[0]} × {shape[1]})"
        block, share = _block(source, layer, module) if model == "teacher" else (None, None)
        held = "" if share is None else f" The chosen block holds {share:.1%} of the matrix's sensitivity."
        yield Picture(
            slug("matrix", model),
            SECTION,
            title,
            partial(_matrix, values, shape, title, block),
            f"Heat map of the matrix; largest value {values.max():.3g}.{held}",
            f"The matrix of the largest mean sensitivity. Each pixel is the {pooled} over the weights below it; "
            "logarithmic colours, clipped at percentiles 5 and 99.9; values are summed over all tasks and their seed "
            f"examples, in nats.{held}",
        )


def _matrix(values: np.ndarray, shape: list[int], title: str, block: heatmaps.Rectangle | None) -> Any:
    figure = heatmaps.matrix_map(values, shape, title, block, None, heatmaps.clip_range(values, (5.0, 99.9)))
    return figure.update_layout(dragmode="zoom")


def _block(source: Source, layer: int, module: str) -> tuple[heatmaps.Rectangle | None, float | None]:
    """The block taken from a teacher's matrix, where it is a rectangle, and its share."""
    blocks = source.table("locate/blocks.parquet")
    own = None if blocks is None else blocks[(blocks.module == module) & (blocks.teacher_layer == layer)]
    if own is None or own.empty:
        return None, None
    b = own.iloc[0]
    if pd.isna(b.row) or pd.isna(b.col):
        return None, float(b.share)
    return heatmaps.Rectangle(int(b.row), int(b.col), int(b["rows"]), int(b["cols"])), float(b.share)


def _agreement(source: Source) -> Iterator[Picture]:
    table = source.table("locate/agreement.parquet")
    if table is None:
        return
    drawn = table[table.what.isin(list(WHAT)) & table.value.notna()]
    halves = drawn[drawn.about == "split_half"]
    for place, (task, own) in enumerate(halves.groupby("task", sort=False)):
        note = (
            f"{short(source.titles['teacher'], 22)}; halves of n = {int(own.n.max())} seeds; a mark per layer, in order"
        )
        yield _overlaps(
            "halves" if not place else slug("halves", task),
            "Do the seeds agree?",
            "Would the other half choose the same?",
            note,
            own,
            "The seeds are halved, and each half chooses for itself. A block at the line of chance was placed by the "
            "draw of the seeds, not by the task.",
        )
    for (one, other), own in drawn[drawn.about == "tasks"].groupby(["task", "other"], sort=False):
        yield _overlaps(
            slug("tasks", one, other),
            f"{one} against {other}",
            f"Do {one} and {other} choose the same?",
            "one mark per layer, in order",
            own,
            "The same comparison between two tasks: near 1, one place serves both; at chance, each its own.",
        )


def _overlaps(name: str, title: str, question: str, note: str, own: pd.DataFrame, read: str) -> Picture:
    means = own.groupby("what").value.mean()
    alt = f"{question} Means: " + "; ".join(f"{WHAT[str(k)]} {number(v)}" for k, v in means.items()) + "."
    return Picture(name, SECTION, title, partial(neurons.overlaps, own, question, note), alt, read)


def _neurons(source: Source) -> Iterator[Picture]:
    table = source.table("locate/attribution.parquet")
    if table is None:
        return
    for place, task in enumerate(dict.fromkeys(table.task)):
        for model in SIDES:
            own = table[(table.model == model) & (table.task == task)]
            whole = own[(own.seed == -1) & own.score.notna()]
            if whole.empty:
                continue
            title, best = source.titles[model], whole.loc[whole.score.idxmax()]
            yield Picture(
                slug("neurons", model) if not place else slug("neurons", model, task),
                SECTION,
                f"What attention and FFN of {title} add to the answer",
                partial(neurons.sublayers, own, title),
                f"Gain in log p by layer of {title}; largest: {best.kind} of layer {best.layer}, {best.score:.3g} "
                "nats.",
                "At the last position before the answer's last word: how much attention and FFN of each layer add to "
                "the word's log-probability, read through the output head. The dashes are sums over single neurons; "
                "where they are far from the bar, neurons share the effect or work against each other.",
                not place,
            )
