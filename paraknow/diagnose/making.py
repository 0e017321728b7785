"""Rules on how the run was carried out: its end, ranks, controls, reloading, budgets, warnings."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from paraknow.budget import SLACK
from paraknow.diagnose.evidence import Evidence, smaller_steps
from paraknow.diagnose.finding import Finding, NotChecked, Remedy, Rule


def unfinished(evidence: Evidence) -> list[Finding]:
    """status.json: whether the run came to its end."""
    status = evidence.need("status")
    state, stage = status.get("state"), status.get("stage")
    if state == "done" and "evaluate" in status.get("stages", []):
        return []
    if state in ("queued", "running"):
        return [
            Finding(
                "note",
                "The run is not finished",
                (
                    f"It is {state}{f', in its stage {stage}' if stage else ''}; "
                    "what is said here rests on what is there so far."
                ),
            )
        ]
    if state == "done":
        return [
            Finding(
                "blocking",
                "The run was never evaluated",
                "It was told to stop before its stage evaluate, so nothing says what was gained.",
                [],
                [Remedy("Go on with it: `paraknow run --resume ID`.")],
            )
        ]
    error = status.get("error")
    return [
        Finding(
            "blocking",
            (f"The run {'was cancelled' if state == 'cancelled' else 'is lost' if state == 'lost' else 'failed'}"),
            (
                f"It ended in its stage {stage or 'load'}"
                + (f": {error}" if error else ".")
                + " What it had finished is kept."
            ),
            [],
            (
                [
                    Remedy("Go on with it from there: `paraknow run --resume ID`, or the button on the Transfer page."),
                    *(smaller_steps(evidence) if isinstance(error, str) and "tuning:" in error else []),
                ]
            ),
        )
    ]


def rank_clipped(evidence: Evidence) -> list[Finding]:
    """The rank that was asked for against the one that every matrix got."""
    starts, asked = evidence.need("starts"), evidence.need("ranks")
    got = starts[starts.model.isin(list(asked)) & starts["rank"].notna()]
    if got.empty:
        raise NotChecked("no model of this run has a rank.")
    clipped = got[got["rank"] < got.model.map(dict(asked))]
    if clipped.empty:
        return []
    rows = clipped.groupby(["model", "module"], sort=False)["rank"].agg(["min", "count"]).reset_index()
    least = int(clipped["rank"].min())
    return [
        Finding(
            "warning",
            "The rank was clipped",
            (
                f"{len(clipped)} of {len(got)} matrices got a smaller rank than was asked for (down to {least}), so "
                "models that should have the same budget do not."
            ),
            [
                {"model": m, "module": w, "asked": int(asked[m]), "got, at least": int(lo), "matrices": int(n)}
                for m, w, lo, n in rows.itertuples(index=False)
            ],
            [Remedy("A rank that fits every matrix.", {"method.rank": max(1, least)})],
        )
    ]


def control_same(evidence: Evidence) -> list[Finding]:
    """A control that starts as the method does, or that was measured and not held against it, tells nothing."""
    config = evidence.config
    if config is None:
        raise NotChecked(evidence.missing.get("config") or "this run holds no config.")
    if not config.controls:
        raise NotChecked("no control ran beside the method.")
    if (checks := evidence.table("checks")) is not None:
        named = list(dict.fromkeys(checks.loc[checks.same.eq(True), "model"]))
    else:
        own = [r for r in evidence.need("rows") if r.get("model") == evidence.examined]
        held = {a["control"] for r in own for a in r.get("against") or ()}
        there = {r.get("model") for r in evidence.rows or ()}
        named = [c for c in (f"{evidence.examined}+{name}" for name in config.controls) if c in there and c not in held]
    if not named:
        return []
    left = [c for c in config.controls if f"{evidence.examined}+{c}" not in named]
    return [
        Finding(
            "warning",
            "A control is the method itself",
            (
                f"{', '.join(named)} start{'s' * (len(named) == 1)} exactly as the method does, so it tells nothing "
                "and is left out of the claim"
                + (f"; what is left: {', '.join(left)}." if left else "; no control is left.")
            ),
            [],
            [Remedy("Other controls.", {"controls": list(dict.fromkeys([*left, "zero", "noise"]))})],
        )
    ]


def reloaded(evidence: Evidence) -> list[Finding]:
    """adapters/reload.json: results loaded afresh give the logits they gave in memory (inject.reload_check)."""
    found = evidence.need("reload").get("largest_difference")
    limits = (evidence.reload or {}).get("limit") or {}
    if not isinstance(found, dict) or not found:
        raise NotChecked("adapters/reload.json names no result.")
    values = {k: v for k, v in found.items() if isinstance(v, int | float)}
    wrong = {
        k: v
        for k, v in values.items()
        if not math.isfinite(v) or (isinstance(limits.get(k), int | float) and not v <= limits[k])
    }
    lacking = sorted({*_unchecked(evidence, values), *(found.keys() - values.keys())})
    if not wrong and not lacking:
        return []
    numbers = [{"result": k, "largest difference of logits": v, "limit": limits.get(k)} for k, v in values.items()]
    if wrong:
        said = f"Loaded afresh, {', '.join(wrong)} answer{'s' * (len(wrong) == 1)} differently: what was saved is not "
        said += "what was measured."
        return [
            Finding(
                "blocking",
                "What was saved does not reproduce the result",
                said,
                numbers,
                [Remedy("Keep the run folder, and make the run anew.")],
            )
        ]
    return [
        Finding(
            "warning",
            "Not every result was loaded afresh",
            (f"{', '.join(lacking)}: never checked by loading it in a process of its own."),
            numbers,
            [Remedy("`paraknow run --resume ID` goes through the check.")],
        )
    ]


def _unchecked(evidence: Evidence, found: dict[str, Any]) -> list[str]:
    """Models with weights that the check does not name."""
    starts = evidence.table("starts")
    if starts is None:
        return []
    made = {f"{m}/{int(s)}" for m, s in starts[["model", "seed"]].drop_duplicates().itertuples(index=False)}
    return sorted(made - set(found))


def budgets(evidence: Evidence) -> list[Finding]:
    """tune/budgets.parquet: what baselines were given beyond the examined method, and parameters that were added."""
    table = evidence.need("budgets")
    own = table[table.model == evidence.examined]
    if own.empty:
        raise NotChecked(f"tune/budgets.parquet does not name {evidence.examined}.")
    columns = ["examples", "steps", "trainable", "added", "teacher_flops", "student_flops"]
    grown = own[own.added > 0]
    beside = table[(table.model != evidence.examined) & ~table.model.astype(str).str.contains("+", regex=False)]
    less = [
        (str(m), [c for c in columns if c in part and part[c].mean() * SLACK < own[c].mean()])
        for m, part in beside[beside.model != "zero"].groupby("model", sort=False)
    ]
    less = [(m, names) for m, names in less if names]
    if grown.empty and not less:
        return []
    said = []
    if len(grown):
        said.append(
            f"{evidence.examined} added {int(grown.added.max()):,} parameters to the student, so part of a gain may be "
            "size"
        )
    if less:
        said.append(
            f"{evidence.examined} was given more than "
            + "; ".join(f"{m} ({', '.join(n.replace('_', ' ') for n in names)})" for m, names in less)
        )
    text = ". ".join(said)
    rows = table.drop_duplicates("model")
    return [
        Finding(
            "note",
            "The comparison is not even",
            (f"{text[0].upper()}{text[1:]}. Controls of the method were given the same."),
            [
                {
                    "model": r["model"],
                    **{c.replace("_", " "): float(r[c]) for c in columns if c in r and pd.notna(r[c])},
                }
                for r in rows.to_dict("records")
            ],
        )
    ]


def warned(evidence: Evidence) -> list[Finding]:
    """What the run itself warned of while it was carried out."""
    texts = list(dict.fromkeys(evidence.need("warnings")))
    if not texts:
        return []
    return [
        Finding(
            "note",
            "The run warned of something",
            (" ".join(texts[:10]) + (f" And {len(texts) - 10} more." if len(texts) > 10 else "")),
        )
    ]


RULES = (
    Rule("unfinished", "Did the run come to its end?", "It finished, evaluation included.", unfinished, "", "transfer"),
    Rule(
        "rank-clipped", "Did every matrix get the rank asked for?", "Every matrix got it.", rank_clipped, "", "transfer"
    ),
    Rule(
        "control-same",
        "Are the controls other models than the method?",
        "None starts as the method does.",
        control_same,
        "controls",
        "benchmarks",
    ),
    Rule(
        "reload",
        "Does what was saved give what was measured?",
        "Every result was loaded afresh and answered the same.",
        reloaded,
        "",
        "runs",
    ),
    Rule(
        "budgets",
        "Was everybody given the same?",
        "No baseline was given less, and no parameters were added.",
        budgets,
        "",
        "transfer",
    ),
    Rule("warned", "Did the run warn of anything?", "It warned of nothing.", warned, "", "transfer"),
)
