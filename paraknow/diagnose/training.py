"""Rules on training: where it starts, what it changed, how the loss went."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from paraknow.diagnose.evidence import Evidence, larger_steps, lines, longer, number, smaller_steps, tuned
from paraknow.diagnose.finding import Finding, NotChecked, Remedy, Rule

LARGE = 1.0  # ‖ΔW‖/‖W‖: from here on the change outweighs the layer. Measured: sibling 0.44, strangers 1.5, noise 1.4
ROUNDING = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}  # half the step from 1 to the next number
STEPS = 6  # of a loss curve: two in each third are the fewest that have a spread
Curve = tuple[str, str]  # model, seed
LATER = "this run was made before it was written down; a new run of the same settings measures it."


def start_differs(evidence: Evidence) -> list[Finding]:
    """Fine-tuning must start at the student itself: the first logits against the student's (METHODS 2.1)."""
    checks = _checks(evidence)
    known = checks[checks.tolerance.notna()]  # a difference that is no number is none within it
    if known.empty:
        raise NotChecked("no model of this run starts a fine-tuning, or their starts were not measured.")
    wrong = known[~(known.start_difference <= known.tolerance)]
    if wrong.empty:
        return []
    return [
        Finding(
            "blocking",
            "Fine-tuning does not start at the student",
            (
                "Before the first step these models already answer differently from the student, so a gain may be the "
                "start's and not the training's, and models that are compared began at different places."
            ),
            [
                {
                    "model": r.model,
                    "seed": int(r.seed),
                    "largest difference of logits": float(r.start_difference),
                    "tolerance": float(r.tolerance),
                }
                for r in lines(known)
            ],
            (
                [Remedy("Load the weights in float32: starts are exact there.", {"dtype": "float32"})]
                if evidence.config is not None and evidence.config.dtype != "float32"
                else []
            ),
        )
    ]


def _checks(evidence: Evidence) -> pd.DataFrame:
    if evidence.checks is None and evidence.changes is None and evidence.starts is not None:
        raise NotChecked(evidence.missing.get("checks") if "damaged" in evidence.missing.get("checks", "") else LATER)
    return evidence.need("checks")


def nothing_moved(evidence: Evidence) -> list[Finding]:
    """The result's logits against the student's: a result that is the student moved nothing."""
    checks = _checks(evidence)
    own = checks[(checks.model == evidence.examined) & checks.moved.notna()]
    if own.empty:
        raise NotChecked(f"{evidence.examined} leaves no weights whose logits could be compared with the student's.")
    still = own[own.moved == 0]
    if still.empty:
        return []
    return [
        Finding(
            "blocking",
            "What was saved is the student itself",
            (
                f"The logits of {evidence.examined} are exactly the student's (seed "
                f"{', '.join(str(int(s)) for s in still.seed)}): nothing was moved, and every difference measured is 0 "
                "by construction."
            ),
            [
                {"model": r.model, "seed": int(r.seed), "largest difference of logits": float(r.moved)}
                for r in lines(own)
            ],
            (larger_steps(evidence) if bool(own.tuned.eq(True).any()) or tuned(evidence) else []),
        )
    ]


def by_layer(changes: pd.DataFrame) -> pd.DataFrame:
    """model, seed, layer, ratio: ‖ΔW‖/‖W‖ over all matrices of a layer that were changed; those of another shape than
    the student's are left out."""
    known = changes[changes.norm.notna() & changes.weight_norm.gt(0)]
    squares = known.assign(norm=known.norm**2, weight_norm=known.weight_norm**2)
    sums = squares.groupby(["model", "seed", "layer"], sort=False)[["norm", "weight_norm"]].sum().reset_index()
    return sums.assign(ratio=np.sqrt(sums.norm / sums.weight_norm))[["model", "seed", "layer", "ratio"]]


def change_size(evidence: Evidence) -> list[Finding]:
    """How large the change is that stays in every layer, over the layer's own weights."""
    if (
        evidence.changes is None
        and evidence.starts is not None
        and "damaged" not in evidence.missing.get("changes", "")
    ):
        raise NotChecked(LATER)
    sizes = by_layer(evidence.need("changes"))
    own = sizes[sizes.model == evidence.examined]
    if own.empty:
        raise NotChecked(
            f"the matrices of {evidence.examined} have other shapes than the student's, or it changes none."
        )
    layers = own.groupby("layer").ratio.agg(["mean", "min", "max"])
    floor = ROUNDING[evidence.config.dtype if evidence.config else "float32"]
    large, small = layers[layers["mean"] >= LARGE], layers[layers["max"] < floor]
    others = sizes[sizes.model != evidence.examined].groupby("model").ratio.mean()
    numbers = [
        {
            "layer": int(layer),
            "‖ΔW‖ / ‖W‖": float(f"{r['mean']:.3g}"),
            "over seeds from": float(f"{r['min']:.3g}"),
            "to": float(f"{r['max']:.3g}"),
            "seeds": int(own.seed.nunique()),
        }
        for layer, r in zip(layers.index.astype(int), layers.to_dict("records"), strict=True)
    ]
    beside = "; ".join(f"{name} {number(float(v))}" for name, v in others.items() if v > 0)
    made = []
    if len(large):
        made.append(
            Finding(
                "warning",
                "The change outweighs the layers it is made in",
                (
                    f"In {_layers(large.index)} the change is at least as large as the weights that were there "
                    f"({number(float(large['mean'].min()))} to {number(float(large['mean'].max()))} of them), as when "
                    f"a layer is replaced by one that has nothing to do with it. Beside it: {beside or 'nothing'}."
                ),
                numbers,
                _weaker(evidence),
            )
        )
    if len(small):
        made.append(
            Finding(
                "note",
                "The change is below the weights' rounding",
                (
                    f"In {_layers(small.index)} the change is under {floor:.1g} of the weights: in this type merging "
                    "would round most of it away. What is measured is the adapter beside the weights, which keeps it."
                ),
                numbers,
                larger_steps(evidence) if tuned(evidence) else [],
            )
        )
    return made


def _layers(index: Any) -> str:
    names = [str(int(k)) for k in index]
    return f"layer{'s' * (len(names) > 1)} {', '.join(names)}"


def _weaker(evidence: Evidence) -> list[Remedy]:
    return smaller_steps(evidence) if tuned(evidence) else [Remedy("Move less: fewer layers or neurons.")]


def losses_move(evidence: Evidence) -> list[Finding]:
    """The last third of a loss curve against its first (Welch's interval over steps); NaN; a training that was broken
    off. Layers trained one after another have a loss each: every layer's steps are a curve, the level divided among
    them."""
    table = evidence.need("losses")
    numbers: list[dict[str, Any]] = []
    worse: dict[Curve, list[int]] = {}  # the layers, where there are some
    still: dict[Curve, list[int]] = {}
    fell, unread, short = set(), [], 0
    stopped = _stopped(evidence)
    for (label, seed), own in table.groupby(["label", "seed"], sort=False):
        curve = str(label), str(seed)
        if not np.isfinite(own.loss.to_numpy(float)).all():
            worse[curve] = []
            continue
        stretches = _stretches(own, curve[0] in (evidence.layerwise or ()))
        if stretches is None:
            unread.append(curve)
            continue
        for layer, values in stretches:
            if len(values) < STEPS:
                short += 1
                continue
            change, low, high = thirds(values, 1 - 0.05 / len(stretches))
            numbers.append(
                {
                    "model": label,
                    "seed": str(seed),
                    **({} if layer is None else {"layer": layer}),
                    "steps": len(values),
                    "first": round(float(values[0]), 3),
                    "last": round(float(values[-1]), 3),
                    "change (nats)": round(change, 3),
                    "from": round(low, 3),
                    "to": round(high, 3),
                }
            )
            if high < 0:
                fell.add(curve)
            else:
                kind = worse if low > 0 else still
                kind.setdefault(curve, []).extend([] if layer is None else [layer])
    worse = {curve: [] for curve in stopped} | worse
    still = {curve: layers for curve, layers in still.items() if curve not in stopped}
    made, examined = [], evidence.examined
    if worse:
        made.append(
            Finding(
                ("blocking" if any(label == examined for label, _ in worse) else "warning"),
                "The loss ran away",
                (
                    f"Training made these worse: {_named(worse)}. What is measured of them is no fair picture of "
                    "the method."
                ),
                numbers,
                smaller_steps(evidence),
            )
        )
    if still:
        nowhere = [label for label, seed in still if (label, seed) not in fell and (label, seed) not in worse]
        made.append(
            Finding(
                ("warning" if examined in nowhere else "note"),
                "The loss did not move",
                (f"The last third of the steps is not measurably better than the first: {_named(still)}."),
                numbers,
                [*larger_steps(evidence), *longer(evidence)],
            )
        )
    if not made and unread:
        raise NotChecked(
            f"{_named({curve: [] for curve in unread})} trained layer after layer, each on a loss of its own, and "
            "which steps were whose was not written down (yet)."
        )
    if not made and short and not fell:
        raise NotChecked(f"under {STEPS} optimiser steps show no trend.")
    return made


def _stretches(curve: pd.DataFrame, layerwise: bool) -> list[tuple[int | None, np.ndarray]] | None:
    """The losses of each layer, or of all steps where none is told; None where there should be layers."""
    ordered = curve.sort_values("step")
    if layerwise:
        if "layer" not in ordered or ordered.layer.isna().any():
            return None
        parts = ordered.groupby(ordered.layer.astype(int), sort=False)
        return [(int(str(k)), own.loss.to_numpy(float)) for k, own in parts]
    return [(None, ordered.loss.to_numpy(float))]


def _named(curves: dict[Curve, list[int]]) -> str:
    """Models and seeds, with the layers that are meant where there are some."""
    of = {curve: f" ({_layers(layers)})" if layers else "" for curve, layers in curves.items()}
    return "; ".join(f"{label}, seed {seed}{layers}" for (label, seed), layers in of.items())


def thirds(values: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """Mean of the last third less that of the first, with Welch's interval over steps."""
    size = len(values) // 3
    first, last = values[:size], values[-size:]
    change = float(last.mean() - first.mean())
    parts = [float(x.var(ddof=1) / size) for x in (first, last)]
    if not sum(parts):
        return change, change, change
    freedom = sum(parts) ** 2 / sum(p * p / (size - 1) for p in parts)
    half = float(stdtrit(freedom, (1 + level) / 2)) * math.sqrt(sum(parts))
    return change, change - half, change + half


def _stopped(evidence: Evidence) -> list[Curve]:
    """Models whose training was broken off and put back."""
    checks = evidence.table("checks")
    if checks is None:
        return []
    early = checks[checks.kept_step.notna() & checks.steps.notna() & (checks.kept_step < checks.steps)]
    return [(str(r.model), str(int(r.seed))) for r in lines(early)]


RULES = (
    Rule(
        "start-differs",
        "Does fine-tuning start at the student?",
        "Every first logit is the student's, within the tolerance.",
        start_differs,
        "",
        "transfer",
    ),
    Rule(
        "nothing-moved",
        "Was anything moved?",
        "The result answers differently from the student.",
        nothing_moved,
        "",
        "transfer",
    ),
    Rule(
        "change-size",
        "Is the change of a sensible size in every layer?",
        "It is smaller than the weights and larger than rounding.",
        change_size,
        "changes",
        "transfer",
    ),
    Rule(
        "loss",
        "Did training make the loss smaller?",
        "The last third of every curve is measurably below its first.",
        losses_move,
        "losses",
        "transfer",
    ),
)
