"""What a run needs in memory, stage by stage and part by part, from sizes and settings alone (no torch).

Every stage holds both models. What it holds beside them is counted here as it is at the stage's peak; where two things
are held one after the other, the larger one counts. docs/memory.md says what was measured. Sizes are bytes.

Notation: L layers, d hidden size, f FFN size, q = h·e query width, k = g·e key and value width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from paraknow.architecture import Architecture
from paraknow.checkpoints import BYTES, Checkpoint
from paraknow.config import CPU_BATCH, EMBEDDING, MODULES, STITCHED_ROWS, RunConfig
from paraknow.data import Example, Task
from paraknow.locate import needs
from paraknow.methods.base import Candidate
from paraknow.passes import NOTHING_READ

LONGEST = 8  # examples whose tokens are counted
# What torch, transformers and their like hold for themselves: of a GPU, CUDA's context and its kernels (assumed); of
# host memory, what `python -m benchmarks.memory` prints for a process that has imported what the stages need (400 MiB)
# and for what is left when a stage is over: buffers for products and tables, room on the heap (60 MiB).
LIBRARIES = {"cuda": 600 * 2**20, "cpu": 460 * 2**20}
RELOADING = {"cuda": 600 * 2**20, "cpu": 280 * 2**20}  # of the fresh process that imports torch, transformers and peft
TEMPLATE = {False: 8, True: 64}  # tokens that a prompt's frame adds, by whether it is a chat template


@dataclass(frozen=True)
class Parts:
    """Where the memory of one stage goes, in bytes.

    accumulators: sensitivities summed over seeds. optimizer: adapters, their gradients and AdamW's states. kept:
    outputs kept for comparing, keys and values of generated text, what a method keeps. other: work space of steps.
    libraries: what torch and its like hold for themselves.
    """

    weights: int = 0
    gradients: int = 0
    accumulators: int = 0
    activations: int = 0
    optimizer: int = 0
    kept: int = 0
    other: int = 0
    libraries: int = 0

    @property
    def total(self) -> int:
        return sum(self.named().values())

    def named(self) -> dict[str, int]:
        return asdict(self)

    def largest(self) -> dict[str, int]:
        """The parts by size, largest first."""
        return dict(sorted(self.named().items(), key=lambda part: -part[1]))

    def plus(self, **more: int) -> Parts:
        """The same with so many bytes more in some parts."""
        return replace(self, **{name: getattr(self, name) + value for name, value in more.items()})


@dataclass(frozen=True)
class Lengths:
    """Tokens of the longest sequence that locating, comparing, tuning and evaluating read, and of the longest answer
    that tuning learns."""

    locate: int
    similarity: int
    tune: int
    evaluate: int
    answer: int


@dataclass(frozen=True)
class Need:
    """What a run needs: parts of every stage on the device, bytes in host memory where the device is a GPU, and bytes
    of files that sensitivities are summed in."""

    stages: dict[str, Parts]
    host: dict[str, int]
    disk: dict[str, int] = field(default_factory=dict)

    @property
    def totals(self) -> dict[str, int]:
        return {stage: parts.total for stage, parts in self.stages.items()}


@dataclass(frozen=True)
class Case:
    """What a run's memory depends on beside its settings. generated: longest text a benchmark lets a model write, in
    tokens. asked: whether there are benchmarks. Tasks that are not in `tasks` count as long as settings allow."""

    teacher: Checkpoint
    student: Checkpoint
    candidates: Sequence[Candidate]
    device: str
    tasks: Mapping[str, Task]
    generated: int = 0
    asked: bool = False
    _counted: dict[Any, int] = field(default_factory=dict)

    @property
    def pair(self) -> tuple[Checkpoint, Checkpoint]:
        return self.teacher, self.student

    def need(self, config: RunConfig) -> Need:
        """Parts of every stage at its peak under these settings."""
        lengths, base = self.lengths(config), self._base(config)
        rest = {name: base for name in ("load", "locate", "similarity", "align", "tune", "evaluate")}
        rest["load"] = self._loading(config, base)
        ways = []
        for n, a in enumerate(m.architecture for m in self.pair):
            layer = _layer(a, BYTES[config.dtype], lengths.locate)
            ways.append(needs.located(self, base, config, n, lengths.locate, layer))
        if config.locate.layers == "matched":
            only = config.similarity.model_copy(update={"parts": ("stitching",)})
            ways.append(_compared(self, base, config.model_copy(update={"similarity": only}), lengths))
        rest["locate"] = max(ways, key=lambda p: p.total)
        rest["similarity"] = _compared(self, base, config, lengths)
        rest["align"] = _aligned(self, base, config, lengths)
        rest["tune"] = _tuned(self, base, config, lengths)
        rest["evaluate"] = _evaluated(self, base, config, lengths)
        disk = max(needs.sums(self, config, n)["disk"] for n in (0, 1))
        return Need(rest, self._host(config) if self.device == "cuda" else {}, {"locate": disk} if disk else {})

    def requests(self, config: RunConfig) -> int:
        """Requests that evaluating puts through a model at once."""
        asked = config.evaluate.batch_size
        if asked == "auto":
            asked = CPU_BATCH if self.device == "cpu" else 1  # on a GPU lm-eval looks for what fits
        if self.asked or not all(name in self.tasks for name in config.suites):
            return asked
        known = sum(len(e.choices or (1,)) for name in config.suites for e in self.tasks[name].test)
        return min(asked, max(1, known))

    def waits(self, config: RunConfig, number: int) -> bool:
        """Whether layers of the teacher (0) or the student (1) may wait elsewhere."""
        return (config.placement.teacher, config.placement.student)[number] != "device"

    def resident(self, config: RunConfig, number: int) -> int:
        """Bytes of a model's weights that are always on the device; with a layer at work and one brought back for its
        gradient, where the others wait elsewhere."""
        model, width = self.pair[number], BYTES[config.dtype]
        if not self.waits(config, number):
            return width * model.parameters
        layer = layer_size(model.architecture)
        return width * (model.parameters - (model.architecture.layers - 2) * layer)

    def _base(self, config: RunConfig) -> Parts:
        return Parts(weights=sum(self.resident(config, n) for n in (0, 1)), libraries=LIBRARIES[self.device])

    def _loading(self, config: RunConfig, base: Parts) -> Parts:
        """A model is whole in host memory before its layers go where they wait."""
        whole = [BYTES[config.dtype] * m.parameters - self.resident(config, n) for n, m in enumerate(self.pair)]
        return base.plus(weights=max(whole) if self.device == "cpu" else 0)

    def _host(self, config: RunConfig) -> dict[str, int]:
        """Host memory beside a GPU: what waits there, with its sensitivities, whole while it is loaded; the trained
        pair while an untrained one is compared."""
        width = BYTES[config.dtype]
        waiting = [width * m.parameters - self.resident(config, n) for n, m in enumerate(self.pair)]
        kept = [needs.sums(self, config, n)["host"] + needs.halves(m, config) for n, m in enumerate(self.pair)]
        whole = [width * m.parameters for m in self.pair]
        beside = sum(whole) if config.similarity.untrained and "cka" in config.similarity.parts else 0
        return {
            "load": sum(waiting) + max((w for n, w in enumerate(whole) if self.waits(config, n)), default=0),
            "locate": sum(waiting) + max(kept),
            "similarity": sum(waiting) + beside,
            "tune": sum(waiting) + (whole[1] if self.waits(config, 1) else 0),
        }

    def lengths(self, config: RunConfig) -> Lengths:
        """Tokens of the longest sequences under these settings."""

        def longest(names: Iterable[str], splits: Sequence[str], limit: int, answers: bool = False) -> int:
            return max(
                (
                    min(limit, model.architecture.context, self._tokens(name, split, model, answers) or limit)
                    for model in self.pair
                    for name in names
                    for split in splits
                ),
                default=1,
            )

        assumed = max(config.locate.max_length, config.tune.max_length)
        context = max(m.architecture.context for m in self.pair)
        whole = context if all(name in self.tasks for name in config.suites) else assumed
        asked = longest(config.suites, ("test",), whole)
        return Lengths(
            longest(config.located_on, ("train",), config.locate.max_length),
            longest(config.task, (config.similarity.split, "align"), config.similarity.max_length),
            longest(config.task, ("train", "align"), config.tune.max_length),
            max(asked, min(assumed, context)) if self.asked else asked,
            longest(config.task, ("train", "align"), config.tune.max_length, answers=True),
        )

    def _tokens(self, name: str, split: str, model: Checkpoint, answers: bool = False) -> int | None:
        """Tokens of the longest example of a split, or of its longest answer; None where the task's data are
        elsewhere."""
        if name not in self.tasks:
            return None
        key = (name, split, model.folder, answers)
        if key not in self._counted:
            every = self.tasks[name].split(split)
            texts = sorted((e.answer if answers else text_of(e) for e in every), key=len)[-LONGEST:]
            file = model.folder / "tokenizer.json"
            count = counter(file, file.stat().st_mtime_ns if file.is_file() else 0)
            frame = TEMPLATE[any(model.folder.glob("chat_template.*"))]
            self._counted[key] = max((count(text) for text in texts), default=1) + frame
        return self._counted[key]


def text_of(example: Example) -> str:
    turns = [text for _, text in example.messages]
    return "\n".join([*turns, max(example.choices or (example.answer,), key=len)])


@lru_cache(maxsize=8)
def counter(file: Path, _changed: int) -> Callable[[str], int]:
    """Counts a text's tokens; its bytes, which are more, where the file is no tokenizer that can be read."""
    from tokenizers import Tokenizer

    try:
        made: Any = Tokenizer.from_file(str(file))
    except Exception:  # the library has no error of its own; loading the model will say what is wrong
        return lambda text: len(text.encode())
    return lambda text: len(made.encode(text).ids)


def layer_size(a: Architecture) -> int:
    """Numbers in one layer's matrices."""
    return sum(prod(a.shape(module)) for module in MODULES)


def layers_size(a: Architecture) -> int:
    """Numbers in the matrices of all layers."""
    return a.layers * layer_size(a)


# -- stages ----------------------------------------------------------------------------------------------


def _layer(a: Architecture, width: int, rows: int) -> int:
    """Bytes that one layer keeps of `rows` tokens for its backward pass; norms work in float32."""
    query = a.heads * a.head_dim
    return rows * (2 * a.hidden * 4 + (4 * a.hidden + 4 * query + 4 * a.ffn) * width)


def _tuned_layer(a: Architecture, width: int, rows: int) -> int:
    """The same where only adapters are trained: a frozen matrix keeps nothing of what it reads, an adapter keeps it in
    float32, each a copy of its own where the weights are narrower. Their r numbers a token are left out."""
    query, inputs = a.heads * a.head_dim, 5 * a.hidden + a.heads * a.head_dim + a.ffn
    if width == 4:
        return 4 * rows * (4 * a.hidden + 4 * query + 4 * a.ffn)
    return rows * (2 * a.hidden * 4 + (4 * query + 3 * a.ffn) * width + 4 * inputs)


def _step(a: Architecture, width: int, rows: int) -> int:
    """Bytes that a layer works with on `rows` tokens at once, where nothing is kept for a backward pass."""
    query, key = a.heads * a.head_dim, a.kv_heads * a.head_dim
    return rows * (3 * a.hidden * max(width, 4) + max(3 * a.ffn, 4 * query + 3 * key) * width)


def _compared(case: Case, base: Parts, config: RunConfig, lengths: Lengths) -> Parts:
    """Rows of a batch from both models, with the Gram matrices of a kind of output; then the maps for stitching; then
    singular values. On a GPU the trained pair waits in host memory while the untrained one is read."""
    settings, width, pair, device = config.similarity, BYTES[config.dtype], case.pair, case.device
    parts = set(settings.parts)
    known = [len(case.tasks[name].split(settings.split)) for name in config.task if name in case.tasks]
    examples = min(settings.examples, max(known)) if len(known) == len(config.task) else settings.examples
    batch = min(settings.batch_rows, examples)
    rows, stitched_rows = batch * settings.tokens, min(STITCHED_ROWS, examples * settings.tokens * len(config.task))
    kept, grams, streams, reading = [], 0, 1, 0
    for a in (m.architecture for m in pair):
        outputs = sum(a.shape(module)[0] for module in MODULES) + a.hidden
        kept.append(width * a.layers * rows * (outputs if "cka" in parts else a.hidden))
        grams += 3 * 4 * a.layers * batch**2
        streams *= a.layers
        reading = max(reading, _step(a, width, settings.forward_batch * lengths.similarity))
    ways = []
    if {"cka", "stitching"} & parts:
        joined = sum(kept) + sum(kept) // settings.tokens  # a batch is drawn from all of them
        streaming = 8 * 8 * streams * (settings.resamples + 2 * settings.permutations)
        stitched = stitched_rows * sum(m.architecture.layers * m.architecture.hidden for m in pair) * width
        first = base.plus(kept=joined + (stitched if "stitching" in parts else 0), activations=reading)
        if "cka" in parts:
            first = first.plus(other=grams + streaming)
            if settings.untrained and device == "cpu":
                made = max(width * m.parameters - case.resident(config, n) for n, m in enumerate(pair))
                first = first.plus(weights=base.weights + made)
        ways.append(first)
    if "stitching" in parts:
        ways.append(base.plus(kept=stitched, other=_stitching(pair, device, stitched_rows)))
    if {"weights", "interference"} & parts:
        largest = max(prod(m.architecture.shape(module)) for m in pair for module in MODULES)
        ways.append(base.plus(other=4 * 4 * largest))
    return max(ways, key=lambda p: p.total, default=base)


def _stitching(pair: Sequence[Checkpoint], device: str, rows: int) -> int:
    """Fits of one teacher layer to all student layers and their shuffled twins: float64 on a CPU, else float32."""
    teacher, student = (m.architecture for m in pair)
    width = 8 if device == "cpu" else 4
    targets = student.layers * student.hidden
    return width * rows * (9 * targets + 6 * teacher.hidden)


def _aligned(case: Case, base: Parts, config: RunConfig, lengths: Lengths) -> Parts:
    """The hungriest method: what it keeps, a copy of the student, singular vectors, a step where it reads examples."""
    a, ways = case.student.architecture, [base]
    vectors = 4 * 8 * max(prod(a.shape(module)) for module in MODULES)
    for method, settings in ((c.method, c.settings) for c in case.candidates if not c.control_of):
        kept = 4 * method.holds(*case.pair, settings) if method.holds else 0
        kept += BYTES[config.dtype] * case.student.parameters if method.copies else 0
        step = Parts() if method.name in NOTHING_READ else _step_of_tuning(case, config, lengths)
        ways.append(base.plus(kept=kept, other=vectors, activations=step.activations, optimizer=step.optimizer))
    return max(ways, key=lambda p: p.total)


def _step_of_tuning(case: Case, config: RunConfig, lengths: Lengths) -> Parts:
    """What a step of the adapters' training takes."""
    a, width = case.student.architecture, BYTES[config.dtype]
    rank = max((getattr(c.settings, "rank", 0) for c in case.candidates), default=0)
    trained = sum(rank * sum(a.shape(m)) * (1 if m in EMBEDDING else a.layers) for m in config.locate.selected())
    known = [case.tasks[name] for name in config.task if name in case.tasks]
    there = sum(len(task.train) for task in known) if len(known) == len(config.task) else config.tune.batch_size
    batch = min(config.tune.micro_batch, config.tune.batch_size, max(1, there))
    rows, answers = batch * lengths.tune, batch * lengths.answer
    # of all layers and the final norm; then, at the loss, logits of answers alone, their softmax, its gradient and what
    # that becomes, or after it what the last layer works with
    activations = a.layers * _tuned_layer(a, width, rows) + 2 * 4 * rows * a.hidden
    activations += max(4 * 4 * answers * a.vocabulary, _step(a, width, rows))
    # both twins, the gradient, two moments, the best state so far, and what a step of AdamW works with
    return Parts(optimizer=4 * 7 * trained, activations=activations)


def _tuned(case: Case, base: Parts, config: RunConfig, lengths: Lengths) -> Parts:
    """A step of training; afterwards a fresh process loads the student once more to check what was saved."""
    step = _step_of_tuning(case, config, lengths)
    reading = _step(case.student.architecture, BYTES[config.dtype], lengths.tune)
    again = base.plus(other=case.resident(config, 1), activations=reading, libraries=RELOADING[case.device])
    return max(base.plus(optimizer=step.optimizer, activations=step.activations), again, key=lambda p: p.total)


def _evaluated(case: Case, base: Parts, config: RunConfig, lengths: Lengths) -> Parts:
    """Logits of a batch and their softmax in float32; keys and values of text that is written."""
    width, asked, generated = BYTES[config.dtype], case.requests(config), case.generated
    ways = []
    for a in (m.architecture for m in case.pair):
        rows = asked * min(lengths.evaluate, a.context)
        logits = rows * a.vocabulary * (width + 4)
        kept = asked * kept_bytes(a, generated + lengths.evaluate, config.dtype) if generated else 0
        ways.append(base.plus(activations=max(logits, _step(a, width, rows)), kept=kept))
    return max(ways, key=lambda p: p.total)


def kept_bytes(a: Architecture, tokens: int, dtype: str) -> int:
    """Bytes of the keys and values of one sequence of so many tokens, at most the context."""
    return 2 * a.layers * a.kv_heads * a.head_dim * min(tokens, a.context) * BYTES[dtype]
