"""Shared by the starts that peft makes from data: a few examples, batches of them, and their settings (no torch at
import). Known of all of them: peft takes the start from the base weights (EVA apart), so afterwards its
`disable_adapter` is no longer the student. We take the factors from a copy, and our frozen twin takes them off again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from paraknow.methods.base import Align, RankSettings

if TYPE_CHECKING:
    import torch

    from paraknow.data import Encoded, Example


class DataSettings(RankSettings):
    """Settings of starts that are made from examples."""

    examples: int = Field(
        32, ge=1, le=65536, description="Examples the start is computed from, drawn by the seed; 32 as for locating."
    )


def few(align: Align, examples: Sequence[Example]) -> list[Encoded]:
    """As many examples as the settings say, as the student reads them. Raises InputError where none is usable."""
    from paraknow import data

    return align.encode(data.sample(examples, align.settings.examples, align.seed), align.student)


def even_batches(items: Sequence[Encoded], most: int) -> list[list[Encoded]]:
    """As few batches of at most `most` items as will do, of equal size give or take one."""
    count = math.ceil(len(items) / most)
    return [list(items[i::count]) for i in range(count)]


def inputs(batch: Sequence[Encoded], align: Align) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask and labels (n, t) of a batch on the student's device."""
    import torch

    from paraknow.data import padded

    rows = padded(batch, align.student.tokenizer.pad_token_id or 0)
    names = ("input_ids", "attention_mask", "labels")
    return {name: torch.tensor(row, device=align.student.device) for name, row in zip(names, rows, strict=True)}


def forward(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits (n, t, V)."""
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
