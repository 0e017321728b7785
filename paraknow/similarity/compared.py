"""The similarity stage: both models' outputs, streams and weights held against each other (METHODS part 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, combinations
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from paraknow import data, files
from paraknow.config import STITCHED_ROWS, Similarity
from paraknow.errors import InputError, RunError
from paraknow.locate.agreement import rank_correlations
from paraknow.locate.blocks import Block, factor
from paraknow.models import Loaded
from paraknow.progress import Beating, Progress, part, silent
from paraknow.similarity import weights
from paraknow.similarity.activations import (
    INPUT_OF,
    OUTPUTS,
    SAME_OUTPUT,
    Batch,
    batches,
    rows_of,
    untrained_pair,
)
from paraknow.similarity.cka import CKAResult, Stream
from paraknow.similarity.points import Points, aligned
from paraknow.similarity.stitching import stitch

SPECTRUM_POINTS = 64
TABLES = ("cka", "stitching", "weights", "spectra", "tasks")


@dataclass
class Compared:
    """Tables of how alike two models are; docs/METHODS.md names their columns. Those not asked for are empty."""

    cka: pd.DataFrame = field(default_factory=pd.DataFrame)
    stitching: pd.DataFrame = field(default_factory=pd.DataFrame)
    weights: pd.DataFrame = field(default_factory=pd.DataFrame)
    spectra: pd.DataFrame = field(default_factory=pd.DataFrame)
    tasks: pd.DataFrame = field(default_factory=pd.DataFrame)
    warnings: list[str] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write every table that has rows as folder/<name>.parquet."""
        for name in TABLES:
            table = getattr(self, name)
            if len(table):
                files.write_table(folder / f"{name}.parquet", table)


def compare(
    teacher: Loaded,
    student: Loaded,
    tasks: Sequence[data.Task],
    settings: Similarity | None = None,
    blocks: Sequence[Block] = (),
    rank: int = 16,
    seed: int = 0,
    progress: Progress = silent,
) -> Compared:
    """Everything that `settings.parts` names, for two models of any sizes and tokenizers.

    `blocks` are the teacher's blocks that would be moved, at `rank`; without them there is no weight geometry.
    Raises InputError (too few examples, no common positions), RunError (NaN, with module and layer). Both models
    are left as they were found.
    """
    settings = settings or Similarity()
    found = Compared()
    forward = "cka" in settings.parts or "stitching" in settings.parts
    jobs = _shares_of_time(settings, len(tasks))
    if forward:
        points = {task.name: points_of(task, teacher, student, settings, seed) for task in tasks}
        streams, rows = _read_pair(teacher, student, points, settings, seed, jobs(progress, "outputs"))
        if "cka" in settings.parts:
            bare: dict[tuple[str, str], CKAResult] = {}
            if settings.untrained:
                report = jobs(progress, "untrained pair")
                with untrained_pair(teacher, student, seed) as pair:
                    bare, _ = _read_pair(*pair, points, settings, seed, report, plain=True)
            found.cka = _cka_table(streams, bare, found.warnings)
            found.tasks = _across_tasks(found.cka)
        if "stitching" in settings.parts:
            found.stitching = _stitched(rows, settings, seed, found.warnings, jobs(progress, "stitching"))
    if {"weights", "interference"} & set(settings.parts):
        known: dict[tuple[int, str], tuple[torch.Tensor, int]] = {}
        if "interference" in settings.parts:
            known = _known_directions(student, tasks, settings, seed, jobs(progress, "known directions"))
        found.weights = weights_table(teacher, student, blocks, rank, known, seed, jobs(progress, "weights"))
        found.spectra = spectra_table({"teacher": teacher, "student": student}, jobs(progress, "spectra"))
    if settings.parts:
        jobs(progress, "spectra")(1, 1)  # the last of them: a map that could not be fitted left its share open
    return found


def _shares_of_time(settings: Similarity, tasks: int) -> Callable[[Progress, str], Progress]:
    """Progress of each part of the stage, in steps of a task's pass over its examples."""
    matrices = {"weights", "interference"} & set(settings.parts)
    lengths = {
        "outputs": 1000 * tasks * ("cka" in settings.parts or "stitching" in settings.parts),
        "untrained pair": 1000 * tasks * (settings.untrained and "cka" in settings.parts),
        "stitching": 500 * ("stitching" in settings.parts),
        "known directions": 250 * ("interference" in settings.parts),
        "weights": 250 * bool(matrices),
        "spectra": 250 * bool(matrices),
    }
    before = dict(zip(lengths, accumulate((0, *lengths.values())), strict=False))
    whole = sum(lengths.values())
    return lambda progress, name: part(progress, before[name], whole, name, scale=lengths[name])


def points_of(task: data.Task, teacher: Loaded, student: Loaded, settings: Similarity, seed: int = 0) -> list[Points]:
    """Where both models have read the same of a task's examples; see `points.aligned`."""
    examples = data.sample(task.split(settings.split), settings.examples, seed)
    contexts = tuple(min(settings.max_length, m.architecture.context) for m in (teacher, student))
    whole = settings.positions == "all"
    found = aligned(
        examples, teacher.tokenizer, student.tokenizer, (contexts[0], contexts[1]), settings.tokens, whole, seed
    )
    if len(found) < 4:
        raise InputError(
            f"similarity: {task.name} has {len(found)} examples to compare the models on; at least 4 are needed."
        )
    return found


# -- outputs -----------------------------------------------------------------------------------------


class _Rows:
    """Residual rows of both models for stitching: at most STITCHED_ROWS of them, evenly from all tasks."""

    def __init__(self, limit: int):
        self.limit = limit
        self.owners: list[int] = []
        self.teacher: dict[int, list[torch.Tensor]] = {}
        self.student: dict[int, list[torch.Tensor]] = {}

    def keep(self, batch: Batch, task: int, taken: int) -> int:
        """Take what still fits of a batch; `taken` rows of this task are here already. Returns how many now."""
        count = min(len(batch.owners), self.limit - taken)
        if count > 0:
            self.owners += [task * 10**9 + owner for owner in batch.owners[:count]]
            for side, rows in ((self.teacher, batch.teacher), (self.student, batch.student)):
                for (layer, module), values in rows.items():
                    if module == "residual":
                        side.setdefault(layer, []).append(values[:count].clone())
        return taken + max(0, count)

    def joined(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        sides = [[torch.cat(side[k]) for k in sorted(side)] for side in (self.teacher, self.student)]
        return sides[0], sides[1]


def _read_pair(
    teacher: Loaded,
    student: Loaded,
    points: dict[str, list[Points]],
    settings: Similarity,
    seed: int,
    progress: Progress,
    plain: bool = False,
) -> tuple[dict[tuple[str, str], CKAResult], _Rows]:
    """One pass over every task: CKA of all modules, and rows for stitching. `plain`: no intervals, no nulls."""
    resamples, permutations = (0, 0) if plain else (settings.resamples, settings.permutations)
    rows = _Rows(STITCHED_ROWS // len(points))
    results: dict[tuple[str, str], CKAResult] = {}
    sizes = (teacher.architecture.layers, student.architecture.layers)
    wanted = OUTPUTS if "cka" in settings.parts else ("residual",)
    for number, (task, places) in enumerate(points.items()):
        streams = {m: Stream(*sizes, resamples, permutations, seed) for m in wanted}
        report = Beating(part(progress, number * 1000, len(points) * 1000, task, scale=1000))
        kept = 0
        for batch in batches(teacher, student, places, settings.batch_rows, wanted, settings.forward_batch, report):
            if "cka" in settings.parts:
                for module, stream in streams.items():
                    _add(stream, module, batch, sizes)
                    report.beat()
            if "stitching" in settings.parts and not plain:
                kept = rows.keep(batch, number, kept)
        if "cka" in settings.parts:
            results |= {(task, module): stream.result() for module, stream in streams.items()}
    return results, rows


def _add(stream: Stream, module: str, batch: Batch, sizes: tuple[int, int]) -> None:
    sides = [
        [side[(layer, module)] for layer in range(n)]
        for side, n in zip((batch.teacher, batch.student), sizes, strict=True)
    ]
    try:
        stream.add(sides[0], sides[1], batch.owners, batch.offsets)
    except RunError as error:
        raise RunError(f"similarity: {module}: {error}") from None


def _cka_table(
    trained: dict[tuple[str, str], CKAResult], bare: dict[tuple[str, str], CKAResult], warnings: list[str]
) -> pd.DataFrame:
    parts = []
    for (task, module), result in trained.items():
        shape = result.cka.shape
        columns = {n: getattr(result, n) for n in "cka lo hi null null_lo null_hi null_position".split()}
        columns["untrained"] = bare[(task, module)].cka if bare else np.full(shape, np.nan)
        teacher_layer, student_layer = np.indices(shape)
        frame = pd.DataFrame(
            {
                "task": task,
                "module": module,
                "teacher_layer": teacher_layer.ravel(),
                "student_layer": student_layer.ravel(),
                **{name: values.ravel() for name, values in columns.items()},
                "n": result.rows,
                "batches": result.batches,
                "examples": result.examples,
            }
        )
        parts += [frame, *(frame.assign(module=alias) for alias, of in SAME_OUTPUT.items() if of == module)]
        if lacking := int(np.isnan(result.cka).sum()):
            warnings.append(
                f"similarity: {task}: CKA of {module} is undefined for {lacking} of {result.cka.size} layer pairs: "
                "a layer's outputs are constant, or vary too little over so few rows."
            )
    return pd.concat(parts, ignore_index=True)


def _across_tasks(cka: pd.DataFrame) -> pd.DataFrame:
    """Spearman correlation of two tasks' CKA over all layer pairs, per module."""
    rows = []
    for module, own in cka.groupby("module", sort=False):
        wide = own.pivot(index=["teacher_layer", "student_layer"], columns="task", values="cka")
        for one, other in combinations(list(dict.fromkeys(own.task)), 2):
            both = wide[[one, other]].dropna()
            value = float(rank_correlations(both[one].to_numpy(), both[other].to_numpy())[0])
            rows.append({"module": module, "task": one, "other": other, "rank_correlation": value, "n": len(both)})
    return pd.DataFrame(rows, columns="module task other rank_correlation n".split())


def _stitched(rows: _Rows, settings: Similarity, seed: int, warnings: list[str], progress: Progress) -> pd.DataFrame:
    teacher, student = rows.joined()
    for name, side in (("teacher", teacher), ("student", student)):
        for layer, values in enumerate(side):
            if not bool(torch.isfinite(values).all()):
                raise RunError(f"similarity: the residual stream after layer {layer} of the {name} is NaN or infinite.")
    try:
        return stitch(teacher, student, rows.owners, seed, settings.resamples, progress)
    except InputError as error:  # a small task still has its CKA
        warnings.append(f"{error} No map was fitted.")
        return pd.DataFrame()


# -- weights -----------------------------------------------------------------------------------------


def _known_directions(
    student: Loaded, tasks: Sequence[data.Task], settings: Similarity, seed: int, progress: Progress
) -> dict[tuple[int, str], tuple[torch.Tensor, int]]:
    """Top directions of the student's inputs on what it knows, per (layer, first module that reads them)."""
    examples = [e for task in tasks for e in task.align]
    examples = [e for e in examples if e.group == "known"] or examples
    context = min(settings.max_length, student.architecture.context)
    drawn = data.sample(examples, settings.examples, seed)
    both = (student.tokenizer, student.tokenizer)
    places = aligned(drawn, *both, (context, context), settings.tokens, settings.positions == "all", seed)
    inputs = rows_of(
        student,
        [p.student_ids for p in places],
        [p.student_at for p in places],
        tuple(dict.fromkeys(INPUT_OF.values())),
        inputs=True,
        forward_batch=settings.forward_batch,
        progress=part(progress, 0, 2000, scale=1000),
    )
    found = {}
    for key, rows in inputs.items():
        found[key] = (weights.top_directions(rows.float()), len(rows))
        progress(1000 + round(1000 * len(found) / len(inputs)), 2000)
    return found


def weights_table(
    teacher: Loaded,
    student: Loaded,
    blocks: Sequence[Block],
    rank: int = 16,
    known: dict[tuple[int, str], tuple[torch.Tensor, int]] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> pd.DataFrame:
    """How each block at `rank` lies to the student's matrix, beside two other choices of the same rank.

    source: `block`, the teacher's; `own`, the student's own top part (what PiSSA moves); `noise`, random orthonormal
    directions with the block's singular values. `known` (see `_known_directions`) adds the interference columns.
    """
    generator, rows = torch.Generator().manual_seed(seed), []
    for number, block in enumerate(blocks):
        weight = student.weight(block.module, block.student_layer)
        full = teacher.weight(block.module, block.teacher_layer)
        top = min(rank, *block.shape)
        moved, own = factor(block.cut(full), top, seed), factor(weight, top, seed)
        noise = [
            torch.linalg.qr(torch.randn(side, top, generator=generator))[0].to(weight.device) for side in block.shape
        ]
        sources = {
            "block": (moved.b, moved.a),
            "own": (own.b, own.a),
            "noise": (noise[0] * moved.b.norm(dim=0), noise[1].T),
        }
        directions, n = (known or {}).get((block.student_layer, INPUT_OF.get(block.module, "")), (None, 0))
        for source, (b, a) in sources.items():
            row = {
                "module": block.module,
                "teacher_layer": block.teacher_layer,
                "student_layer": block.student_layer,
                "source": source,
                "rank": top,
                **weights.geometry(b, a, weight, own),
                "interference": np.nan,
                "interference_expected": np.nan,
                "directions": 0,
                "n": n,
            }
            rows.append(row | (weights.known_share(b, a, directions) if directions is not None else {}))
        progress(number + 1, len(blocks))
    return pd.DataFrame(rows)


def spectra_table(models: dict[str, Loaded], progress: Progress = silent) -> pd.DataFrame:
    """Singular values of every projection, relative to the largest, at no more than 64 places of each."""
    rows: list[dict] = []
    places = [(name, layer) for name, loaded in models.items() for layer in range(loaded.architecture.layers)]
    for number, (name, layer) in enumerate(places):
        loaded = models[name]
        for place, module in enumerate(INPUT_OF):
            values = weights.spectrum(loaded.weight(module, layer))
            rank, shape = weights.effective_rank(values), loaded.weight(module, layer).shape
            relative = (values / values[0]).cpu().tolist() if values[0] > 0 else [np.nan] * len(values)
            shown = np.unique(np.linspace(0, len(relative) - 1, SPECTRUM_POINTS).round().astype(int))
            rows += [
                {
                    "model": name,
                    "layer": layer,
                    "module": module,
                    "index": int(index),
                    "size": relative[index],
                    "effective_rank": rank,
                    "shape0": shape[0],
                    "shape1": shape[1],
                }
                for index in shown
            ]
            progress(number * len(INPUT_OF) + place + 1, len(places) * len(INPUT_OF))
    return pd.DataFrame(rows)
