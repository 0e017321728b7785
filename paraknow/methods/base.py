"""What a transfer method is (no torch at import)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field

from paraknow.config import Locate, Part

if TYPE_CHECKING:
    import torch

    from paraknow.locate.blocks import Block
    from paraknow.models import Loaded

Paradigm = Literal["post-align", "pre-align", "language-based", "control"]


class NoSettings(Part):
    """A method without settings of its own."""


class RankSettings(Part):
    """Settings of methods that start a LoRA."""

    rank: int = Field(16, ge=1, le=65536, description="LoRA rank r; α = r. Seeking: 16.")


@dataclass
class Align:
    """What a method works from. `method` and `settings` are the examined method's, for controls.

    `blocks` are the located blocks, one per matrix of the student that takes part.
    """

    teacher: Loaded
    student: Loaded
    blocks: list[Block]
    locate: Locate
    seed: int
    settings: Any
    method: Method

    def other(self, **changes: Any) -> Align:
        """The same with one ingredient changed, as controls need it."""
        return replace(self, **changes)


@dataclass
class Start:
    """Where tuning starts: factors B (out, r) and A (r, in) per (student layer, module).

    `tuned`: whether fine-tuning follows. If so, the start is the student's own function exactly: B·A is
    subtracted again by a frozen twin. If not, B·A itself is the transferred change.
    `facts` are numbers worth keeping (residuals, norms).
    """

    factors: dict[tuple[int, str], tuple[torch.Tensor, torch.Tensor]]
    tuned: bool = True
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """One entry of the catalogue. `start(align)` makes the Start and may raise InputError."""

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


@dataclass(frozen=True)
class Candidate:
    """One model of a run: its name in every table, the method that makes it and that method's settings."""

    label: str
    method: Method
    settings: Any
    control_of: str | None = None
