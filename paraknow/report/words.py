"""What the numbers of a run say, in sentences. Only what was measured is said."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from paraknow.figures.tables import leading, panel_title

Mark = Callable[[str], str]


def _as_it_is(text: str) -> str:
    return text


def _score(line: pd.Series, interval: bool = True) -> str:
    if pd.isna(line.accuracy):
        return "was not measured"
    shown = f"{line.accuracy:.2f}"
    return f"{shown} [{line.lo:.2f}, {line.hi:.2f}]" if interval and pd.notna(line.lo) else shown


def answer(panel: pd.DataFrame, escape: Callable[[object], str] = str, strong: Mark = _as_it_is) -> str | None:
    """One suite and group in a sentence: the method, the best baseline, the best control, and the claim.

    `panel` is that part of tables.deltas_frame. `escape` is for titles, which users may have written; `strong` marks
    what matters most. None where no method was measured.
    """
    examined = panel[panel.kind == "examined"]
    if examined.empty:
        return None
    method, first = examined.iloc[0], leading(panel)
    parts = [f"{strong(escape(method.title))} scores {strong(_score(method))}"]
    for kind, words in (("baseline", "the best baseline, "), ("control", "the best control, ")):
        for _, best in first[first.kind == kind].iterrows():
            parts.append(f"{words}{escape(best.title.removesuffix(' (control)'))}, {_score(best)}")
    student = panel[panel.kind == "student"]
    if len(student):
        parts.append(f"the untouched student {_score(student.iloc[0])}")
    claims = {
        True: "above the student and every control",
        False: f"{strong('not')} above the student and every control",
    }
    claim = claims.get(method.claim, "no control ran beside it, so nothing can be claimed")
    where = panel_title(str(method.suite), str(method.group))
    return f"On {escape(where)} {'; '.join(parts)}: {claim}."


def headline(frame: pd.DataFrame) -> str:
    """The answer to the question the project asks, for one run (tables.deltas_frame)."""
    rows = frame[(frame.group == "never_shown") & (frame.kind == "examined")]
    if rows.empty:
        return "This run measured no facts that the student was never shown, so it cannot answer the question."
    claims = [c for c in rows.claim if c is not None]
    if not claims:
        return "No control ran beside the method, so this run cannot answer the question."
    if all(claims):
        return "In this run, yes: facts that nobody showed the student arrived, above every control."
    return "Not in this run: no fact that nobody showed the student can be seen to have arrived."
