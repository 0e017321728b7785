"""SemAlign: the teacher's sublayer outputs, carried into the student's hidden space through the vocabulary, teach a
LoRA layer after layer (arXiv 2510.24208v1, its first version; METHODS 2.3).

What is learned from is made in `_semantics`, the training is in `_layerwise`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from paraknow.checkpoints import same_vocabulary
from paraknow.config import Part
from paraknow.errors import InputError
from paraknow.methods import _layerwise, _semantics
from paraknow.methods._semantics import Pairing
from paraknow.methods.base import Align, Method, Start
from paraknow.progress import part

if TYPE_CHECKING:
    from paraknow.checkpoints import Checkpoint

MODULES = ("up", "down", "v", "o")


class SemAlignSettings(Part):
    """SemAlign's settings."""

    rank: int = Field(16, ge=1, le=65536, description="LoRA rank r; α = r. SemAlign: 16.")
    epochs: int = Field(5, ge=1, le=10000, description="Passes over the training split for every layer. SemAlign: 5.")
    batch_size: int = Field(64, ge=1, le=65536, description="Examples per optimiser step. SemAlign: 64.")
    learning_rate: float = Field(3e-4, gt=0, le=1, description="AdamW's rate, constant. SemAlign: 3e-4.")
    layers: int | None = Field(
        None,
        ge=1,
        le=10000,
        description="How many teacher layers are followed, those of the largest gradient × activation. All by default; "
        "SemAlign: the critical ones.",
    )
    pairing: Literal["floor", "interpolate"] = Field(
        "floor",
        description="floor: student layer k follows teacher layer ⌊k·L_T/L_S⌋. interpolate: a mix of the two teacher "
        "layers around the depth k·L_T/L_S. SemAlign: floor.",
    )
    map: Literal["vocabulary", "fitted", "random_frame"] = Field(
        "vocabulary",
        description="How the teacher's outputs become the student's. vocabulary: through the pseudo-inverses of both "
        "models' output heads (one vocabulary needed). fitted: least squares on the seeds. random_frame: random "
        "directions in place of the pseudo-inverses, to see what the vocabulary adds. SemAlign: vocabulary.",
    )


# -- what is refused, what is kept -----------------------------------------------------------------------


def check(teacher: Checkpoint, student: Checkpoint, settings: SemAlignSettings) -> None:
    """Raises InputError: a map that needs one vocabulary where there are two, or more layers than the teacher has."""
    check_map(teacher, student, settings)
    if settings.layers is not None and settings.layers > teacher.architecture.layers:
        raise InputError(
            f"method.layers: {settings.layers} is more than the teacher's {teacher.architecture.layers} layers."
        )


def check_map(teacher: Checkpoint, student: Checkpoint, settings: SemAlignSettings) -> None:
    """Raises InputError: a map that needs one vocabulary where there are two."""
    if settings.map != "fitted" and not same_vocabulary(teacher, student):
        raise InputError(
            f"method.map: {settings.map} of method 'semalign' needs one vocabulary, and {teacher.spec} and "
            f"{student.spec} have different ones; use map: fitted, or the method seeking or laten."
        )


def holds(teacher: Checkpoint, student: Checkpoint, settings: SemAlignSettings) -> int:
    """Numbers in M and, in float64, in what it is made from: Gram matrices and their eigenvectors."""
    t, s = teacher.architecture.hidden, student.architecture.hidden
    return s * t + 4 * (s * t + 3 * max(s, t) ** 2 + _semantics.CHUNK * (s + t))


def _modules(align: Align) -> list[str]:
    found = [m for m in align.locate.selected() if m in MODULES]
    if not found:
        raise InputError(f"locate.modules: method 'semalign' trains {', '.join(MODULES)}, and none of them takes part.")
    return found


def plain_lora(align: Align, layers: Sequence[int], modules: Sequence[str]) -> Start:
    """LoRA of the named matrices that changes nothing yet: A (r, in) from N(0, 1/r²) by the seed, B (out, r) zero."""
    import torch

    student, rank = align.student, align.settings.rank
    generator, factors = torch.Generator().manual_seed(align.seed), {}
    for layer in layers:
        for module in modules:
            out, into = student.architecture.shape(module)
            if rank > min(out, into):
                raise InputError(
                    f"method.rank: {rank} is above the shorter side of the student's {module} matrix {(out, into)}."
                )
            a = torch.randn(rank, into, generator=generator) / rank
            factors[(layer, module)] = (torch.zeros(out, rank, device=student.device), a.to(student.device))
    return Start(factors, tuned=False)


# -- the method ------------------------------------------------------------------------------------------


def start(align: Align) -> Start:
    """A LoRA of up, down, v and o, trained layer after layer: the transferred change itself, not tuned again.

    `table`: one row per trained student layer, counted from 0: student_layer, teacher_layers (those it follows),
    first_loss and last_loss (of a batch of training examples), cos_before and cos_after (mean cos(h_k, h*) on training
    examples other than the seeds, where there are any; before: with all earlier layers trained).

    Raises InputError (no matrix or example to work from, a map that needs one vocabulary), RunError (scores or losses
    that are not finite).
    """
    return _start(align)


def _random(align: Align) -> Start:
    """The control `random_window` in SemAlign's form: targets point anywhere, for M is made of random frames."""
    return _start(align, how="random_frame")


def _shuffled(align: Align) -> Start:
    """The same teacher layers, none of them followed by its own student layer."""
    return _start(align, shuffled=True)


def _start(align: Align, how: str | None = None, shuffled: bool = False) -> Start:
    from paraknow import inject
    from paraknow.methods._teaching import read_back
    from paraknow.methods._translate import frozen

    settings, teacher, student = align.settings, align.teacher, align.student
    if how is None:
        how = settings.map
        check_map(teacher.checkpoint, student.checkpoint, settings)
    modules, texts = _modules(align), _semantics.read_texts(align, align.train)
    seeds, probe = _semantics.seeds_and_probe(texts, align.locate.seeds, align.seed)
    with frozen(teacher.model), frozen(student.model):
        most = student.architecture.layers * _layerwise.steps_of(settings, len(texts))
        whole = len(seeds) + most
        report = part(align.progress, 0, whole, "scoring the teacher's layers")
        scores = _semantics.layer_scores(teacher, [t.teacher for t in seeds], report)
        attributed = _semantics.best_layers(scores, settings.layers)
        sizes = (teacher.architecture.layers, student.architecture.layers)
        pairing = _semantics.pair(attributed, sizes, settings.pairing)
        if shuffled:
            pairing = _deranged(pairing, align.seed)
        m = _semantics.make_map(align, how, pairing, seeds)
        plain = plain_lora(align, sorted(pairing), modules)
        report = part(align.progress, len(seeds), whole, "aligning layer after layer", scale=most)
        with inject.attached(student, plain) as wrapped:
            pad = student.tokenizer.pad_token_id or 0
            learned = _layerwise.train(
                _layerwise.Aligner(align, wrapped, m, pairing, modules, pad), texts, probe, report
            )
            factors = read_back(wrapped, align, plain)
    facts: dict[str, Any] = {
        "map": how,
        "modules": modules,
        "attributed": attributed,
        "layer_scores": scores,
        "left_out": len(align.train) - len(texts),
        "cos_before": _mean(learned, "cos_before"),
        "cos_after": _mean(learned, "cos_after"),
    }
    if learned.stopped:
        facts |= {"stopped": learned.stopped, "kept_step": learned.kept_step}
    return Start(
        factors,
        tuned=False,
        facts=facts,
        examples=learned.examples,
        steps=learned.steps,
        trainable=sum(b.numel() + a.numel() for b, a in factors.values()),
        losses=learned.losses,
        loss_layers=learned.loss_layers,
        table=learned.table,
    )


def _deranged(pairing: Pairing, seed: int) -> Pairing:
    """Raises InputError where a single student layer is trained, which leaves nothing to permute."""
    from paraknow.methods.shuffled_teacher import derangement

    if len(pairing) < 2:
        raise InputError(
            "controls: shuffled_teacher needs at least two trained student layers; a larger method.layers is needed."
        )
    layers = sorted(pairing)
    return {layers[place]: pairing[layers[other]] for place, other in enumerate(derangement(len(layers), seed))}


def _mean(learned: _layerwise.Learned, name: str) -> float:
    return sum(row[name] for row in learned.table) / len(learned.table)


METHOD = Method(
    name="semalign",
    title="SemAlign (first version)",
    paradigm="pre-align",
    reference="arXiv 2510.24208v1",
    needs=("one vocabulary (not for map: fitted)",),
    cost="one backward pass of the teacher per seed; then, for every student layer, some epochs of training with a "
    "forward pass of the teacher beside every one of the student",
    start=start,
    settings=SemAlignSettings,
    layerwise=True,
    check=check,
    holds=holds,
    variants={"random_window": _random, "shuffled_teacher": _shuffled},
)
