"""How a stage tells where it is: one call a step, which may raise Cancelled (no torch)."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called after each step of a stage. May raise `paraknow.errors.Cancelled`."""

    def __call__(self, step: int, total: int, message: str = "", **values: float) -> None:
        """`step` of `total` is done; `values` are numbers worth plotting (loss)."""


def silent(step: int, total: int, message: str = "", **values: float) -> None:
    """Progress for a caller who does not want any."""
