"""Figures of how alike the two models are: CKA, stitching, the block's geometry, spectra."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pandas as pd

from paraknow.figures import layerwise, similarity, weights
from paraknow.report.picture import Picture, each, number, slug
from paraknow.report.source import Source

SECTION = "How alike the two models are"
HELD = "null_position"  # what CKA is held against by default, where it was measured
TOLD = {
    "cos": "Random directions lie within about ± 2/√(nm) of 0: a block at 0 has nothing to do with the matrix it is "
    "added to.",
    "cos_rest": "The paper reads this cosine as incompatibility. The line is what arithmetic gives any matrix at right "
    "angles to W: a block on its line says nothing about incompatibility.",
    "norm_ratio": "How large the moved part is beside the student's matrix.",
    "left_overlap": "Mean squared cosine of the principal angles between the top column spaces; the line is that of "
    "random spaces.",
    "right_overlap": "Mean squared cosine of the principal angles between the top row spaces; the line is that of "
    "random spaces.",
    "interference": "How much of the change acts on inputs that the student uses on what it knows already. Above the "
    "line it disturbs them more than a random change of the same size would.",
}


def pictures(source: Source) -> Iterator[Picture]:
    """All figures of the similarity stage that the run's tables allow."""
    pairs = pairing(source)
    cka = source.table("similarity/cka.parquet")
    if cka is not None:
        for place, task in enumerate(dict.fromkeys(cka.task)):
            yield from _outputs(source, cka[cka.task == task], pairs, "" if not place else str(task))
    yield from _streams(source, pairs)
    yield from _geometry(source)
    yield from _spectra(source)


def pairing(source: Source) -> set[tuple[int, int]]:
    """The layer pairs that stitching found; none where it was not asked for."""
    table = source.table("similarity/stitching.parquet")
    if table is None:
        return set()
    return paired(table)


def paired(table: pd.DataFrame) -> set[tuple[int, int]]:
    """The (teacher, student) layers that a table of stitching pairs."""
    own = table[table.paired]
    return {(int(t), int(s)) for t, s in zip(own.teacher_layer, own.student_layer, strict=True)}


def held_against(table: pd.DataFrame) -> str | None:
    """The null that CKA is held against."""
    return next((k for k in (HELD, "null", "untrained") if table[k].notna().any()), None)


def _outputs(source: Source, own: pd.DataFrame, pairs: set[tuple[int, int]], task: str) -> Iterator[Picture]:
    """CKA by module; `task` is "" for the first one, whose names carry no task."""
    more = (task,) if task else ()
    means = own.groupby("module").cka.mean()
    rings = " Rings: the layer pairing found by stitching." if pairs else ""
    modules = [m for m in similarity.MODULES if m in set(own.module)]
    if modules:
        yield Picture(
            slug("cka-modules", *more),
            SECTION,
            "CKA by module, beside what it is held against",
            partial(similarity.modules, own, source.titles, pairs),
            "Mean CKA by module: " + "; ".join(f"{m} {number(means[m])}" for m in modules) + ".",
            "Where a filled mark lies near the open ones, the likeness comes from position or architecture, not from "
            "what was learned.",
            not task,
        )
        said = "; ".join(f"{m} {number(means[m])}" for m in modules)
        yield Picture(
            slug("cka-multiples", *more),
            SECTION,
            "CKA of every module, layer against layer",
            partial(layerwise.small_multiples, own, source.titles),
            f"CKA maps of all modules; means: {said}.",
            "A map for every module, all in one colour range; grey: undefined.",
            False,
        )
    for module in modules:
        part = own[own.module == module]
        held = held_against(part)
        front = not task and module == modules[0]
        said = f"n = {int(part.n.max())} tokens.{rings}"
        whole = "A cell says how alike the outputs of two layers are on the same tokens: 1 is the same up to rotation "
        whole += f"and scale, 0 unrelated; {said}"
        args = (source.titles, f"CKA of {module}", (0.0, 1.0), False, pairs, None, False)
        yield _map(slug("cka", module, *more), source, part, "cka", args, whole, front)
        if held is None:
            continue
        title = similarity.NULLS[held]
        yield from _nearest(source, part, module, held, more)
        args = (source.titles, title, (0.0, 1.0), False, pairs, None, False)
        read = (
            f"What CKA of {module} would be with nothing but this in common ({title}), in the same colour range; {said}"
        )
        yield _map(slug("cka-null", module, *more), source, part, held, args, read, front)
        rest = part.assign(difference=part.cka - part[held])
        bound = max(0.05, float(rest.difference.abs().max(skipna=True) or 0.05))
        args = (source.titles, f"CKA − {title}", (-bound, bound), True, pairs, None, False)
        read = f"Orange: more alike than {title} explains; white: no more than that; {said}"
        yield _map(slug("cka-difference", module, *more), source, rest, "difference", args, read, front)


def _nearest(source: Source, part: pd.DataFrame, module: str, held: str, more: tuple[str, ...]) -> Iterator[Picture]:
    """For each layer of either model the one of the other that is most like it."""
    for of in ("teacher", "student"):
        found = layerwise.nearest(part, of, held)
        known = found[found.match.notna()]
        if known.empty:
            continue
        said = "; ".join(f"{int(r.layer)} → {int(r.match)} ({number(r.cka)})" for r in each(known))
        yield Picture(
            slug("nearest", of, module, *more),
            SECTION,
            f"The most alike layer for each of {source.titles[of]}, {module}",
            partial(layerwise.nearest_chart, found, of, source.titles, module, held, int(part.n.max())),
            f"Nearest layer for each of {source.titles[of]}: {said}.",
            "The arrow names the layer of the other model with the highest CKA. Where the second best (circle) lies "
            "inside the bar, the choice is not settled. The highest of many values is always somewhat too high, most "
            "so where many lie together.",
            False,
        )


def _map(name: str, source: Source, table: pd.DataFrame, value: str, args: tuple, read: str, front: bool) -> Picture:
    both = f"{source.titles['teacher']} (rows) and {source.titles['student']} (columns)"
    alt = f"{args[1]} of {both} by layer; mean {number(table[value].mean())}."
    lacking = int(table[value].isna().sum())
    missing = f" {lacking} cells are missing (grey, crossed)." if lacking else ""
    return Picture(
        name, SECTION, args[1], partial(similarity.pair_map, table, value, *args), alt, read + missing, front
    )


def _streams(source: Source, pairs: set[tuple[int, int]]) -> Iterator[Picture]:
    table = source.table("similarity/stitching.parquet")
    if table is None:
        return
    read = (
        "A linear map is fitted from the teacher's residual stream to the student's and tried on the tokens of other "
        f"examples (n = {int(table.n.max())}). A high R² says that the two spaces are alike. It does not say that "
        "knowledge crosses: in trials R² was high where nothing arrived."
    )
    args = (source.titles, "R² of the ridge map", (0.0, 1.0), False, pairs, None, False)
    yield _map("stitching", source, table, "r2", args, read, True)
    if pairs:
        mean = number(table[table.paired].r2.mean())
        draw = partial(similarity.stitched_pairs, table, source.titles)
        title = "R² of the paired layers"
        yield Picture("stitching-pairs", SECTION, title, draw, f"{title}; mean {mean}.", read)


def _geometry(source: Source) -> Iterator[Picture]:
    table = source.table("similarity/weights.parquet")
    if table is None:
        return
    for place, (quantity, (label, _)) in enumerate(weights.QUANTITIES.items()):
        if not table[quantity].notna().any():
            continue
        means = table.groupby("source")[quantity].mean()
        yield Picture(
            slug("weights", quantity),
            SECTION,
            f"The block and the student's weights: {label}",
            partial(weights.geometry, table, quantity, source.titles),
            f"{label}; means: " + "; ".join(f"{k} {number(v)}" for k, v in means.items()) + ".",
            read_geometry(table, quantity),
            place < 2,
        )


def read_geometry(table: pd.DataFrame, quantity: str) -> str:
    """How to read one quantity of the block's geometry."""
    known = quantity == "interference" and table.n.notna().any()
    n = f" n = {int(table.n.max())} tokens." if known else ""
    return f"BA is the moved part at the method's rank, W the student's matrix. {TOLD[quantity]}{n}"


def _spectra(source: Source) -> Iterator[Picture]:
    table = source.table("similarity/spectra.parquet")
    if table is None:
        return
    known = [m for m in weights.MODULES if m in set(table.module)]
    for module in known:
        yield Picture(
            slug("spectra", module),
            SECTION,
            f"Singular values of {module}",
            partial(weights.spectra, table, module, source.titles),
            f"Singular values of {module} in both models.",
            "Lines: median over layers; bands: from the least to the largest layer. A steep curve is a matrix that a "
            "low rank can carry.",
            module == known[0],
        )
