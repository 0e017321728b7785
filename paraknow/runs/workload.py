"""How much work each stage of a config is, in numbers that its time can be held against (no torch).

Counted for configs whose models and tasks are on this machine, for a new run as for one that has ended, in the same
way: passes.py's sequences × tokens × parameters, and what grows otherwise (steps, starts, pairs of layers, resamples).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path

from paraknow import data, passes
from paraknow.architecture import Architecture
from paraknow.checkpoints import Checkpoint
from paraknow.config import MODULES, RunConfig
from paraknow.evaluate import benchmarks, expected
from paraknow.memory import TEMPLATE, counter, text_of
from paraknow.methods.base import Candidate
from paraknow.passes import Counts, Pass, Work

SAMPLED = 32  # examples of a split whose tokens are counted
Parts = dict[str, float]


def stages(
    config: RunConfig,
    teacher: Checkpoint,
    student: Checkpoint,
    candidates: Sequence[Candidate],
    tasks: Mapping[str, data.Task],
) -> dict[str, Parts | None]:
    """Per stage the parts of its work by name; None where a count of it is unknown.

    Time is taken to be a sum over these parts, each times a number that this machine has shown (timing.py). Raises
    InputError where a benchmark's records cannot be read.
    """
    plans = expected.plans(config)
    asked = {b.title: expected.requests(b, config, plans, {}) for b in config.evaluate.benchmarks}
    counts = {name: Counts.of(task, config.evaluate.limit) for name, task in tasks.items()}
    work = Work(config, teacher, student, counts, _lengths(tasks, teacher, student, config), asked)
    examined, seeds = candidates[0], len(config.run_seeds)
    begun = [passes.aligned(work, c, examined) for c in candidates]
    tuned = [p for c in candidates for p in passes.tuned(work, c, examined)]
    written = max((plan.generated for plan in plans), default=0)
    return {
        "load": {"once": 1.0, "parameters": float(teacher.parameters + student.parameters)},
        "locate": _joined({"once": 1.0, "neurons": _neurons(work)}, passes.located(work)),
        "similarity": _joined({"once": 1.0, "pairs": _pairs(work)}, passes.compared(work)),
        "align": None
        if any(found is None for found in begun)
        else _joined(
            {"starts": float(seeds * len(candidates)), "factors": seeds * _factors(work, candidates)},
            [p for found in begun for p in found or () for _ in range(seeds)],
        ),
        "tune": _joined(
            {"saved": float(seeds * len(candidates)), "steps": float(seeds * _steps(tuned, config))},
            [p for p in tuned for _ in range(seeds)],
        ),
        "evaluate": _judged(work, candidates, passes.evaluated(work, candidates), written, plans),
    }


def _joined(parts: Parts, read: Iterable[Pass]) -> Parts | None:
    """The parts with the operations of all passes and the sequences read; None where one of them is unknown."""
    found = list(read)
    if any(p.flops is None for p in found):
        return None
    operations = sum(p.flops or 0.0 for p in found)
    return parts | {"operations": operations, "sequences": float(sum((p.forward or 0) for p in found))}


def _neurons(work: Work) -> float:
    """Neurons × vocabulary that exact scores look at."""
    settings = work.config.locate
    if settings.neurons != "exact":
        return 0.0
    pair = (work.teacher.architecture, work.student.architecture)
    each = sum(a.layers * (a.ffn + a.heads * a.head_dim) * a.vocabulary for a in pair)
    return float(each * settings.seeds * len(work.config.located_on))


def _pairs(work: Work) -> float:
    """Entries of Gram matrices that are compared: pairs of layers, kinds of output, batches, permutations."""
    settings, kinds = work.config.similarity, len(MODULES) + 3
    if "cka" not in settings.parts:
        return 0.0
    layers = work.teacher.architecture.layers * work.student.architecture.layers
    rows, total = settings.batch_rows, 0.0
    for name in work.config.task:
        count = getattr(work.counts[name], settings.split) or 0
        total += settings.tokens * min(settings.examples, count) * min(rows, count)
    return total * kinds * layers * (1 + settings.permutations) * (2 if settings.untrained else 1)


def _factors(work: Work, candidates: Sequence[Candidate]) -> float:
    """Operations of taking all matrices apart, for every model that starts from factors."""
    a: Architecture = work.student.architecture
    each = sum(n * math.prod(a.shape(m)) * min(a.shape(m)) for m, n in passes.places(work.config, a))
    return float(each * sum(hasattr(c.settings, "rank") for c in candidates))


def _steps(tuned: Iterable[Pass], config: RunConfig) -> int:
    """Forward and backward passes of a micro-batch."""
    rows = min(config.tune.micro_batch, config.tune.batch_size)
    return sum(math.ceil((p.forward or 0) / rows) for p in tuned)


def _judged(
    work: Work, candidates: Sequence[Candidate], read: list[Pass], written: int, plans: Sequence[benchmarks.Plan]
) -> Parts | None:
    """Batches of requests, resamples of items, tokens that are written one after the other."""
    config, models = work.config, 2 + len(candidates) * len(work.config.run_seeds)
    size = config.evaluate.batch_size
    rows = size if isinstance(size, int) else 1
    items = sum(work.counts[name].test or 0 for name in config.suites)
    requests = sum(plan.requests or 0 for plan in plans)
    parts = {
        "once": 1.0,
        "batches": float(sum(math.ceil((p.forward or 0) / rows) for p in read)),
        "resampled": float(items * config.evaluate.resamples * models),
        "written": float(requests * written * models),
    }
    return _joined(parts, read)


# -- data ------------------------------------------------------------------------------------------------


def _lengths(
    tasks: Mapping[str, data.Task], teacher: Checkpoint, student: Checkpoint, config: RunConfig
) -> Callable[[str | None, str, str, int], tuple[int, bool]]:
    """Mean tokens of an example, from some of each split; a benchmark's questions count as long as tuning's may be."""

    @cache
    def counted(name: str, split: str, model: str, limit: int) -> tuple[int, bool]:
        loaded = teacher if model == "teacher" else student
        longest = min(limit or loaded.architecture.context, loaded.architecture.context)
        if split == passes.BENCHMARK or name not in tasks:
            return min(longest, config.tune.max_length), True
        task = tasks[name]
        return min(longest, _mean(tuple((task.split(split) or task.train)[:SAMPLED]), loaded.folder)), False

    def length(name: str | None, split: str, model: str, limit: int) -> tuple[int, bool]:
        found = [counted(n, split, model, limit) for n in ((name,) if name else config.task)]
        return round(sum(f[0] for f in found) / len(found)), any(f[1] for f in found)

    return length


@lru_cache(maxsize=256)
def _mean(examples: tuple[data.Example, ...], folder: Path) -> int:
    file = folder / "tokenizer.json"
    count = counter(file, file.stat().st_mtime_ns if file.is_file() else 0)
    frame = TEMPLATE[any(folder.glob("chat_template.*"))]
    return round(sum(count(text_of(e)) for e in examples) / max(1, len(examples))) + frame
