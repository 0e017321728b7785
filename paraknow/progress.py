"""How a stage tells where it is: one call a step, which may raise Cancelled (no torch)."""

from __future__ import annotations

from typing import Protocol


def duration(seconds: float | None) -> str:
    """Seconds in words; – where they are not known."""
    if seconds is None:
        return "–"
    whole = max(0, round(seconds))
    if whole < 90:
        return f"{whole} s"
    return f"{whole / 60:.0f} min" if whole < 5400 else f"{whole / 3600:.1f} h"


class Progress(Protocol):
    """Called after each step of a stage. May raise `paraknow.errors.Cancelled`."""

    def __call__(self, step: int, total: int, message: str = "", **values: float) -> None:
        """`step` of `total` is done; `values` are numbers worth plotting (loss)."""


def silent(step: int, total: int, message: str = "", **values: float) -> None:
    """Progress for a caller who does not want any."""


class Beating:
    """Progress whose last report can be made again, so that a stage is cancelled within a long step too."""

    def __init__(self, progress: Progress):
        self.progress = progress
        self.last: tuple[int, int, str] = (0, 1, "")

    def __call__(self, step: int, total: int, message: str = "", **values: float) -> None:
        self.last = (step, total, message)
        self.progress(step, total, message, **values)

    def beat(self) -> None:
        """Nothing new, but still at it."""
        self.progress(*self.last)


def part(progress: Progress, before: int, whole: int, title: str = "", scale: int | None = None) -> Progress:
    """Progress of one part of a longer job: its steps are counted on from `before`, out of the job's `whole`.

    With `scale`, the part counts for that many steps however many it takes itself.
    """

    def report(step: int, total: int, message: str = "", **values: float) -> None:
        done = step if scale is None else round(scale * step / max(1, total))
        progress(before + done, whole, title or message, **values)

    return report
