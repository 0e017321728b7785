"""Rules on evaluate/items.parquet: what the right answer's place among the candidates says, and whether seeds agree."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from paraknow.diagnose.evidence import TARGETS, Evidence, longer, points, tuned
from paraknow.diagnose.finding import Finding, NotChecked, Remedy, Rule
from paraknow.evaluate import statistics
from paraknow.evaluate.deltas import bits_interval, item_bits

BOTH = 1 - 0.05 / 2  # level of each interval where two measures of the same items are tried
RESAMPLES = 1000  # of items: ends of intervals are then good to about 1 % of their width


def _asked(evidence: Evidence) -> pd.DataFrame:
    """Items of the student and the examined method on the run's own tasks, that both answered."""
    items = evidence.need("items")
    tasks = list(evidence.config.task) if evidence.config else []
    items = items[items.group.isin(TARGETS)]
    own = items[items.task.isin(tasks)]
    own = own if len(own) else items
    if own[own.model == evidence.examined].empty or own[own.model == "student"].empty:
        raise NotChecked(f"no items of {evidence.examined} and the student were kept.")
    return own


def _wide(items: pd.DataFrame, model: str, column: str) -> pd.DataFrame:
    """(items, seeds) of one column of one model."""
    own = items[items.model == model].drop_duplicates(["seed", "doc_id"])
    return own.pivot(index="doc_id", columns="seed", values=column)


def reciprocal_rank(candidates: Any, scores: Any, target: Any) -> float:
    """1/rank of the right answer among its candidates by log-probability; NaN where they do not fit together."""
    try:
        names, values = list(candidates), np.asarray(scores, dtype=float)
    except (TypeError, ValueError):
        return float("nan")
    if target not in names or len(names) != len(values) or not np.isfinite(values).all():
        return float("nan")
    return float(1 / (1 + (values > values[names.index(target)]).sum()))


def not_read_out(evidence: Evidence) -> list[Finding]:
    """Knowledge that arrived without changing the answer: bits or the rank of the right answer rose, accuracy did not.

    Bits: METHODS 4.3, the paired difference to the student. Reciprocal rank: the mean over items, paired bootstrap.
    A measure that rose counts as the teacher's only where it is above every control's, too.
    """
    asked = _asked(evidence)
    if "candidate_logprobs" not in asked or asked.candidate_logprobs.isna().all():
        raise NotChecked("these items have no candidates to rank the right answer among.")
    asked = asked.assign(
        place=[reciprocal_rank(*v) for v in zip(asked.candidates, asked.candidate_logprobs, asked.target, strict=True)]
    )
    numbers, judged = [], 0
    own: list[str] = []
    alike: list[str] = []
    controls = _controls(evidence)
    seed = evidence.config.seed if evidence.config else 0
    for (task, group), part in asked.groupby(["task", "group"], sort=False):
        sound = part.groupby("doc_id").place.transform(lambda p: p.notna().all())
        part = part[sound.astype(bool)]
        risen = _risen(part, evidence.examined, "student", seed)
        if risen is None:
            continue
        judged += 1
        accuracy, (bits, rank) = _accuracy(part, evidence.examined, seed), risen
        numbers += [
            {
                "on": f"{task}, {group}",
                "measure": name,
                "difference": round(v[0], 4),
                "from": round(v[1], 4),
                "to": round(v[2], 4),
            }
            for name, v in (("accuracy", accuracy), ("bits", bits), ("1 / rank of the right answer", rank))
        ]
        if accuracy[1] <= 0 <= accuracy[2] and (bits[1] > 0 or rank[1] > 0):
            held = [_risen(part, evidence.examined, control, seed) for control in controls]
            above = [v[1] > 0 and all(h is not None and h[k][1] > 0 for h in held) for k, v in enumerate(risen)]
            what = "bits" if (above[0] if any(above) else bits[1] > 0) else "the rank of the right answer"
            (own if any(above) else alike).append(f"{task}, {str(group).replace('_', ' ')} ({what})")
    if not judged:
        raise NotChecked("no item of these groups has candidates among which the right answer stands, for both models.")
    if not own and not alike:
        return []
    said = (
        "The right answer became likelier among its candidates, beyond chance, but is still not the first: "
        f"{'; '.join(own or alike)}. "
    )
    if not own:
        said += (
            "But the controls do the same, as far as these items can tell, so nothing says that what was moved helps."
        )
        return [Finding("note", "Likelier answers, as the controls give them too", said, numbers)]
    said += (
        f"More so than in {' and '.join(controls)}, without the teacher's knowledge. Accuracy alone does not see it."
        if controls
        else "Accuracy alone does not see it. No control but the student itself was held against it."
    )
    return [Finding("note", "Something arrived, but is not read out", said, numbers, _louder(evidence))]


def _controls(evidence: Evidence) -> list[str]:
    """Controls that the method is to be above, without `zero`, the student itself, and those that are the method."""
    named = [f"{evidence.examined}+{name}" for name in (evidence.config.controls if evidence.config else ())]
    checks = evidence.table("checks")
    same = set() if checks is None else set(checks.loc[checks.same.eq(True), "model"])
    there = set(evidence.need("items").model)
    return [name for name in named if name in there and name not in same]


def _louder(evidence: Evidence) -> list[Remedy]:
    if evidence.config is None or not tuned(evidence):
        return [Remedy("Let more of the teacher take part: more layers or neurons, or attention too.")]
    made = longer(evidence)
    if isinstance(rank := evidence.config.method.settings().get("rank"), int):
        made.append(Remedy("A larger rank.", {"method.rank": 2 * rank}))
    return made


def _common(part: pd.DataFrame, *models: str) -> tuple[pd.Index, list[pd.DataFrame]]:
    """Items with a place in all seeds of the models, and the models' places on them, (items, seeds)."""
    wide = [_wide(part, model, "place").dropna() for model in models]
    both = wide[0].index
    for other in wide[1:]:
        both = both.intersection(other.index)
    return both, [places.loc[both] for places in wide]


def _accuracy(part: pd.DataFrame, examined: str, seed: int) -> tuple[float, float, float]:
    """(difference, lo, hi) to the student in accuracy, on the items both have."""
    both, _ = _common(part, examined, "student")
    ours, theirs = (_wide(part, m, "correct").loc[both].to_numpy(bool).T for m in (examined, "student"))
    compared = statistics.compare(ours[0] if len(ours) == 1 else ours, theirs[0], seed, RESAMPLES)
    return compared.delta, compared.lo, compared.hi


def _risen(part: pd.DataFrame, examined: str, other: str, seed: int) -> tuple[tuple[float, float, float], ...] | None:
    """(difference, lo, hi) to another model in bits and in 1/rank, on the items both have; None where there are none.
    Seeds are paired where both have as many; else the other's mean over them counts."""
    both, places = _common(part, examined, other)
    if len(both) < 2:
        return None
    kept = part[part.doc_id.isin(both)]
    known = [item_bits(kept[kept.model == m].drop_duplicates(["seed", "doc_id"]), seed) for m in (examined, other)]
    if known[0] is None or known[1] is None:
        return None
    bits = _less(known[0], known[1])
    rank = _less(*(p.to_numpy().T for p in places))
    return (
        (float(bits.mean()), *(bits_interval(bits, RESAMPLES, seed, BOTH) or (float("nan"), float("nan")))),
        (float(rank.mean()), *statistics.paired_bootstrap(rank, seed, RESAMPLES, BOTH)),
    )


def _less(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return np.asarray(ours - (theirs if theirs.shape == ours.shape else theirs.mean(axis=0, keepdims=True)))


def seeds_disagree(evidence: Evidence) -> list[Finding]:
    """Two seeds of the method against each other on the same items: exact McNemar, corrected (Holm) over all pairs."""
    asked = _asked(evidence)
    own = asked[asked.model == evidence.examined]
    if own.seed.nunique() < 2:
        raise NotChecked("the method ran with one seed; name several under seeds.")
    numbers, pairs = [], []
    signs: list[str] = []
    for (task, group), part in asked.groupby(["task", "group"], sort=False):
        wide, student = (
            _wide(part, evidence.examined, "correct").dropna(),
            _wide(part, "student", "correct").iloc[:, 0].dropna(),
        )
        both = wide.index.intersection(student.index)
        if not len(both) or wide.shape[1] < 2:
            continue
        wide, reference = wide.loc[both].astype(bool), student.loc[both].to_numpy(bool)
        found = {int(float(str(s))): statistics.compare(wide[s].to_numpy(), reference) for s in wide}
        on = f"{task}, {str(group).replace('_', ' ')}"
        numbers += [
            {
                "on": on,
                "seed": int(s),
                "n": f.n,
                "difference (points)": round(100 * f.delta, 1),
                "from": round(100 * f.lo, 1),
                "to": round(100 * f.hi, 1),
            }
            for s, f in found.items()
        ]
        for one, other in combinations(found, 2):
            pairs.append((on, one, other, statistics.compare(wide[one].to_numpy(), wide[other].to_numpy())))
        if min(f.delta for f in found.values()) < 0 < max(f.delta for f in found.values()):
            signs.append(on)
    if not pairs:
        raise NotChecked("no group of items was answered with several seeds.")
    corrected = statistics.holm(np.array([c.p_mcnemar for *_, c in pairs]))
    apart = [(on, one, other, c) for (on, one, other, c), p in zip(pairs, corrected, strict=True) if p < 0.05]
    if not apart and not signs:
        return []
    said = (
        "; ".join(
            f"{on}: seed {one} against {other} {points(c.delta)} points ({points(c.lo)} to {points(c.hi)})"
            for on, one, other, c in apart[:3]
        )
        if apart
        else f"gains and losses both occur ({'; '.join(signs)}), though no two seeds differ beyond chance"
    )
    more = [] if evidence.config is None else [s for s in range(max(5, 2 * len(evidence.config.run_seeds)))]
    return [
        Finding(
            ("warning" if apart else "note"),
            "The result depends on the seed",
            (f"The same method with other seeds: {said}. One seed's result cannot be taken for the method's."),
            numbers,
            (
                [Remedy("More seeds: the interval over them is then wide enough to be believed.", {"seeds": more})]
                if more
                else []
            ),
        )
    ]


RULES = (
    Rule(
        "not-read-out",
        "Did something arrive that answers do not show?",
        "Neither bits nor ranks rose where accuracy did not.",
        not_read_out,
        "readout",
        "benchmarks",
    ),
    Rule(
        "seeds-disagree",
        "Do the seeds agree?",
        "No two seeds differ beyond chance, and all point the same way.",
        seeds_disagree,
        "seeds",
        "benchmarks",
    ),
)
