"""How much work a run would be, from sizes alone (no torch): examples read, optimiser steps, floating-point operations.

Costs as budget.py counts them: N a model's parameters without an untied embedding table; a token costs 2·N operations
forward, 2·N more where gradients flow back, and 2 more for every parameter that is trained. So a backward pass costs
twice the forward where everything is trained. Attention scores, SVDs and the scoring of neurons are left out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from paraknow.architecture import Architecture
from paraknow.checkpoints import Checkpoint
from paraknow.config import EMBEDDING, MODULES, Locate, RunConfig
from paraknow.data import Task
from paraknow.locate import groups
from paraknow.methods.base import Candidate

BENCHMARK = "benchmark"  # in a split's place, where a benchmark's questions are read: their length is assumed
LATEN_CHOOSING = 256  # align examples LaTen scores every step on


@dataclass(frozen=True)
class Counts:
    """Examples of one task by split; `requests`: what its test items ask of every model. None: unknown."""

    train: int | None
    align: int | None
    test: int | None
    requests: int | None

    @classmethod
    def of(cls, task: Task, limit: int | None) -> Counts:
        """Of a task that is here; test items are at most `limit` of every group, as evaluating takes them."""
        seen: Counter[str] = Counter()
        asked = []
        for example in task.test:
            seen[example.group] += 1
            if limit is None or seen[example.group] <= limit:
                asked.append(example)
        return cls(len(task.train), len(task.align), len(asked), sum(len(e.choices or (1,)) for e in asked))


@dataclass(frozen=True)
class Pass:
    """Sequences that one model reads in one stage for one purpose; `backward` of them with gradients.

    tokens: length of a sequence, `assumed` where its text cannot be read here. trained: parameters that get a gradient.
    groups: of layers that get their gradients one after the other, each with its share of the passes; `through`: the
    parameters that gradients flow through, summed over groups. None: all that are multiplied.
    """

    stage: str
    what: str
    model: str
    forward: int | None
    backward: int | None
    tokens: int
    assumed: bool
    trained: int
    multiplied: int
    groups: int = 1
    through: int | None = None

    @property
    def flops(self) -> float | None:
        """Operations, None where a count is unknown."""
        if self.forward is None or self.backward is None:
            return None
        through = self.multiplied if self.through is None else self.through
        ahead, back = 2.0 * self.multiplied, 2.0 * (through + self.trained)
        return self.tokens * (ahead * self.forward + back * (self.backward // self.groups))

    def row(self) -> dict[str, Any]:
        names = ("stage", "what", "model", "forward", "backward", "tokens", "assumed", "trained", "flops")
        return {name: getattr(self, name) for name in names}


# (task or None for all of them, split, model, limit; 0 for none) -> tokens of a sequence, whether that is assumed
Length = Callable[[str | None, str, str, int], tuple[int, bool]]


@dataclass(frozen=True)
class Work:
    """What passes are counted from."""

    config: RunConfig
    teacher: Checkpoint
    student: Checkpoint
    counts: dict[str, Counts]
    length: Length
    benchmarks: Mapping[str, int | None] = field(default_factory=dict)  # requests of each, None: unknown

    def total(self, split: str) -> int | None:
        """Examples of a split over the run's own tasks."""
        return _sum(getattr(self.counts[name], split) for name in self.config.task)

    def read(
        self,
        stage: str,
        what: str,
        model: str,
        forward: int | None,
        backward: int | None = 0,
        trained: int = 0,
        at: tuple[str | None, str, int] = (None, "train", 0),
    ) -> Pass:
        """One pass. `at`: the task, the split and the limit of its sequences."""
        loaded = {"teacher": self.teacher, "student": self.student}[model]
        tokens, assumed = self.length(at[0], at[1], model, at[2])
        return Pass(stage, what, model, forward, backward, tokens, assumed, trained, multiplied(loaded))


def multiplied(loaded: Checkpoint) -> int:
    """N: parameters that every token is multiplied with."""
    a = loaded.architecture
    return loaded.parameters - (0 if a.tied else a.vocabulary * a.hidden)


def _sum(values: Any) -> int | None:
    found = list(values)
    return None if any(v is None for v in found) else sum(found)


def _times(factor: int, value: int | None) -> int | None:
    return None if value is None else factor * value


def _at_most(limit: int, value: int | None) -> int:
    return limit if value is None else min(limit, value)


def places(config: RunConfig, student: Architecture) -> list[tuple[str, int]]:
    """(module, how many of them) of the student's matrices that take part."""
    return [(m, 1 if m in EMBEDDING else student.layers) for m in config.locate.selected()]


def lora_size(config: RunConfig, student: Architecture, rank: int) -> int:
    """Parameters of a LoRA of that rank on every matrix that takes part."""
    return sum(count * rank * sum(student.shape(m)) for m, count in places(config, student))


def steps_of(config: RunConfig, train: int | None) -> int | None:
    """Optimiser steps of fine-tuning, as tune.py takes them."""
    return None if train is None else config.tune.epochs * math.ceil(train / config.tune.batch_size)


# -- stages ----------------------------------------------------------------------------------------------


def located(work: Work) -> list[Pass]:
    """Sensitivity: one forward and one backward pass per seed, alone, for each group of layers; neurons: one more
    forward pass.

    With G groups, group i reached after b_i parameters of layers below it: 2·N·G forward, 2·Σ(N − b_i) where gradients
    flow, 2·P for the P parameters' own, and 2·Σ(layers − b_i) where layers are computed again.
    """
    settings, made = work.config.locate, []
    if settings.layers == "matched":
        made += _compared(work, "locate", "matching layers")
    for model, loaded in (("teacher", work.teacher), ("student", work.student)):
        for name in work.config.located_on:
            seeds, at = _at_most(settings.seeds, work.counts[name].train), (name, "train", settings.max_length)
            one = work.read("locate", "sensitivity", model, seeds, seeds, loaded.parameters, at)
            made.append(_in_groups(one, loaded, settings))
            if settings.neurons != "none":
                made.append(work.read("locate", "neurons", model, seeds, at=at))
    return made


def _in_groups(one: Pass, loaded: Checkpoint, settings: Locate) -> Pass:
    """The same passes for every group of layers."""
    sizes = (loaded.architecture, loaded.parameters)
    count = len(groups.split(groups.unit_sizes(*sizes), settings.groups))
    through = groups.flowed_through(loaded.architecture, multiplied(loaded), sizes[1], count, settings.checkpointing)
    forward, backward = _times(count, one.forward), _times(count, one.backward)
    return replace(one, forward=forward, backward=backward, groups=count, through=through)


def _compared(work: Work, stage: str, what: str) -> list[Pass]:
    settings, made = work.config.similarity, []
    for name in work.config.task:
        count = _at_most(settings.examples, getattr(work.counts[name], settings.split))
        at = (name, settings.split, settings.max_length)
        made += [work.read(stage, what, model, count, at=at) for model in ("teacher", "student")]
    return made


def compared(work: Work) -> list[Pass]:
    """Outputs of both models, of an untrained pair, and what the student reads of known text."""
    settings, made = work.config.similarity, []
    stitching = "stitching" in settings.parts and work.config.locate.layers != "matched"
    if "cka" in settings.parts or stitching:
        made += _compared(work, "similarity", "outputs")
    if "cka" in settings.parts and settings.untrained:
        made += _compared(work, "similarity", "outputs, untrained pair")
    if "interference" in settings.parts:
        known = _at_most(settings.examples, work.total("align"))
        made.append(work.read("similarity", "known text", "student", known, at=(None, "align", settings.max_length)))
    return made


def aligned(work: Work, candidate: Candidate, examined: Candidate) -> list[Pass] | None:
    """What making one model's start reads, once; None where that is not known of its method."""
    method = examined if follows(candidate) else candidate
    name = method.method.name
    if name in NOTHING_READ:
        return []
    return READ[name](work, method) if name in READ else None


def tuned(work: Work, candidate: Candidate, examined: Candidate) -> list[Pass]:
    """Fine-tuning that follows a start, once."""
    if not is_tuned(candidate, examined):
        return []
    rank = getattr((examined if follows(candidate) else candidate).settings, "rank", 1)
    seen, size = (
        _times(work.config.tune.epochs, work.total("train")),
        lora_size(work.config, work.student.architecture, rank),
    )
    at = (None, "train", work.config.tune.max_length)
    return [work.read("tune", candidate.label, "student", seen, seen, size, at)]


def evaluated(work: Work, candidates: Sequence[Candidate]) -> list[Pass]:
    """Requests of every model on every suite and benchmark; a decoder asks both models.

    Text that is generated counts as one sequence: what is written is read once, with its keys and values kept.
    """
    made, seeds = [], len(work.config.run_seeds)
    suites = [(work.counts[name].requests, (name, "test", 0)) for name in work.config.suites]
    suites += [(requests, (name, BENCHMARK, 0)) for name, requests in work.benchmarks.items()]
    for requests, at in suites:
        asked = [("teacher", "teacher", 1), ("student", "student", 1)]
        for c in candidates:
            asked += [(c.label, m, seeds) for m in (("teacher", "student") if c.method.decode else ("student",))]
        for label, model, times in asked:
            made.append(work.read("evaluate", label, model, _times(times, requests), at=at))
    return made


# -- what is known of the methods --------------------------------------------------------------------------

LIKE_THE_METHOD = ("noise", "random_window", "shuffled_teacher", "self")  # controls that change one ingredient
NOTHING_READ = ("seeking", "gaussian", "pissa", "olora", "zero", "oracle", "logit_fusion")
TUNED = ("seeking", "gaussian", "pissa", "olora", "eva", "corda", "lora_ga")


def follows(candidate: Candidate) -> bool:
    """Whether it is a control that does what the examined method does, one ingredient apart."""
    return candidate.control_of is not None and candidate.method.name in LIKE_THE_METHOD


def is_tuned(candidate: Candidate, examined: Candidate) -> bool:
    """Whether fine-tuning follows its start."""
    return (examined if follows(candidate) else candidate).method.name in TUNED


def _few(back: bool) -> Callable[[Work, Candidate], list[Pass]]:
    """Starts from a few training examples of the student's."""

    def read(work: Work, candidate: Candidate) -> list[Pass]:
        count = _at_most(candidate.settings.examples, work.total("train"))
        sizes = work.student.architecture
        size = sum(n * math.prod(sizes.shape(m)) for m, n in places(work.config, sizes))
        at = (None, "train", work.config.tune.max_length)
        return [work.read("align", candidate.label, "student", count, count if back else 0, size if back else 0, at)]

    return read


def _laten(work: Work, candidate: Candidate) -> list[Pass]:
    """Neurons located on a few examples by both models; steps through the student; every step scored."""
    settings, limit = candidate.settings, work.config.tune.max_length
    located_on = _at_most(settings.extract_examples, work.total("train"))
    batch, scored = settings.align_examples + 1, _at_most(LATEN_CHOOSING, work.total("align"))
    made = [
        work.read("align", f"{candidate.label}: neurons", model, located_on, at=(None, "train", limit))
        for model in ("teacher", "student")
    ]
    steps, at = settings.steps, (None, "align", limit)
    made.append(work.read("align", f"{candidate.label}: steps", "student", steps * batch, steps * batch, at=at))
    made.append(work.read("align", f"{candidate.label}: scores", "student", (steps + 1) * scored, at=at))
    return made


def _transport(work: Work, candidate: Candidate) -> list[Pass]:
    """Known text until there are enough tokens, read twice by both models (what layers read, what they put out).

    refit: the student reads it twice more for every layer after the first. learn, heal: steps on known text afterwards.
    """
    from paraknow.methods._carry import learnt_size

    settings, at = candidate.settings, (None, "align", work.config.tune.max_length)
    sizes, known, made = work.student.architecture, work.total("align"), []
    for model in ("teacher", "student"):
        tokens, _ = work.length(None, "align", model, at[2])
        count = _at_most(max(1, settings.rows // tokens), known)
        times = 2 * sizes.layers if settings.refit and model == "student" else 2
        made.append(work.read("align", candidate.label, model, times * count, at=at))
    batch = work.config.tune.batch_size
    for steps, doing, size in (
        (settings.learn, "training maps", learnt_size(work.teacher.architecture, sizes)),
        (settings.heal, "healing", sum(sizes.layers * math.prod(sizes.shape(m)) for m in MODULES)),
    ):
        if steps:
            seen = None if known is None else known * max(1, round(steps * batch / max(1, known)))
            made.append(work.read("align", f"{candidate.label}: {doing}", "student", seen, seen, size, at))
    return made


def _teaching(student_reads: int) -> Callable[[Work, Candidate], list[Pass]]:
    """Distillation: the student forward and back, the teacher forward, the plain student too where it is asked."""

    def read(work: Work, candidate: Candidate) -> list[Pass]:
        seen, at = _times(work.config.tune.epochs, work.total("train")), (None, "train", work.config.tune.max_length)
        size = lora_size(work.config, work.student.architecture, candidate.settings.rank)
        return [
            work.read("align", candidate.label, "student", _times(student_reads, seen), seen, size, at),
            work.read("align", candidate.label, "teacher", seen, at=at),
        ]

    return read


def _sft(work: Work, candidate: Candidate) -> list[Pass]:
    seen, sizes = _times(work.config.tune.epochs, work.total("train")), work.student.architecture
    size = sum(n * math.prod(sizes.shape(m)) for m, n in places(work.config, sizes))
    at = (None, "train", work.config.tune.max_length)
    return [work.read("align", candidate.label, "student", seen, seen, size, at)]


def _block_scales(work: Work, candidate: Candidate) -> list[Pass]:
    """What the scaled method reads, then the student forward and back on known text."""
    from paraknow.methods.block_scales import inner

    method, settings = inner(candidate.settings)
    own = Candidate(f"{candidate.label}: {method.name}", method, settings)
    split = candidate.settings.fit_on if work.total("align") else "train"
    seen = _times(candidate.settings.epochs, work.total(split))
    size = sum(count for _, count in places(work.config, work.student.architecture))
    at = (None, split, work.config.tune.max_length)
    scales = work.read("align", candidate.label, "student", seen, seen, size, at)
    return [*(aligned(work, own, own) or []), scales]


def _semalign(work: Work, candidate: Candidate) -> list[Pass]:
    """Layers scored by the teacher; then, layer after layer, the student forward and back and the teacher forward.

    Measured before a layer and after every epoch on as many examples as seeds. At most: layers that follow none are
    not trained.
    """
    settings, at = candidate.settings, (None, "train", work.config.tune.max_length)
    sizes, total = work.student.architecture, work.total("train")
    seeds = _at_most(work.config.locate.seeds, total)
    layers = min(sizes.layers, settings.layers or sizes.layers)
    seen = _times(layers * settings.epochs, total)
    measured = layers * (settings.epochs + 1) * seeds + (seeds if settings.map == "fitted" else 0)
    wanted = [m for m in work.config.locate.selected() if m in ("up", "down", "v", "o")]
    size = sum(settings.rank * sum(sizes.shape(m)) for m in wanted)
    return [
        work.read("align", f"{candidate.label}: layers", "teacher", seeds, seeds, at=at),
        work.read("align", candidate.label, "student", seen, seen, size, at),
        work.read("align", candidate.label, "teacher", seen, at=at),
        *(work.read("align", f"{candidate.label}: measured", m, measured, at=at) for m in ("teacher", "student")),
    ]


READ: dict[str, Callable[[Work, Candidate], list[Pass]]] = {
    "eva": _few(back=False),
    "corda": _few(back=False),
    "lora_ga": _few(back=True),
    "laten": _laten,
    "semalign": _semalign,
    "transport": _transport,
    "distillation": _teaching(1),
    "masked_distillation": _teaching(2),
    "sft": _sft,
    "block_scales": _block_scales,
}
