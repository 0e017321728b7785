"""What a transfer method is (no torch at import)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field

from paraknow.config import Locate, Part, Tune
from paraknow.progress import Progress, part, silent

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from paraknow.checkpoints import Checkpoint
    from paraknow.data import Encoded, Example
    from paraknow.locate.blocks import Block
    from paraknow.models import Loaded
    from paraknow.savepoint import Savepoint

Paradigm = Literal["post-align", "pre-align", "language-based", "control"]
Place = tuple[int, str]  # (student layer, module)


class NoSettings(Part):
    """A method without settings of its own."""


class RankSettings(Part):
    """Settings of methods that start a LoRA."""

    rank: int = Field(16, ge=1, le=65536, description="LoRA rank r; α = r. Seeking: 16.")


@dataclass
class Align:
    """What a method works from. `method` and `settings` are the examined method's, for controls.

    `blocks` are the located blocks, one per matrix of the student that takes part. `train` and `known` are the
    task's training and align splits (METHODS 4.3: align text holds only what both models know); no method sees the
    test split. `neurons` is the table locate/neurons.parquet, empty where neurons were left out, and
    `ffn_sensitivity` the table locate/ffn.parquet. `savepoint` is for `tune.fine_tune`; a method that calls it more
    than once gives each call one of its own (`part_of`).
    """

    teacher: Loaded
    student: Loaded
    blocks: list[Block]
    locate: Locate
    seed: int
    settings: Any
    method: Method
    train: tuple[Example, ...] = ()
    known: tuple[Example, ...] = ()
    tune: Tune = field(default_factory=Tune)
    neurons: pd.DataFrame | None = None
    ffn_sensitivity: pd.DataFrame | None = None
    progress: Progress = silent
    savepoint: Savepoint | None = None

    def part_of(self, name: str) -> Savepoint | None:
        """A savepoint for one of several tunings."""
        return self.savepoint.named(name) if self.savepoint else None

    def share(self, number: int, of: int) -> Align:
        """The same for one of several jobs that follow each other: its progress counts for a share of the whole."""
        return self.other(progress=part(self.progress, number * 1000, of * 1000, scale=1000))

    def other(self, **changes: Any) -> Align:
        """The same with one ingredient changed, as controls need it."""
        return replace(self, **changes)

    @property
    def pairs(self) -> list[int]:
        """The teacher layer that feeds each student layer, as locating chose it."""
        feeds = {b.student_layer: b.teacher_layer for b in self.blocks if b.module not in ("embed", "lm_head")}
        return [feeds[layer] for layer in range(self.student.architecture.layers)]

    def encode(self, examples: Sequence[Example], loaded: Loaded) -> list[Encoded]:
        """Examples as a model reads them, prompts cut from the left to tune.max_length and its context.

        Raises InputError where none keeps its answer.
        """
        from paraknow import data

        context = min(self.tune.max_length, loaded.architecture.context)
        return data.encode_all(examples, loaded.tokenizer, context, "aligning").items


@dataclass
class Start:
    """What a method makes for the untouched student: exactly one of `factors`, `matrices` and `decoder`.

    factors: B (out, r) and A (r, in) per (student layer, module). `tuned`: whether fine-tuning follows. If so, the
    start is the student's own function exactly: B·A is subtracted again by a frozen twin. If not, B·A itself is the
    transferred change.
    matrices: whole weights (out, in) that take the place of the student's. FFN matrices may have more neurons than
    the student's, as many in every layer (gate, up and down of all layers are then given): a checkpoint.
    decoder: values for the method's `decode`, which mixes both models' logits and changes no weights.

    examples, steps, trainable: what making it used of its own: examples whose answers it learned from, optimiser
    steps, parameters trained. `losses` are those steps' losses, `loss_layers` the student layer each was made on where
    layers are trained one after another (else empty), `table` rows worth keeping about them. `facts` are numbers worth
    keeping (residuals, norms).
    """

    factors: dict[Place, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    tuned: bool = True
    facts: dict[str, Any] = field(default_factory=dict)
    matrices: dict[Place, torch.Tensor] = field(default_factory=dict)
    decoder: dict[str, Any] | None = None
    examples: int = 0
    steps: int = 0
    trainable: int = 0
    losses: list[float] = field(default_factory=list)
    loss_layers: list[int] = field(default_factory=list)
    table: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Method:
    """One entry of the catalogue. `start(align)` makes the Start and may raise InputError.

    needs: in words, for the catalogue. check(teacher, student, settings): refuses, before the first stage and from
    headers alone, a pair or a setting that cannot work; raises InputError naming it and what can be used instead.
    locates: whether it works from what locating found, so that locating counts as its own cost. blocks: whether the
    located blocks themselves are what it moves. layerwise: whether it trains layer after layer, each on a loss of its
    own, so that its losses are one curve per layer.
    holds(teacher, student, settings): numbers that aligning keeps beside both models, for the memory estimate, which
    counts them as float32. copies: whether it works on a copy of the student besides.
    decode(teacher's logits, student's logits, values): the logits of a result that is a decoder.
    variants: a control's name → the method's own form of that control, where the common one does not fit it.
    """

    name: str
    title: str
    paradigm: Paradigm
    reference: str
    needs: tuple[str, ...]
    cost: str
    start: Callable[[Align], Start]
    settings: type[BaseModel] = RankSettings
    stands_alone: bool = False  # a control that is a model of its own ("zero"), not a variant ("seeking+noise")
    needs_clone: bool = False
    locates: bool = False
    blocks: bool = False
    layerwise: bool = False
    check: Callable[[Checkpoint, Checkpoint, Any], None] | None = None
    holds: Callable[[Checkpoint, Checkpoint, Any], int] | None = None
    copies: bool = False
    decode: Callable[[torch.Tensor, torch.Tensor, dict[str, Any]], torch.Tensor] | None = None
    variants: Mapping[str, Callable[[Align], Start]] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """One model of a run: its name in every table, the method that makes it and that method's settings."""

    label: str
    method: Method
    settings: Any
    control_of: str | None = None
