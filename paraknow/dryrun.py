"""The dry run: what a config would do, with no weights and no data read from a hub.

Both models are built on torch's meta device, which holds shapes and no numbers, and compared with what config.json
says; blocks, ranks and what methods move are checked at their true sizes; memory, passes over the data and
floating-point operations are worked out (passes.py). A hub model whose config.json is not on this machine is looked up
in recipes/models.json. Counts that nobody knows stay unknown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from paraknow import checkpoints, checks, data, described, methods, operations, passes, recipes
from paraknow.architecture import Architecture, from_config
from paraknow.checkpoints import Checkpoint
from paraknow.config import MODULES, RunConfig
from paraknow.errors import InputError, ResourceError
from paraknow.evaluate import expected
from paraknow.files import scratch
from paraknow.fitting import Free, gib, refused
from paraknow.memory import Case, Need
from paraknow.methods.base import Candidate
from paraknow.passes import Counts, Work
from paraknow.recipes import Sizes
from paraknow.runs import timing, workload

SAMPLED = 200  # examples of a split whose tokens are counted

Rows = list[dict[str, Any]]


@dataclass
class DryRun:
    """models, blocks, methods, passes, beside: rows of tables. memory: peak bytes by stage; parts: what they are for.
    flops: passes of teacher and student, what is known of them. times: timing.Times as values. unknown: counts that
    are missing. notes: what to know before a real run.
    """

    models: Rows = field(default_factory=list)
    blocks: Rows = field(default_factory=list)
    methods: Rows = field(default_factory=list)
    passes: Rows = field(default_factory=list)
    beside: Rows = field(default_factory=list)
    memory: dict[str, int] = field(default_factory=dict)
    parts: dict[str, dict[str, int]] = field(default_factory=dict)
    flops: dict[str, float] = field(default_factory=dict)
    times: dict[str, Any] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    @property
    def stage_flops(self) -> dict[str, float | None]:
        """Operations of every stage, passes and all beside them; None where a count is unknown."""
        found: dict[str, float | None] = {}
        for row in (*self.passes, *self.beside):
            before, flops = found.get(row["stage"], 0.0), row["flops"]
            found[row["stage"]] = None if before is None or flops is None else before + flops
        return found


def dry_run(
    config: RunConfig, sizes: Mapping[str, Sizes] | None = None, tasks: dict[str, data.Task] | None = None
) -> DryRun:
    """Check a config at the true shapes of its models and work out what it needs.

    `sizes`: examples of tasks that cannot be read offline, by the task's name; by default what recipes say of them.
    `tasks`: those that were read before with the same seed, by name; further ones are added (points of a sweep).
    Raises InputError, as a real run would before its first stage, for everything but weights, memory and devices.
    """
    found, sizes = DryRun(), recipes.known_sizes() if sizes is None else sizes
    tasks = {} if tasks is None else tasks
    for name in config.all_tasks:
        if name not in tasks and not name.startswith("hub:"):
            tasks[name] = data.load_task(name, config.seed)
    candidates = methods.candidates(config)
    with TemporaryDirectory(prefix="paraknow-") as scratch:
        teacher, student = (
            _describe(found, name, spec, Path(scratch) / name)
            for name, spec in (("teacher", config.pair.teacher), ("student", config.pair.student))
        )
        _check(config, candidates, teacher, student)
        counts = {name: _counts(name, config, sizes.get(name), tasks, found) for name in config.all_tasks}
        plans = expected.plans(config)
        checks.check_benchmarks(plans, teacher, student, fetch=False)
        asked = {b.title: expected.requests(b, config, plans, sizes) for b in config.evaluate.benchmarks}
        found.unknown += [
            f"{b}: how many items it has (nothing is read from a hub)." for b, n in asked.items() if n is None
        ]
        work = Work(config, teacher, student, counts, _lengths(config, teacher, student, sizes, tasks), asked)
        found.blocks = _blocks(config, teacher.architecture, student.architecture)
        found.methods = [_moves(c, candidates[0], work) for c in candidates]
        _add_passes(found, candidates, work)
        generated = max((plan.generated for plan in plans), default=0)
        _add_memory(found, candidates, work, tasks, generated, bool(plans))
    return found


# -- models ----------------------------------------------------------------------------------------------


@lru_cache(maxsize=32)
def on_meta(text: str) -> tuple[dict[str, tuple[int, ...]], int]:
    """Shapes of every parameter, and their number, of the model that transformers builds from a config.json's text."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = json.loads(text)
    made = AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(made, trust_remote_code=False)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    return shapes, sum(math.prod(shape) for shape in shapes.values())


def _describe(found: DryRun, name: str, spec: str, scratch: Path) -> Checkpoint:
    """A model as far as its config.json tells, its shapes checked; one row of `models`."""
    values, folder, source = described.config_of(spec, scratch)
    a = from_config(values, f"model {spec!r}")
    kept = {k: v for k, v in values.items() if k not in ("architectures", "transformers_version", "auto_map")}
    try:
        shapes, parameters = on_meta(json.dumps(kept, sort_keys=True))
    except (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise InputError(f"model {spec!r}: no model can be built from its config.json ({error}).") from None
    _check_shapes(spec, a, shapes)
    if any(folder.glob("*.safetensors")):
        stored = checkpoints.find(str(folder)).parameters
        tied = a.vocabulary * a.hidden if a.tied else 0  # may be stored twice
        if stored not in (parameters, parameters + tied):
            raise InputError(f"model {spec!r}: {stored:,} parameters are stored, config.json gives {parameters:,}.")
    if source == "models.json":
        found.notes.append(f"{spec}: sizes from the shipped table, to be confirmed against its model card.")
    sizes = ("layers", "hidden", "ffn", "heads", "kv_heads", "head_dim", "vocabulary", "tied", "context")
    about = {"model": name, "spec": spec, "from": source, "family": a.family.name, "parameters": parameters}
    found.models.append(about | {size: getattr(a, size) for size in sizes})
    return Checkpoint(spec, folder, a, parameters, max(math.prod(shape) for shape in shapes.values()))


def _check_shapes(spec: str, a: Architecture, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises InputError where transformers' model has other matrices than the Architecture."""
    wanted = {
        f"{a.path(m, layer)}.weight": a.shape(m)
        for m in a.matrices
        for layer in (range(a.layers) if m in MODULES else (0,))
    }
    matrices = {name: shape for name, shape in shapes.items() if len(shape) > 1}
    for name in sorted({*wanted, *matrices}):
        if wanted.get(name) != matrices.get(name):
            raise InputError(
                f"model {spec!r}: {name} is {matrices.get(name, 'missing')} in the model that is built, and "
                f"{wanted.get(name, 'missing')} by its config.json."
            )


def _check(config: RunConfig, candidates: Sequence[Candidate], teacher: Checkpoint, student: Checkpoint) -> None:
    """What checks.check refuses, without weights, memory and devices."""
    checkpoints.check_blocks(teacher, student, config.locate)
    checks.check_ranks(list(candidates), student, config)
    if any(c.method.needs_clone for c in candidates):
        checks.check_clone(teacher, student)
    for candidate in candidates:
        if candidate.method.check:
            candidate.method.check(teacher, student, candidate.settings)


# -- data ------------------------------------------------------------------------------------------------


def _counts(name: str, config: RunConfig, sizes: Sizes | None, tasks: Mapping[str, data.Task], found: DryRun) -> Counts:
    """Examples of a task: counted where it is on this machine, else taken from `sizes`, else unknown."""
    limit = config.evaluate.limit
    if (task := tasks.get(name)) is not None:
        if name in config.task:
            checks.check_examples(task, config)
        return Counts.of(task, limit)
    known = sizes or Sizes()
    for split in ("train", "align", "test"):
        if getattr(known, split) is None:
            found.unknown.append(f"{name}: how many examples its {split} split has (nothing is read from a hub).")
    test = known.test if known.test is None or limit is None else min(limit, known.test)
    return Counts(known.train, known.align, test, None if test is None else test * known.choices)


def _lengths(
    config: RunConfig,
    teacher: Checkpoint,
    student: Checkpoint,
    sizes: Mapping[str, Sizes],
    tasks: Mapping[str, data.Task],
) -> passes.Length:
    """Mean tokens of an example, counted with the model's own tokenizer where task and tokenizer are here."""

    @cache
    def counted(name: str, split: str, model: str, limit: int) -> tuple[int, bool]:
        loaded, known = (teacher if model == "teacher" else student), sizes.get(name)
        longest = min(limit or loaded.architecture.context, loaded.architecture.context)
        if known is not None and known.tokens is not None:
            return min(known.tokens, longest), False
        if split == passes.BENCHMARK or name not in tasks or not (loaded.folder / "tokenizer_config.json").is_file():
            return min(longest, config.tune.max_length) if not limit else longest, True
        task = tasks[name]
        examples = data.sample(task.split(split) or task.train, SAMPLED, config.seed)
        return _mean(tuple(examples), loaded.folder, longest), False

    def length(name: str | None, split: str, model: str, limit: int) -> tuple[int, bool]:
        found = [counted(n, split, model, limit) for n in ((name,) if name else config.task)]
        return round(sum(f[0] for f in found) / len(found)), any(f[1] for f in found)

    return length


@lru_cache(maxsize=64)
def _mean(examples: tuple[data.Example, ...], folder: Path, longest: int) -> int:
    """Mean tokens of encoded examples; points of a sweep read the same ones."""
    items = data.encode_all(examples, _tokenizer(folder), longest, "dry run").items
    return round(sum(len(item.ids) for item in items) / len(items))


@lru_cache(maxsize=8)
def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


# -- what is moved ---------------------------------------------------------------------------------------


def _blocks(config: RunConfig, teacher: Architecture, student: Architecture) -> Rows:
    """One row per module: how many blocks, the teacher's matrix, the student's, what share of it moves."""
    rows = []
    for module, count in passes.places(config, student):
        full, shape = teacher.shape(module), student.shape(module)
        share = math.prod(shape) / math.prod(full)
        rows.append(
            {
                "module": module,
                "blocks": count,
                "teacher": full,
                "student": shape,
                "share": share,
                "rank_at_most": min(shape),
            }
        )
    return rows


def _moves(candidate: Candidate, examined: Candidate, work: Work) -> dict[str, Any]:
    """One row about a model the run makes: what is moved, parameters trained and added, examples, optimiser steps."""
    real = examined if passes.follows(candidate) else candidate
    what, trainable, added = _moved(real, work)
    train, follows = work.total("train"), passes.is_tuned(candidate, examined)
    return {
        "model": candidate.label,
        "method": candidate.method.name,
        "moves": what,
        "trainable": trainable,
        "added": added,
        "tuned": follows,
        "tuning_examples": train if follows else 0,
        "tuning_steps": passes.steps_of(work.config, train) if follows else 0,
        "seeds": len(work.config.run_seeds),
    }


def _moved(candidate: Candidate, work: Work) -> tuple[str, int | None, int]:
    """(in words, parameters trained, parameters added); None where it is not known of the method."""
    settings, t, s = candidate.settings, work.teacher.architecture, work.student.architecture
    places = passes.places(work.config, s)
    count = sum(n for _, n in places)
    name = candidate.method.name
    if name == "transport":
        from paraknow.methods._carry import learnt_size

        neurons = t.ffn if settings.mode == "swap" else settings.neurons
        extra = {"swap": t.ffn - s.ffn, "widen": settings.neurons}.get(settings.mode, 0)
        healed = sum(s.layers * math.prod(s.shape(m)) for m in MODULES) if settings.heal else 0
        learnt = learnt_size(t, s) if settings.learn else 0
        return (
            f"{neurons} FFN neurons in each of {s.layers} layers ({settings.mode})",
            max(healed, learnt),
            3 * extra * s.hidden * s.layers,
        )
    if name == "laten":
        from paraknow.methods.laten import PAPER_MODULES, counts

        moved = counts(s, settings.rate)
        wanted = [
            m for m in work.config.locate.selected() if m in (*PAPER_MODULES, *(("gate",) if settings.gate else ()))
        ]
        words = ", ".join(f"{n} {kind}" for kind, n in moved.items())
        return f"{words} neurons in each of {s.layers} layers", len(wanted) * t.hidden * (t.hidden + s.hidden), 0
    if name == "sft":
        return f"{count} whole matrices", sum(n * math.prod(s.shape(m)) for m, n in places), 0
    if name == "block_scales":
        return f"{count} numbers", count, 0
    if name in ("zero", "logit_fusion"):
        return "nothing", 0, 0
    if name == "oracle":
        return f"{s.layers * len(MODULES)} whole matrices", 0, 0
    if name == "semalign":
        wanted = [m for m in work.config.locate.selected() if m in ("up", "down", "v", "o")]
        size = s.layers * settings.rank * sum(sum(s.shape(m)) for m in wanted)
        return f"{len(wanted) * s.layers} matrices at rank {settings.rank}", size, 0
    if hasattr(settings, "rank"):
        return f"{count} blocks at rank {settings.rank}", passes.lora_size(work.config, s, settings.rank), 0
    return "not known of this method", None, 0


# -- work ------------------------------------------------------------------------------------------------


def _add_passes(found: DryRun, candidates: Sequence[Candidate], work: Work) -> None:
    made = [*passes.located(work), *passes.compared(work)]
    seeds = len(work.config.run_seeds)
    for candidate in candidates:
        own = passes.aligned(work, candidate, candidates[0])
        if own is None:
            found.unknown.append(f"{candidate.label}: what making its start reads.")
        made += [p for p in own or [] for _ in range(seeds)]
        made += [p for p in passes.tuned(work, candidate, candidates[0]) for _ in range(seeds)]
    made += passes.evaluated(work, candidates)
    found.passes = _joined(p.row() for p in made)
    found.beside = [b.row() for b in operations.beside(work, candidates)]
    found.flops = {
        model: sum(row["flops"] or 0.0 for row in found.passes if row["model"] == model)
        for model in ("teacher", "student")
    }
    if any(row["assumed"] for row in found.passes):
        found.notes.append(
            "Tokens: where text cannot be read here, sequences are taken as long as their stage lets them be "
            "(evaluation: tune.max_length)."
        )
    found.notes.append("Operations of passes leave out attention scores: docs/scale.md says how much that is.")


def _joined(rows: Iterable[dict[str, Any]]) -> Rows:
    """Equal passes (of several seeds) as one row."""
    same: dict[tuple, dict[str, Any]] = {}
    for row in rows:
        key = tuple(row[k] for k in ("stage", "what", "model", "tokens", "trained"))
        if key in same:
            for name in ("forward", "backward", "flops"):
                both = (same[key][name], row[name])
                same[key][name] = None if None in both else both[0] + both[1]
        else:
            same[key] = row
    return list(same.values())


def _add_memory(
    found: DryRun,
    candidates: Sequence[Candidate],
    work: Work,
    tasks: Mapping[str, data.Task],
    generated: int,
    asked: bool,
) -> None:
    config = work.config
    try:
        free, device = Free.now(config.device), ""
    except ResourceError:
        free, device = None, config.device
    case = Case(work.teacher, work.student, candidates, free.device if free else device, tasks, generated, asked)
    need = case.need(config)
    found.memory, found.parts = need.totals, {stage: parts.named() for stage, parts in need.stages.items()}
    _add_times(found, case, config)
    stage, most = max(found.memory.items(), key=lambda item: item[1])
    where = f"{gib(free.bytes)} are free on {free.device} here" if free else "there is no such device here"
    found.notes.append(f"Memory: {stage} needs most, about {gib(most)}; {where}.")
    if elsewhere := [f"{gib(n)} {where}" for where, n in _beside(need) if n]:
        found.notes.append(f"Memory: locating needs {' and '.join(elsewhere)} too.")
    if free and (refusal := refused(config, case, free)):
        found.notes.append(str(refusal))


def _beside(need: Need) -> list[tuple[str, int]]:
    """Where else locating needs memory, and how much."""
    return [("in host memory", need.host.get("locate", 0)), (f"of files in {scratch()}", need.disk.get("locate", 0))]


def _add_times(found: DryRun, case: Case, config: RunConfig) -> None:
    """How long it would take here, where earlier runs tell and all tasks can be counted."""
    if set(config.all_tasks) - set(case.tasks):
        found.notes.append("Time is not known: a task's data are not here.")
        return
    counted = workload.stages(config, case.teacher, case.student, case.candidates, case.tasks)
    times = timing.estimate(config, counted)
    found.times = times.as_dict()
    found.notes.append(f"{times.words}" if times.why else f"Time: {times.words[:1].lower()}{times.words[1:]}")
