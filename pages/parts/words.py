"""What the numbers of a run say, as Markdown."""

from __future__ import annotations

import pandas as pd

from pages.parts.shell import escape
from paraknow.report import words

headline = words.headline


def answer(panel: pd.DataFrame) -> str | None:
    """One suite and group in a sentence; see paraknow.report.words."""
    return words.answer(panel, escape, "**{}**".format)
