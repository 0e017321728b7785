"""What stages compute beside the models' passes over text (passes.py), in floating-point operations (no torch).

One operation is one multiplication or addition. Matrix products are counted exactly: (n, k) × (k, m) takes 2·n·k·m.
Decompositions are counted as Golub and Van Loan give them (Matrix Computations, 4th ed., ch. 5.4, 8.3 and 8.6), which
libraries reach to within small factors; work per entry (summed-area tables, bootstrap) as entries touched.

Notation: L layers, d hidden size, f FFN size, q = h·e query width, V vocabulary, T tokens, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from paraknow.architecture import Architecture
from paraknow.config import EMBEDDING, MODULES, STITCHED_ROWS
from paraknow.methods.base import Candidate
from paraknow.passes import NOTHING_READ, Work, follows, places

EXACT_SIDE = 1024  # longest shorter side that locate.blocks takes apart exactly
ROUNDS = 12  # power iterations of torch.svd_lowrank there
KINDS = (*MODULES, "residual")  # outputs that CKA compares
RIDGES, FOLDS, HELD_OUT = 10, 4, 0.2  # of stitching


@dataclass(frozen=True)
class Beside:
    """One kind of work of a stage. flops: None where a count that it depends on is unknown."""

    stage: str
    what: str
    flops: float | None

    def row(self) -> dict[str, Any]:
        return asdict(self)


def beside(work: Work, candidates: Sequence[Candidate]) -> list[Beside]:
    """All of it, stage by stage; what takes nothing is left out."""
    made = [*_located(work), *_compared(work, candidates[0]), *_aligned(work, candidates)]
    return [one for one in made if one.flops is None or one.flops > 0]


# -- attention -------------------------------------------------------------------------------------------


def attention(a: Architecture, tokens: int, backward: bool = False) -> float:
    """Scores and their product with the values, of one sequence forward, 4·L·T²·q; twice that backward.

    As if every token looked at all others: a causal kernel may leave out half of it.
    """
    return (8.0 if backward else 4.0) * a.layers * tokens**2 * a.heads * a.head_dim


# -- matrices --------------------------------------------------------------------------------------------


def svd(rows: int, columns: int) -> float:
    """Singular values and vectors, reduced: 6·m·n² + 20·n³ with n the shorter side."""
    n, m = sorted((rows, columns))
    return 6.0 * m * n**2 + 20.0 * n**3


def spectrum(rows: int, columns: int) -> float:
    """Singular values alone, 2·m·n² + 2·n³; beyond EXACT_SIDE from the Gram matrix's eigenvalues, 2·m·n² + 4/3·n³."""
    n, m = sorted((rows, columns))
    return 2.0 * m * n**2 + (2.0 if n <= EXACT_SIDE else 4 / 3) * n**3


def factor(rows: int, columns: int, rank: int) -> float:
    """The top-r factors of a matrix, and B·A once more for the residual: exact, or 2 + 2·ROUNDS products with 2r + 8
    columns and a QR after each (locate.blocks.factor)."""
    n, m = sorted((rows, columns))
    wide, again = 2 * rank + 8, 2.0 * n * m * rank
    if n <= max(EXACT_SIDE, 4 * wide):
        return svd(rows, columns) + again
    products = (2 + 2 * ROUNDS) * 2.0 * n * m * wide
    bases = (1 + 2 * ROUNDS) * 2.0 * (n + m) * wide**2  # about half of them (n, wide), half (m, wide)
    return products + bases + svd(wide, m) + again


# -- locate ----------------------------------------------------------------------------------------------


def neurons(a: Architecture, seeds: int, how: str) -> float:
    """Scores of all FFN and attention neurons.

    exact: every column through the lens, once, 2·L·(f + q)·d·V, and 5 operations on each of (f + q)·V logits for every
    seed. first_order: three products (seeds, d) × (d, V) for each of 2·L sublayers, and one with W_down or W_o.
    """
    columns = a.ffn + a.heads * a.head_dim
    first = a.layers * seeds * (12.0 * a.hidden * a.vocabulary + 2.0 * a.hidden * columns)
    if how == "first_order":
        return first
    return first + a.layers * columns * a.vocabulary * (2.0 * a.hidden + 5.0 * seeds) if how == "exact" else 0.0


def _located(work: Work) -> Iterator[Beside]:
    settings = work.config.locate
    pair = (work.teacher.architecture, work.student.architecture)
    tasks = len(work.config.located_on)
    yield Beside("locate", "scores of neurons", tasks * sum(neurons(a, settings.seeds, settings.neurons) for a in pair))
    whole = work.teacher.parameters + work.student.parameters
    yield Beside("locate", "sensitivities summed", 3.0 * tasks * settings.seeds * whole)
    if settings.structure == "window":  # two running sums and three differences in float64, and their largest
        # which layers feed the student is known once all have been read: till then a block is cut in each
        where = pair[0] if settings.layers == "sensitivity" else pair[1]
        entries = sum(n * math.prod(pair[0].shape(m)) for m, n in places(work.config, where))
        yield Beside("locate", "choice of blocks", 6.0 * entries)


# -- similarity ------------------------------------------------------------------------------------------


def gram(a: Architecture, rows: int) -> float:
    """Gram matrices (n, n) of every layer's every kind of output in one batch: 2·n²·L·Σ widths."""
    width = sum(a.shape(m)[0] for m in MODULES) + a.hidden
    return 2.0 * rows**2 * a.layers * width


def cka(t: Architecture, s: Architecture, rows: int, permutations: int, resamples: int) -> float:
    """Every kind of output of one batch, all layer pairs: 2·n²·L_T·L_S for the value and for each permutation (and a
    quarter as many that keep positions), 2·n·L_T·L_S for each resample."""
    shuffled = permutations + max(1, permutations // 4) if permutations else 0
    pairs = 2.0 * len(KINDS) * t.layers * s.layers
    return gram(t, rows) + gram(s, rows) + pairs * (rows**2 * (1 + shuffled) + rows * resamples)


def stitching(t: Architecture, s: Architecture, rows: int) -> float:
    """Ridge maps from each teacher layer to all student layers and their shuffled twins: an SVD of (n, d_T) for each of
    four folds and for all rows, its product with the targets, and ten strengths on each fold's own rows."""
    targets, made = 2 * s.layers * s.hidden, 0.0
    fitted = rows * (1 - HELD_OUT)
    for n, new, strengths in [(fitted * (1 - 1 / FOLDS), fitted / FOLDS, RIDGES)] * FOLDS + [
        (fitted, rows * HELD_OUT, 1)
    ]:
        k = min(n, t.hidden)
        made += svd(int(n), t.hidden) + 2 * k * n * targets + strengths * 2 * new * k * (t.hidden + targets)
    return t.layers * made


def _compared(work: Work, examined: Candidate) -> Iterator[Beside]:
    settings, config = work.config.similarity, work.config
    t, s = work.teacher.architecture, work.student.architecture
    counts = [getattr(work.counts[name], settings.split) for name in config.task]
    if "cka" in settings.parts:
        done: float | None = 0.0
        for count in counts:
            if count is None:
                done = None
                break
            examples = min(settings.examples, count)
            batches = math.ceil(examples / settings.batch_rows)
            rows = round(examples / batches) if batches else 0
            one = cka(t, s, rows, settings.permutations, settings.resamples)
            one += cka(t, s, rows, 0, 0) if settings.untrained else 0.0
            done += settings.tokens * batches * one
        yield Beside("similarity", "CKA with its nulls", done)
    if "stitching" in settings.parts:
        known = [min(settings.examples, c) * settings.tokens for c in counts if c is not None]
        rows = min(STITCHED_ROWS, sum(known))
        yield Beside("similarity", "stitching", None if len(known) < len(counts) else stitching(t, s, rows))
    if {"weights", "interference"} & set(settings.parts):
        rank = getattr(examined.settings, "rank", 16)
        each = [(s.shape(m), n) for m, n in places(config, s)]
        held = sum(n * (2 * factor(*shape, min(rank, *shape)) + 12.0 * math.prod(shape) * rank) for shape, n in each)
        yield Beside("similarity", "blocks held against weights", held)
        spectra = sum(a.layers * sum(spectrum(*a.shape(m)) for m in MODULES) for a in (t, s))
        yield Beside("similarity", "spectra of all projections", spectra)


# -- align -----------------------------------------------------------------------------------------------


def _aligned(work: Work, candidates: Sequence[Candidate]) -> Iterator[Beside]:
    """What starts are made from, beside passes; of a method that nobody described nothing is known."""
    seeds = len(work.config.run_seeds)
    for candidate in candidates:
        method = candidates[0] if follows(candidate) else candidate
        name, settings = method.method.name, method.settings
        if name in MADE:
            yield Beside("align", candidate.label, seeds * MADE[name](work, settings))
        elif name not in NOTHING_READ and method.method.name not in PASSES_ALONE:
            yield Beside("align", candidate.label, None)


def _each(work: Work) -> list[tuple[tuple[int, int], int]]:
    """((out, in), how many) of the student's matrices that take part."""
    s = work.student.architecture
    return [(s.shape(m), n) for m, n in places(work.config, s)]


def _seeking(work: Work, settings: Any) -> float:
    return sum(n * factor(*shape, min(settings.rank, *shape)) for shape, n in _each(work))


def _whole(work: Work, settings: Any) -> float:
    """Every matrix taken apart whole (embeddings keep a plain start)."""
    s = work.student.architecture
    return sum(n * svd(*s.shape(m)) for m, n in places(work.config, s) if m not in EMBEDDING)


def _olora(work: Work, settings: Any) -> float:
    """A QR of every matrix (n, m): 4·m·n² with n the shorter side, Q included, and the product taken off."""
    each = [sorted(shape) for shape, n in _each(work) for _ in range(n)]
    return sum(4.0 * m * n**2 + 2.0 * n * m * settings.rank for n, m in each)


def _laten(work: Work, settings: Any) -> float:
    """Neurons of both models, scored on all extract examples at once."""
    how = "first_order" if work.config.locate.neurons == "first_order" else "exact"
    pair = (work.teacher.architecture, work.student.architecture)
    return sum(neurons(a, settings.extract_examples, how) for a in pair)


def _transport(work: Work, settings: Any) -> float:
    """Two maps per layer: X_SᵀX_T from the rows and its SVD; then the chosen neurons through them."""
    t, s = work.teacher.architecture, work.student.architecture
    neurons = settings.neurons if settings.mode in ("widen", "replace") else t.ffn
    moved = s.layers * neurons * 3 * 2.0 * t.hidden * s.hidden
    if settings.maps == "identity":
        return moved
    return moved + 2 * s.layers * (2.0 * settings.rows * t.hidden * s.hidden + svd(t.hidden, s.hidden))


def _semalign(work: Work, settings: Any) -> float:
    """The map M: both heads' Gram matrices, their eigenvectors (9·d³) and S_S·S_Tᵀ."""
    t, s = work.teacher.architecture, work.student.architecture
    heads = sum(2.0 * a.vocabulary * a.hidden**2 + 9.0 * a.hidden**3 for a in (t, s))
    return heads + 2.0 * t.vocabulary * t.hidden * s.hidden


MADE = {
    "seeking": _seeking,
    "pissa": _whole,
    "olora": _olora,
    "laten": _laten,
    "transport": _transport,
    "semalign": _semalign,
}
# Starts that are random, or all of whose work is passes.
PASSES_ALONE = ("eva", "corda", "lora_ga", "distillation", "masked_distillation", "sft", "block_scales")
