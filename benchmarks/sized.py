"""What one card is to manage at true sizes: extraction, attribution, CKA, a step of LaTen; seconds and memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from benchmarks.shapes import Work, task
from paraknow import config, data, memory, methods
from paraknow.config import Locate, Tune
from paraknow.errors import ParaKnowError
from paraknow.locate import needs
from paraknow.locate.blocks import Block, factor
from paraknow.locate.located import locate
from paraknow.locate.neurons import attribute
from paraknow.methods import _translate, laten
from paraknow.methods.base import Align, Candidate
from paraknow.models import Loaded, release
from paraknow.progress import Progress
from paraknow.similarity.activations import batches
from paraknow.similarity.cka import Stream
from paraknow.similarity.points import Points

Pair = tuple[Loaded, Loaded]
MODULES = ("v", "up", "down", "residual")
KEPT = 48 * 2**30  # bytes of outputs that comparing may keep at once
RANK, MICRO = 16, 4  # of the factors; examples in one forward pass of LaTen
RESAMPLES, PERMUTATIONS = 400, 20


class Late(Exception):
    """A part has used up its time."""


@dataclass(frozen=True)
class Part:
    """One thing to measure: `work(pair, how much, progress)` returns what is worth saying beside its seconds;
    `estimate(pair, how much)` the bytes it should need."""

    name: str
    work: Callable[[Pair, Work, Progress], str]
    estimate: Callable[[Pair, Work], int]
    seconds: float
    gib: float | None = None


def until(deadline: float) -> Progress:
    """Progress that breaks off what it is given to. Raises Late."""

    def report(step: int, total: int, message: str = "", **values: float) -> None:
        if time.monotonic() > deadline:
            raise Late

    return report


def measure(part: Part, pair: Pair, work: Work, seconds: float) -> dict[str, Any]:
    """Carry out a part, at most for so many seconds; a row for the table. Memory is what torch held on the device at
    once, both models included, and what it had taken of it."""
    device = pair[0].device
    cuda, notes, done = device.type == "cuda", "", False
    release()
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    began = time.monotonic()
    try:
        notes = part.work(pair, work, until(began + seconds))
        if cuda:
            torch.cuda.synchronize(device)
        done = True
    except Late:
        notes = f"broken off after {seconds:.0f} s"
    except (RuntimeError, ParaKnowError) as error:  # the other parts are to be measured all the same
        notes = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    took = time.monotonic() - began
    held, taken = (torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)) if cuda else (0, 0)
    fits = part.gib is None or held <= part.gib * 2**30
    return {
        "what": part.name,
        "seconds": round(took, 1),
        "limit": part.seconds,
        "GiB": round(held / 2**30, 1) if cuda else None,
        "reserved": round(taken / 2**30, 1) if cuda else None,
        "estimated": round(part.estimate(pair, work) / 2**30, 1),
        "GiB limit": part.gib,
        "held": done and took <= part.seconds and fits,
        "notes": notes,
    }


# -- the parts -----------------------------------------------------------------------------------------


def extraction(pair: Pair, work: Work, progress: Progress) -> str:
    """Sensitivities of both models, layers, all blocks, agreement and maps, as the stage makes them; all factors."""
    teacher, student = pair
    texts = task(teacher.architecture.vocabulary, work)
    settings = Locate(seeds=work.seeds, max_length=max(8, work.length), neurons="none")
    began = time.monotonic()
    found = locate(teacher, student, [texts], settings, progress=progress)
    between = time.monotonic()
    for number, block in enumerate(found.blocks):
        factor(block.cut(teacher.weight(block.module, block.teacher_layer)), min(RANK, *block.shape))
        progress(number + 1, len(found.blocks))
    return f"locating {between - began:.1f} s, {len(found.blocks)} factors {time.monotonic() - between:.1f} s"


def attribution(pair: Pair, work: Work, progress: Progress) -> str:
    """Exact scores of every neuron of both models on one seed."""
    count = 0
    for loaded in pair:
        texts = task(loaded.architecture.vocabulary, work)
        items = data.encode_all(texts.train[:1], loaded.tokenizer, work.length, "seeds").items
        count += sum(map(len, attribute(loaded, items, "exact", progress=progress).scores.values()))
    return f"{count} neurons"


def batch_rows(pair: Pair, work: Work) -> int:
    """Examples in a batch: as many as KEPT has room for, at most the default, in powers of two."""
    rows = 512
    while rows > 4 and kept_bytes(pair, rows * work.positions) > KEPT:
        rows //= 2
    return min(rows, work.texts)


def kept_bytes(pair: Pair, rows: int) -> int:
    """Bytes of so many rows of all outputs that are compared, of both models."""
    found = 0
    for loaded in pair:
        a = loaded.architecture
        widths = sum(a.hidden if module == "residual" else a.shape(module)[0] for module in MODULES)
        found += rows * a.layers * widths * loaded.model.dtype.itemsize
    return found


def cka(pair: Pair, work: Work, progress: Progress) -> str:
    """All layer pairs and four kinds of output, with intervals and nulls."""
    draw, length = torch.Generator().manual_seed(3), work.positions
    vocabulary = min(loaded.architecture.vocabulary for loaded in pair)
    ids = torch.randint(1, vocabulary, (work.texts, length), generator=draw).tolist()
    at = tuple(range(length))
    points = [Points(i, tuple(row), tuple(row), at, at, tuple(k + 1 for k in at)) for i, row in enumerate(ids)]
    teacher, student = (loaded.architecture.layers for loaded in pair)
    streams = {m: Stream(teacher, student, RESAMPLES, PERMUTATIONS) for m in MODULES}
    rows = batch_rows(pair, work)
    for batch in batches(*pair, points, rows, MODULES, progress=progress):
        for module, stream in streams.items():
            sides = (
                [side[(k, module)] for k in range(n)]
                for side, n in zip((batch.teacher, batch.student), (teacher, student), strict=True)
            )
            stream.add(*sides, batch.owners, batch.offsets)
            progress(0, 1)
    read = {stream.result().rows for stream in streams.values()}
    return f"{read.pop()} rows of each kind, {rows} a batch"


def align_of(pair: Pair, work: Work, progress: Progress) -> Align:
    """What LaTen starts from: located on one example, a batch of it and all others, one step."""
    teacher, student = pair
    texts, method = task(student.architecture.vocabulary, work), methods.get("laten")
    depth = teacher.architecture.layers / student.architecture.layers
    blocks = [
        Block("up", int(layer * depth), layer, "window", student.architecture.shape("up"), 0, 0)
        for layer in range(student.architecture.layers)
    ]
    settings = method.settings.model_validate({"extract_examples": 1, "align_examples": work.examples - 1, "steps": 1})
    tune = Tune(max_length=max(8, work.length), micro_batch=MICRO)
    return Align(
        *pair, blocks, Locate(), 0, settings, method, texts.train, texts.align, tune=tune, progress=progress
    )  # fmt: skip


def laten_step(pair: Pair, work: Work, progress: Progress) -> str:
    """Locate on one example in both models, take a step on the whole batch, score what came of it."""
    align, began = align_of(pair, work, progress), time.monotonic()
    examples = laten._examples(align)
    with _translate.frozen(pair[0].model), _translate.frozen(pair[1].model):
        scores = (
            laten.neuron_scores(pair[0], examples.teacher, "exact", (), progress),
            laten.neuron_scores(pair[1], examples.student, "exact", (), progress),
        )
        between = time.monotonic()
        moved = laten.counts(pair[1].architecture, align.settings.rate)
        found = _translate.train(align, list(laten.PAPER_MODULES), moved, examples, scores, progress)
    return (
        f"locating {between - began:.1f} s, step and scoring {time.monotonic() - between:.1f} s, "
        f"{found.examples} examples, {found.trainable / 1e6:.0f} M trained"
    )


# -- what they should need -----------------------------------------------------------------------------


def _need(pair: Pair, work: Work, stage: str, neurons: str) -> int:
    """Bytes of a stage by paraknow.memory, on a GPU, in bfloat16."""
    names = {"teacher": pair[0].checkpoint.spec, "student": pair[1].checkpoint.spec}
    asked = config.parse(
        {
            "pair": names,
            "task": "random",
            "method": {"name": "laten", "extract_examples": 1},
            "locate": {"seeds": work.seeds, "max_length": max(8, work.length), "neurons": neurons},
            "tune": {"max_length": max(8, work.length), "micro_batch": MICRO, "batch_size": work.examples},
            "dtype": "bfloat16",
        }
    )
    method = methods.get("laten")
    candidate = Candidate("laten", method, method.settings.model_validate({"extract_examples": 1}))
    case = memory.Case(pair[0].checkpoint, pair[1].checkpoint, [candidate], "cuda", {})
    return case.need(asked).totals[stage]


def _weights(pair: Pair) -> int:
    return sum(p.numel() * p.itemsize for loaded in pair for p in loaded.model.parameters())


def _for_cka(pair: Pair, work: Work) -> int:
    """Weights, the rows of a part, a batch of them, three sets of Gram matrices."""
    rows = batch_rows(pair, work)
    kept, layers = kept_bytes(pair, rows * work.positions), sum(loaded.architecture.layers for loaded in pair)
    return _weights(pair) + kept + kept // work.positions + 3 * 4 * layers * rows**2


def _for_one_seed(pair: Pair, work: Work) -> int:
    """Weights, the widened readout and the factors it is made from, three chunks of neurons × vocabulary."""
    lens = max(2 * 4 * prod(loaded.architecture.shape("lm_head")) for loaded in pair)
    return _weights(pair) + lens + 3 * 4 * needs.LENS["cuda"]


PARTS = (
    Part("extraction, 32 seeds", extraction, lambda p, w: _need(p, w, "locate", "none"), 60, 110),
    Part("exact attribution, 1 seed", attribution, _for_one_seed, 20),
    Part("CKA, 65,536 tokens", cka, _for_cka, 60),
    Part("LaTen step, 16 examples", laten_step, lambda p, w: _need(p, w, "align", "exact"), 20),
)
