"""From items to the rows people read: accuracy, paired differences, knowledge that arrived (no torch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from paraknow.errors import RunError
from paraknow.evaluate import audit, statistics, words
from paraknow.progress import Progress, part, silent

GROUP_ORDER = {"known": 0, "shown": 1, "never_shown": 2, "all": 3}


def join(items: pd.DataFrame) -> None:
    """Check that every model answered the same items. Raises RunError naming the model."""
    reference = items[items.model == "student"].set_index(["task", "doc_id"]).doc_hash
    for (model, seed), own in items.groupby(["model", "seed"], sort=False):
        hashes = own.set_index(["task", "doc_id"]).doc_hash
        if len(hashes) != len(reference) or not hashes.sort_index().equals(reference.sort_index()):
            raise RunError(f"evaluate: {model} (seed {seed}) was not measured on the same items as the student.")


def rows(
    items: pd.DataFrame,
    controls: Mapping[str, Sequence[str]],
    resamples: int = 2000,
    seed: int = 0,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """One row per model, suite and group, in table order; parts of a benchmark are groups of their own beside all.

    `controls` maps a method's label to the labels of the controls it is held against. Keys of a row: model,
    suite, group, n, accuracy, ci, delta, delta_ci, p_mcnemar, p_holm, gained, lost, detectable (the differences are
    to the student; missing for the student itself), loss (nats per answer token; missing where text was generated),
    bits, bits_ci, share, share_ci (how much of the teacher's surplus knowledge arrived; missing with `share_missing`
    saying why), against (per control: delta, delta_ci, detectable), claim (true where the interval lies above 0
    against the student and every control; missing where a model has no controls), reading (all that in plain words).

    detectable: the smallest true difference that these n items show with probability 0.8; smaller ones cannot be
    seen. Missing where n items are too few for any.

    p_holm corrects over all comparisons with the student in the run, all suites and groups: many rows are read, and
    the best of them is what one is tempted to report. The claim needs no correction: it asks for every one of its
    comparisons to hold, and the chance that all do wrongly is at most that of the one most in doubt
    (intersection–union test: Berger, Technometrics 24, 1982).
    """
    join(items)
    items = _with_parts(items)
    result: list[dict[str, Any]] = []
    order = {name: k for k, name in enumerate(dict.fromkeys(items.model))}
    groups = sorted(items.groupby(["task", "group"], sort=False), key=lambda p: (str(p[0][0]), _place(str(p[0][1]))))
    for number, ((suite, group), asked) in enumerate(groups):
        by_model = {
            str(model): frame.sort_values(["seed", "doc_id"]) for model, frame in asked.groupby("model", sort=False)
        }
        report = part(progress, number * 1000, len(groups) * 1000, scale=1000)
        result += _group_rows(str(suite), str(group), by_model, controls, resamples, seed, report)
    _holm(result)
    for row in result:
        row["reading"] = words.reading(row)
    suites = list(dict.fromkeys(items.task))
    return sorted(result, key=lambda r: (suites.index(r["suite"]), _place(r["group"]), order[r["model"]]))


def _place(group: str) -> tuple[int, str]:
    """Where a group's rows stand: parts of a benchmark after all of it."""
    return GROUP_ORDER.get(group, len(GROUP_ORDER)), group


def _with_parts(items: pd.DataFrame) -> pd.DataFrame:
    """Items of a benchmark with several parts (MMLU's fields) once more, each part as a group of its own."""
    if "part" not in items or not items.part.notna().any():
        return items
    several = items.groupby("task").part.transform("nunique") > 1
    parts = items[several & items.part.notna()]
    return pd.concat([items, parts.assign(group=parts.part)], ignore_index=True)


def _matrix(frame: pd.DataFrame, column: str) -> np.ndarray:
    """(seeds, items) of one column."""
    seeds = frame.seed.nunique()
    return frame[column].to_numpy().reshape(seeds, -1)


def _group_rows(
    suite: str,
    group: str,
    models: dict[str, pd.DataFrame],
    controls: Mapping[str, Sequence[str]],
    resamples: int,
    seed: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    correct = {model: _matrix(frame, "correct").astype(bool) for model, frame in models.items()}
    bits = {model: item_bits(frame, seed) for model, frame in models.items()}
    made = []
    for model, frame in models.items():
        values = correct[model]
        row: dict[str, Any] = {
            "model": model,
            "suite": suite,
            "group": group,
            "n": values.shape[1],
            "seeds": values.shape[0],
            "accuracy": float(values.mean()),
            "ci": _accuracy_interval(values, resamples, seed),
            **dict.fromkeys(("delta", "delta_ci", "p_mcnemar", "p_holm", "gained", "lost", "detectable")),
            # text that a model generated has no log-probability
            "loss": None if frame.logprob.isna().any() else float(-frame.logprob.sum() / frame.answer_tokens.sum()),
            "bits": None if (known := bits[model]) is None else float(known.mean()),
            "bits_ci": bits_interval(known, resamples, seed),
            **dict.fromkeys(("share", "share_ci", "share_missing", "claim")),
            "against": [],
        }
        if model != "student":
            row |= _difference(values, correct["student"], resamples, seed)
            row |= {k: v for k, v in _share(model, bits, resamples, seed).items()}
        if held := [c for c in controls.get(model, ()) if c in correct]:
            for control in held:
                against = _difference(values, correct[control], resamples, seed)
                row["against"].append(
                    {"control": control, **{k: against[k] for k in ("delta", "delta_ci", "detectable")}}
                )
            row["claim"] = row["delta_ci"][0] > 0 and all(a["delta_ci"][0] > 0 for a in row["against"])
        made.append(row)
        progress(len(made), len(models))
    return made


def _accuracy_interval(values: np.ndarray, resamples: int, seed: int) -> list[float]:
    """Wilson for one seed; with several, items and seeds are resampled."""
    if values.shape[0] == 1:
        return list(statistics.wilson(values[0]))
    return list(statistics.paired_bootstrap(values.astype(float), seed, resamples, bounds=(0.0, 1.0)))


def _difference(method: np.ndarray, reference: np.ndarray, resamples: int, seed: int) -> dict[str, Any]:
    shapes = (method[0] if len(method) == 1 else method, reference[0] if len(reference) == 1 else reference)
    found = statistics.compare(*shapes, seed=seed, resamples=resamples)
    return {
        "delta": found.delta,
        "delta_ci": [found.lo, found.hi],
        "p_mcnemar": found.p_mcnemar,
        "gained": found.gained,
        "lost": found.lost,
        "detectable": _detectable(found),
    }


def _detectable(found: statistics.Comparison) -> float | None:
    """Exact for one seed each. With several, from the interval: its half-width shows with probability ½."""
    if found.interval == "tango":
        return statistics.detectable(found.n, (found.gained + found.lost) / found.n)
    return statistics.detectable_from(found.lo, found.hi)


def bits_interval(bits: np.ndarray | None, resamples: int, seed: int, level: float = 0.95) -> list[float] | None:
    """Interval of mean bits, or of their mean difference, over items (and seeds), (seeds, items) given.

    1/(4n) nats wider on either side for the fitted β, as a share's interval is (audit.share). None without bits, and
    for one item, which has no spread.
    """
    if bits is None or bits.shape[1] < 2:
        return None
    low, high = statistics.paired_bootstrap(bits, seed, resamples, level)
    fitted = 1 / (4 * bits.shape[1] * np.log(2)) if bits.any() else 0.0
    return [float(low - fitted), float(high + fitted)]


def item_bits(frame: pd.DataFrame, seed: int) -> np.ndarray | None:
    """(seeds, items) bits of knowledge of one model on one suite and group; None where items have no candidates."""
    if frame.candidates.isna().any():
        return None
    per_seed = []
    for _, own in frame.groupby("seed", sort=True):
        own = own.sort_values("doc_id")
        gold = np.array([list(c).index(t) for c, t in zip(own.candidates, own.target, strict=True)])
        per_seed.append(audit.bits([np.asarray(x, float) for x in own.candidate_logprobs], gold, seed=seed))
    return np.stack(per_seed)


def _share(model: str, bits: dict[str, np.ndarray | None], resamples: int, seed: int) -> dict[str, Any]:
    own, student, teacher = bits[model], bits.get("student"), bits.get("teacher")
    if own is None or student is None or teacher is None:
        return {"share_missing": "these items have no candidates to measure bits on"}
    found = audit.share(own[0] if len(own) == 1 else own, student[0], teacher[0], seed=seed, resamples=resamples)
    if found.value is None:
        return {"share_missing": found.missing}
    return {"share": found.value, "share_ci": [found.lo, found.hi]}


def _holm(result: list[dict[str, Any]]) -> None:
    """Holm's correction over all comparisons with the student in the run."""
    compared = [r for r in result if r["p_mcnemar"] is not None]
    if not compared:
        return
    adjusted = statistics.holm(np.array([r["p_mcnemar"] for r in compared]))
    for row, p in zip(compared, adjusted, strict=True):
        row["p_holm"] = float(p)
