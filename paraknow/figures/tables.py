"""From the rows of evaluate/deltas.json to frames that figures and pages read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from paraknow.evaluate import words

GROUPS = {
    "known": "facts both models know",
    "shown": "facts in the fine-tuning set",
    "never_shown": "facts nobody showed the student",
    "all": "all items",
}
GIVEN = {
    "examples": "examples",
    "steps": "optimiser steps",
    "trainable": "trained parameters",
    "added": "added parameters",
    "teacher_flops": "the teacher's compute",
    "student_flops": "the student's compute",
}
_PAIRS = {f"{name}ci": (f"{name}lo", f"{name}hi") for name in ("", "delta_", "bits_", "share_")}
_NUMBERS = "n accuracy delta p_mcnemar p_holm gained lost loss bits share".split()


def kinds(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Every model's part in the comparison: teacher, student, examined, baseline or control, in table order."""
    controls = {entry["control"] for row in rows for entry in row.get("against") or ()}
    labels = dict.fromkeys(row["model"] for row in rows)
    made: dict[str, str] = {}
    for label in labels:
        if label in ("teacher", "student"):
            made[label] = label
        elif label in controls or "+" in label:
            made[label] = "control"
        else:
            made[label] = "baseline" if "examined" in made.values() else "examined"
    return made


def deltas_frame(rows: Sequence[dict[str, Any]], titles: dict[str, str] | None = None) -> pd.DataFrame:
    """One line per model, suite and group with intervals as two columns each; what a row lacks is missing.

    `titles` gives models their names in figures (column `title`); controls are marked as such.
    """
    parts = kinds(rows)
    lines = []
    for row in rows:
        kind = parts[row["model"]]
        line: dict[str, Any] = {k: row.get(k) for k in ("suite", "group", "model")}
        title = (titles or {}).get(row["model"], row["model"])
        line |= {"kind": kind, "title": f"{title} (control)" if kind == "control" else title}
        line |= {name: row.get(name) for name in _NUMBERS}
        for source, names in _PAIRS.items():
            line |= dict(zip(names, row.get(source) or (None, None), strict=True))
        line |= {"seeds": row.get("seeds", 1), "claim": row.get("claim"), "share_missing": row.get("share_missing")}
        line |= {"detectable": words.hidden_below(row), "reading": row.get("reading") or words.reading(row)}
        lines.append(line)
    frame = pd.DataFrame(lines)
    numeric = [*_NUMBERS, "detectable", *(name for pair in _PAIRS.values() for name in pair)]
    if len(frame):
        frame[numeric] = frame[numeric].apply(pd.to_numeric, errors="coerce")
    return frame


def panel_title(suite: str, group: str) -> str:
    """What a suite's group is, for a chart's heading."""
    return suite if group == "all" else f"{suite}: {GROUPS.get(group, group)}"


def leading(panel: pd.DataFrame) -> pd.DataFrame:
    """What a claim is read from, of one suite and group: teacher, examined method, best baseline, best control.

    At a tie the model that was moved is taken, which says more than the one that was not.
    """
    found = [panel[panel.kind == "teacher"], panel[panel.kind == "examined"]]
    for kind in ("baseline", "control"):
        others = panel[(panel.kind == kind) & panel.accuracy.notna()]
        found.append(others.assign(moved=others.model != "zero").sort_values(["accuracy", "moved"]).tail(1))
    return pd.concat(found)[panel.columns]


def select(
    frame: pd.DataFrame,
    suites: Sequence[str] = (),
    groups: Sequence[str] = (),
    models: Sequence[str] = (),
    apart: bool = False,
    claims: bool = False,
) -> pd.DataFrame:
    """Those lines that are of the named suites, groups and models (nothing named: all); `apart`: whose interval of the
    difference does not hold 0; `claims`: that lie above the student and every control."""
    kept = pd.Series(True, index=frame.index)
    for column, wanted in (("suite", suites), ("group", groups), ("model", models)):
        if wanted:
            kept &= frame[column].isin(list(wanted))
    if apart:
        kept &= (frame.delta_lo > 0) | (frame.delta_hi < 0)
    if claims:
        kept &= frame.claim.eq(True)
    return frame[kept]


ORDERS = ("kind of model", "value", "name")


def ordered(frame: pd.DataFrame, by: str, value: str) -> pd.DataFrame:
    """Lines by kind of model (as the run has them, controls last), by `value` (largest first, missing last) or by name.

    Raises ValueError for another order.
    """
    if by not in ORDERS:
        raise ValueError(f"order {by!r}: choose of {', '.join(ORDERS)}.")
    if by == "name":
        return frame.sort_values("title", key=lambda t: t.str.casefold(), kind="stable")
    if by == "value":
        return frame.sort_values(value, ascending=False, na_position="last", kind="stable")
    return frame.sort_values("kind", key=lambda k: k == "control", kind="stable")


def by_model(found: pd.DataFrame) -> pd.DataFrame:
    """One line per model of tune/budgets.parquet: means over seeds; `more` in words, empty where it got no more than
    the examined method in any seed."""
    order = list(dict.fromkeys(found.model))
    means = found.groupby("model")[list(GIVEN)].mean().reindex(order)
    said = []
    for model in order:
        parts = dict.fromkeys(str(p) for more in found[found.model == model].more for p in more)
        said.append(", ".join(GIVEN.get(p, p) for p in parts))
    return means.assign(more=said).reset_index()
