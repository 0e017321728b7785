"""What one row of deltas.json says, in plain words. Only what was measured is said (no torch, no streamlit)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paraknow.evaluate import statistics

LIKELY = 0.05  # corrected p values above this may be chance


def reading(row: Mapping[str, Any]) -> str:
    """One row of `deltas.rows` in a sentence or two: the difference to the student, the controls, the share.

    Differences are in points (hundredths of the items) with their 95 % intervals. A gain counts where the interval
    lies above 0 against the student and every control; the controls that it is not above are named by the worst.
    Rows of older runs may lack keys: `detectable` is then computed, anything else is left unsaid.

    Returns: plain text; model labels in it are as given and not escaped.
    """
    if row.get("model") == "student":
        return "The student itself: what every difference is measured from."
    delta, bounds = row.get("delta"), row.get("delta_ci")
    if delta is None or bounds is None:
        return "The difference to the student is missing."
    if bounds[0] > 0:
        said = f"{_far(delta, bounds)} above the student ({_ends(*bounds)}){_controls(row)}{_chance(row)}."
    elif bounds[1] < 0:
        verb = "" if row.get("model") == "teacher" else "Forgets: "
        said = f"{verb}{_far(delta, bounds)} below the student ({_ends(-bounds[1], -bounds[0])}){_chance(row)}."
    else:
        said = f"No difference to the student that {_items(row)} can show{_hidden(row)}."
    return f"{said} {_share(row)}".strip()


def _controls(row: Mapping[str, Any]) -> str:
    if row.get("claim"):
        return " and above every control"
    held = [
        a
        for a in row.get("against") or ()
        if a.get("delta") is not None and a.get("delta_ci") and a["delta_ci"][0] <= 0
    ]
    if not held:
        return ", but not above every control" if row.get("claim") is False else ""
    worst = min(held, key=lambda a: a["delta"])
    than = "worse than" if worst["delta_ci"][1] < 0 else "no better than"
    more = f" and {len(held) - 1} more" if len(held) > 1 else ""
    name = worst["control"].rsplit("+", 1)[-1].replace("_", " ")
    difference = f"difference {_points(worst['delta'], worst['delta_ci'])}, {_ends(*worst['delta_ci'])}"
    return f", but {than} the {name} control ({difference}){more}"


def _chance(row: Mapping[str, Any]) -> str:
    p = row.get("p_holm")
    return f"; among all comparisons of the run this may be chance (corrected p {p:.2g})" if p and p > LIKELY else ""


def hidden_below(row: Mapping[str, Any]) -> float | None:
    """The row's `detectable`, computed for rows of older runs; None where it is missing (see `deltas.rows`)."""
    if "detectable" in row or row.get("seeds", 1) != 1:
        return row.get("detectable")
    n, gained, lost = (row.get(k) for k in ("n", "gained", "lost"))
    if not n or gained is None or lost is None:
        return None
    return statistics.detectable(n, (gained + lost) / n)


def _hidden(row: Mapping[str, Any]) -> str:
    known = hidden_below(row)
    if known is None:
        return ": too few for any difference" if "detectable" in row else ""
    return f": under {100 * known:.2g} points stays hidden"


def _share(row: Mapping[str, Any]) -> str:
    if row.get("model") == "teacher":  # all of it, by definition
        return ""
    if row.get("share") is not None and row.get("share_ci"):
        value, low, high = (f"{round(v, 2) + 0.0:.2f}".replace("-", "−") for v in (row["share"], *row["share_ci"]))
        return f"Of what only the teacher knew, {value} arrived ({low} to {high})."
    why = row.get("share_missing")
    return f"The share that arrived is missing: {why.replace('(-', '(−')}." if why else ""


def _items(row: Mapping[str, Any]) -> str:
    return f"{row['n']:,} item{'' if row['n'] == 1 else 's'}" if row.get("n") else "its items"


def _far(delta: float, bounds: list[float]) -> str:
    text = _points(abs(delta), bounds)
    return f"{text} point{'' if text == '1' else 's'}"


def _ends(low: float, high: float) -> str:
    return f"{_points(low, [low, high])} to {_points(high, [low, high])}"


def _points(value: float, bounds: list[float]) -> str:
    """Hundredths, with a decimal where the interval is narrower than two points, and a real minus."""
    digits = 0 if bounds[1] - bounds[0] >= 0.02 else 1
    return f"{round(100 * value, digits) + 0.0:.{digits}f}".replace("-", "−")
