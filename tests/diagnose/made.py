"""Evidence of a run in which all is well, and the same with something broken on purpose."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from paraknow import config
from paraknow.diagnose import RULES, Evidence, Finding
from paraknow.evaluate import statistics

PAIR = {"teacher": "demo:teacher", "student": "demo:student"}
VALUES = {"pair": PAIR, "task": "demo:people", "method": {"name": "seeking", "rank": 8}, "controls": ["zero", "noise"]}
VALUES |= {"seeds": [0, 1], "locate": {"layers": "matched"}}
MODELS = ("teacher", "student", "seeking", "zero", "seeking+noise")
TUNED = ("seeking", "seeking+noise")
LAYERS, MODULES = 4, ("q", "k", "down")
N = 60  # items of a group


def row(model: str, group: str, gained: int, lost: int = 0, suite: str = "demo:people", n: int = N) -> dict[str, Any]:
    """A row of deltas.json from its flips; the method's is held against controls that gained nothing."""
    low, high = (float(x) for x in statistics.flip_interval(gained, lost, n))
    delta = (gained - lost) / n
    made: dict[str, Any] = {"model": model, "suite": suite, "group": group, "n": n, "seeds": 1, "accuracy": 0.5}
    made |= {"delta": delta, "delta_ci": [low, high], "gained": gained, "lost": lost, "against": [], "claim": None}
    made |= {"detectable": statistics.detectable(n, (gained + lost) / n), "share": None, "share_ci": None}
    if model == "seeking":
        made["against"] = [{"control": c, "delta": delta, "delta_ci": [low, high]} for c in ("zero", "seeking+noise")]
        made["claim"] = low > 0
    return made


def rows(**flips: tuple[int, int]) -> list[dict[str, Any]]:
    """Rows of all groups; `flips` of the method by group: (gained, lost)."""
    made = []
    for group in ("known", "shown", "never_shown"):
        own = flips.get(group, (0, 0) if group == "known" else (50, 0))
        teacher = 0 if group == "known" else 55
        made.append({"model": "student", "suite": "demo:people", "group": group, "n": N, "against": []})
        made += [row("teacher", group, teacher), row("seeking", group, *own)]
        made += [row("zero", group, 0), row("seeking+noise", group, 0)]
    return made


def items(
    right: float = 0.9, rank: int = 0, other_seed: float | None = None, n: int = N, control: int | None = None
) -> pd.DataFrame:
    """Items of two seeds: the share of them that the method gets right, and the rank of the right answer elsewhere;
    `control`: the rank of the right answer in everything the control seeking+noise answers."""
    names, made = [f"c{k}" for k in range(8)], []
    beside = () if control is None else (("seeking+noise", 0), ("seeking+noise", 1))
    for model, seed in (("teacher", -1), ("student", -1), ("seeking", 0), ("seeking", 1), *beside):
        share = {"teacher": 1.0, "student": 0.0, "seeking+noise": 0.0}.get(
            model, right if seed == 0 or other_seed is None else other_seed
        )
        for doc in range(n):
            correct = doc < share * n
            place = 0 if correct else {"seeking": rank, "seeking+noise": control}.get(model, 6)
            assert place is not None
            scores = -np.arange(8.0) + 0.01 * np.sin(doc + np.arange(8))
            order = [*range(1, place + 1), 0, *range(place + 1, 8)]
            held = np.empty(8)
            held[order] = scores
            made.append(
                {"task": "demo:people", "group": "never_shown", "doc_id": doc, "model": model, "seed": seed}
                | {"correct": correct, "target": "c0", "candidates": names, "candidate_logprobs": held.tolist()}
            )
    return pd.DataFrame(made)


def table(**columns: Any) -> pd.DataFrame:
    """One row per seed, layer and module of every tuned model, with further columns."""
    keys = [(m, s, k, w) for m in TUNED for s in (0, 1) for k in range(LAYERS) for w in MODULES]
    return pd.DataFrame(keys, columns=["model", "seed", "layer", "module"]).assign(**columns)


def checks(**changes: Any) -> pd.DataFrame:
    made = pd.DataFrame([(m, s) for m in TUNED for s in (0, 1)], columns=["model", "seed"])
    values = {"same": False, "tuned": True, "start_difference": 1e-6, "tolerance": 1e-4, "moved": 3.0}
    return made.assign(**{**values, "steps": 12, "kept_step": 12, **changes})


def losses(curve: Any = None) -> pd.DataFrame:
    values = np.linspace(3, 1, 12) + 0.05 * np.cos(np.arange(12)) if curve is None else curve
    parts = [
        pd.DataFrame({"label": m, "seed": str(s), "step": range(1, 13), "loss": values}) for m in TUNED for s in (0, 1)
    ]
    return pd.concat(parts, ignore_index=True)


def per_pair(**columns: Any) -> pd.DataFrame:
    """Every teacher layer with every student layer; a column may be a function of both."""
    made = pd.DataFrame(
        [(t, s) for t in range(LAYERS) for s in range(LAYERS)], columns=["teacher_layer", "student_layer"]
    )
    held = {
        c: (made.apply(lambda r, f=v: f(r.teacher_layer, r.student_layer), axis=1) if callable(v) else v)
        for c, v in columns.items()
    }
    return made.assign(**held)


def stitching(pairs: list[int] | None = None) -> pd.DataFrame:
    own = pairs or list(range(LAYERS))
    near = per_pair(r2=lambda t, s: 0.9 if own[int(s)] == t else 0.3, paired=lambda t, s: own[int(s)] == t)
    return near.assign(lo=near.r2 - 0.05, hi=near.r2 + 0.05, null=0.0, n=100)


def cka(value: float = 0.9) -> pd.DataFrame:
    one = per_pair(cka=value, lo=value - 0.03, hi=value + 0.03, null=0.0, null_lo=-0.02, null_hi=0.02, untrained=0.4)
    return pd.concat([one.assign(task="demo:people", module=m) for m in ("q", "o", "residual")], ignore_index=True)


def blocks(pairs: list[int] | None = None) -> pd.DataFrame:
    own = pairs or list(range(LAYERS))
    made = [(m, own[k], k) for m in MODULES for k in range(LAYERS)]
    return pd.DataFrame(made, columns=["module", "teacher_layer", "student_layer"])


def agreement(block: float = 0.8, layers: float = 1.0) -> pd.DataFrame:
    made = [("block", m, k, block + 0.01 * k, 0.3) for m in MODULES for k in range(LAYERS)]
    made.append(("chosen_layers", "", None, layers, 0.5))
    frame = pd.DataFrame(made, columns=["what", "module", "layer", "value", "chance"])
    return frame.assign(about="split_half", model="teacher", task="demo:people", other="", n=32)


def weights(block: float = 0.2) -> pd.DataFrame:
    made = [
        (m, k, source, value + 0.01 * np.sin(7 * k + len(m)))
        for m in MODULES
        for k in range(LAYERS)
        for source, value in (("block", block), ("noise", 0.2 + 0.001 * k))
    ]
    frame = pd.DataFrame(made, columns=["module", "student_layer", "source", "interference"])
    return frame.assign(teacher_layer=frame.student_layer, interference_expected=0.2)


def budgets(**changes: Any) -> pd.DataFrame:
    base = {"examples": 600, "steps": 12, "trainable": 4096, "added": 0, "teacher_flops": 2e9, "student_flops": 5e9}
    made = [{"model": m, "seed": 0, **base, **(changes if m == "gaussian" else {})} for m in (*TUNED, "gaussian")]
    return pd.DataFrame(made)


def sound(**changes: Any) -> Evidence:
    """A run in which unseen knowledge crossed and nothing is wrong, with some of its evidence changed."""
    made = Evidence(
        config=config.parse(VALUES),
        status={"state": "done", "stages": ["load", "evaluate"]},
        environment={"models": {m: {"vocabulary": 512, "layers": LAYERS} for m in PAIR}, "same_vocabulary": True},
        warnings=[],
        rows=rows(),
        items=items(),
        starts=table(rank=8, norm=1.0, weight_norm=5.0),
        aligned=pd.DataFrame(
            {
                "model": "other",
                "seed": 0,
                "student_layer": range(LAYERS),
                "teacher_layer": range(LAYERS),
                "kinship": 0.9,
            }
        ),
        changes=table(norm=0.5, weight_norm=5.0),
        checks=checks(),
        budgets=budgets(),
        losses=losses(),
        reload={
            "largest_difference": {f"{m}/{s}": 1e-6 for m in TUNED for s in (0, 1)},
            "limit": {f"{m}/{s}": 1e-4 for m in TUNED for s in (0, 1)},
        },
        blocks=blocks(),
        agreement=agreement(),
        cka=cka(),
        stitching=stitching(),
        weights=weights(),
        settings={"seeking": {"rank": 8}, "other": {"pairing": "kin"}},
        ranks=dict.fromkeys(TUNED, 8),
        layerwise=(),
        moves_blocks=True,
    )
    return replace(made, **changes)


def with_config(**changes: Any) -> Evidence:
    return sound(config=config.parse({**VALUES, **changes}))


def of(rule: str, evidence: Evidence) -> list[Finding]:
    """What one rule says."""
    return next(known for known in RULES if known.name == rule).findings(evidence)
