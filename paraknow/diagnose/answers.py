"""Rules on evaluate/items.parquet: what the right answer's place among the candidates says, and whether seeds agree."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from paraknow.diagnose.evidence import TARGETS, Evidence, points
from paraknow.diagnose.finding import Finding, NotChecked, Remedy, Rule
from paraknow.evaluate import statistics
from paraknow.evaluate.deltas import bits_interval, item_bits

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
    """
    asked = _asked(evidence)
    if "candidate_logprobs" not in asked or asked.candidate_logprobs.isna().all():
        raise NotChecked("these items have no candidates to rank the right answer among.")
    asked = asked.assign(
        place=[reciprocal_rank(*v) for v in zip(asked.candidates, asked.candidate_logprobs, asked.target, strict=True)]
    )
    numbers, hidden, judged = [], [], 0
    seed = evidence.config.seed if evidence.config else 0
    for (task, group), part in asked.groupby(["task", "group"], sort=False):
        sound = part.groupby("doc_id").place.transform(lambda p: p.notna().all())
        found = _against_student(part[sound.astype(bool)], evidence.examined, seed)
        if found is None:
            continue
        judged += 1
        accuracy, bits, rank = found
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
            what = "bits" if bits[1] > 0 else "the rank of the right answer"
            hidden.append(f"{task}, {str(group).replace('_', ' ')} ({what})")
    if not judged:
        raise NotChecked("no item of these groups has candidates among which the right answer stands, for both models.")
    if not hidden:
        return []
    return [
        Finding(
            "note",
            "Something arrived, but is not read out",
            (
                f"The right answer became likelier among its candidates, beyond chance, but is still not the first: "
                f"{'; '.join(hidden)}. Accuracy alone does not see it. Look whether the controls do the same (bits on "
                "the Benchmarks page): only what is above them came from the teacher."
            ),
            numbers,
            _louder(evidence),
        )
    ]


def _louder(evidence: Evidence) -> list[Remedy]:
    if evidence.config is None or evidence.losses is None or evidence.examined not in set(evidence.losses.label):
        return [Remedy("Let more of the teacher take part: more layers or neurons, or attention too.")]
    tune = evidence.config.tune
    made = [Remedy("Tune longer.", {"tune.epochs": min(10000, 2 * tune.epochs)})]
    if isinstance(rank := evidence.config.method.settings().get("rank"), int):
        made.append(Remedy("A larger rank.", {"method.rank": 2 * rank}))
    return made


def _against_student(part: pd.DataFrame, examined: str, seed: int) -> tuple[Any, Any, Any] | None:
    """(difference, lo, hi) to the student in accuracy, bits and 1/rank, on the items both have."""
    wide = {m: {c: _wide(part, m, c) for c in ("correct", "place")} for m in (examined, "student")}
    both = wide[examined]["place"].dropna().index.intersection(wide["student"]["place"].dropna().index)
    if len(both) < 2:
        return None
    right = [wide[m]["correct"].loc[both].to_numpy(bool).T for m in (examined, "student")]
    ours, theirs = (r[0] if len(r) == 1 else r for r in right)
    compared = statistics.compare(ours, theirs, seed, RESAMPLES)
    gain = (wide[examined]["place"].loc[both].to_numpy().T) - wide["student"]["place"].loc[both].to_numpy().T[:1]
    kept = part[part.doc_id.isin(both)]
    known = [item_bits(kept[kept.model == m].drop_duplicates(["seed", "doc_id"]), seed) for m in (examined, "student")]
    if known[0] is None or known[1] is None:
        return None
    more = known[0] - known[1][:1]
    rank = (float(gain.mean()), *statistics.paired_bootstrap(gain, seed, RESAMPLES))
    bits = (float(more.mean()), *(bits_interval(more, RESAMPLES, seed) or (float("nan"), float("nan"))))
    return (compared.delta, compared.lo, compared.hi), bits, rank


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
