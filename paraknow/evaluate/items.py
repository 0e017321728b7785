"""Items of a run, one line each, with what two models made of them: to search, to filter, to read (no torch)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from paraknow.errors import InputError

KEYS = ["task", "group", "doc_id"]
CHANGES = ("gained", "lost", "both right", "both wrong", "alike")
TEXTS = ("prompt", "target", "answer", "answer_reference")


def broken(items: pd.DataFrame) -> pd.DataFrame:
    """Items with a log-probability that no sound model gives: NaN, or infinite for the right answer; for a candidate
    NaN or +inf (−inf: the model holds it impossible). Text that was generated has none, and is not among them."""
    unscored = items.raw.notna() | items.note.notna()  # text was generated, or no candidate is right
    own = ~items.logprob.map(lambda x: x == x and abs(x) != math.inf)
    scored = items.candidate_logprobs.map(lambda xs: isinstance(xs, Sequence | np.ndarray))  # else missing
    others = scored.copy()
    others[scored] = items.candidate_logprobs[scored].map(lambda xs: any(x != x or x == math.inf for x in xs))
    return items[(own & ~unscored) | others]


def lines(items: pd.DataFrame, model: str, reference: str) -> pd.DataFrame:
    """One line per item that both models were asked; gained and lost ones first.

    Columns: task, group, doc_id, change, prompt, target, answer and answer_reference (of the first seed), correct and
    correct_reference (shares of seeds), logprob and logprob_reference (of the right answer, nats, mean over seeds),
    moved (their difference). change: gained where the model is right more often than the reference, lost where less
    often; both right, both wrong; alike where equally many seeds of both are right.
    Raises InputError for a model that the run does not have.
    """
    sides = {}
    for suffix, label in (("", model), ("_reference", reference)):
        own = items[items.model == label]
        if own.empty:
            known = ", ".join(map(str, dict.fromkeys(items.model)))
            raise InputError(f"model {label!r} is not in this run; it has {known}.")
        first_seed = own.sort_values("seed", kind="stable").drop_duplicates(KEYS).set_index(KEYS).answer
        means = own.groupby(KEYS, sort=False)[["correct", "logprob"]].mean()
        sides[label + suffix] = means.assign(answer=first_seed).add_suffix(suffix)
    first, second = sides.values()
    both = first.join(second, how="inner").reset_index()
    both["moved"] = both.logprob - both.logprob_reference
    both["change"] = _change(both.correct, both.correct_reference)
    texts = items[items.model == model].drop_duplicates(KEYS)[[*KEYS, "prompt", "target"]]
    found = both.merge(texts, on=KEYS, how="left")
    columns = ["change", "prompt", "target", "answer", "answer_reference"]
    columns += ["correct", "correct_reference", "logprob", "logprob_reference", "moved"]
    order = {change: place for place, change in enumerate(CHANGES)}
    found = found.sort_values("change", key=lambda c: c.map(order), kind="stable", ignore_index=True)
    return found[[*KEYS, *columns]]


def _change(own: pd.Series, other: pd.Series) -> pd.Series:
    change = pd.Series("alike", index=own.index)
    change[(own == other) & (own == 1)] = "both right"
    change[(own == other) & (own == 0)] = "both wrong"
    change[own > other] = "gained"
    change[own < other] = "lost"
    return change


def select(
    found: pd.DataFrame,
    search: str = "",
    changes: Sequence[str] = (),
    tasks: Sequence[str] = (),
    groups: Sequence[str] = (),
) -> pd.DataFrame:
    """Those lines whose prompt, target or answers hold every word of `search` (whatever its case), and that are of the
    named changes, tasks and groups; nothing named means all. Raises InputError for a change that is none, and for a
    task or group that no item has."""
    if bad := [c for c in changes if c not in CHANGES]:
        raise InputError(f"change {bad[0]!r}: choose of {', '.join(CHANGES)}.")
    for column, asked in (("task", tasks), ("group", groups)):
        there = list(dict.fromkeys(found[column].astype(str)))
        if bad := [a for a in asked if a not in there]:
            raise InputError(f"{column} {bad[0]!r}: the items are of {', '.join(there) or 'none'}.")
    kept = pd.Series(True, index=found.index)
    for column, wanted in (("change", changes), ("task", tasks), ("group", groups)):
        if wanted:
            kept &= found[column].isin(wanted)
    if words := search.casefold().split():
        text = found[list(TEXTS)].fillna("").astype(str).agg("\n".join, axis=1).str.casefold()
        for word in words:
            kept &= text.str.contains(word, regex=False)
    return found[kept].reset_index(drop=True)


def rank(target: str, candidates: Sequence[str], logprobs: Sequence[float]) -> int | None:
    """The place of the right answer among the candidates, 1 the most probable; ties count for it. None where it is
    not among them or its log-probability is no number."""
    own = next((p for c, p in zip(candidates, logprobs, strict=False) if c == target), math.nan)
    return None if own != own else 1 + sum(p > own for p in logprobs)
