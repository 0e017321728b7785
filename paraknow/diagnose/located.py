"""Rules on what was located: which layers are paired, whether other seeds would choose the same, what it disturbs."""

from __future__ import annotations

from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import pandas as pd

from paraknow.diagnose.evidence import Evidence, interval, lines, number
from paraknow.diagnose.finding import Finding, NotChecked, Remedy, Rule
from paraknow.diagnose.likeness import pairs_itself, pairs_of

MOST_LAYERS = 1000  # of a model; tables from elsewhere may name any number, and each costs memory
SLIGHT = 0.1  # of a block: an overlap over chance that is surely less shows no choice worth the name
CHOICES = 5000  # in-order choices of layers gone through one by one; of more, so many are drawn


def diagonal(teacher: int, student: int) -> np.ndarray:
    """The teacher's depth that is as deep as each student layer, (L_S,)."""
    return np.linspace(0, teacher - 1, student) if student > 1 else np.array([(teacher - 1) / 2])


def expected_distance(teacher: int, student: int) -> float:
    """Mean distance to the diagonal, in layers, of a random one-to-one choice in order; seeded where drawn."""
    straight = diagonal(teacher, student)
    if comb(teacher, student) <= CHOICES:
        choices = np.array(list(combinations(range(teacher), student)))
    else:
        draw = np.random.default_rng(0)
        choices = np.sort(np.argsort(draw.random((CHOICES, teacher)), axis=1)[:, :student], axis=1)
    return float(np.abs(choices - straight).mean())


def crossed_depth(evidence: Evidence) -> list[Finding]:
    """The pairing of layers against depth, against a random one in order, and against stitching's R² (METHODS 3.3)."""
    pairs = pairs_of(evidence)
    if len(pairs) < 2:
        raise NotChecked("fewer than two layers are paired.")
    own, student = pairs.teacher_layer.to_numpy(), len(pairs)
    layers = _teacher_layers(evidence, own)
    if layers > MOST_LAYERS or student > MOST_LAYERS:
        raise NotChecked(f"its tables name layers beyond the first {MOST_LAYERS:,}.")
    if layers < student:
        raise NotChecked("the teacher has fewer layers than the student.")
    apart = float(np.abs(own - diagonal(layers, student)).mean())
    chance = expected_distance(layers, student)
    backwards = int((np.diff(own) <= 0).sum())
    better = _better_elsewhere(evidence, pairs)
    if not backwards and apart <= chance and not better:
        return []
    said = []
    if backwards:
        said.append(f"{backwards} of {student - 1} steps down the student do not go down the teacher")
    if apart > chance:
        said.append(
            f"the pairs lie {number(apart)} layers off the same depth on average, further than a random choice in "
            f"order ({number(chance)})"
        )
    if better:
        said.append(
            "; ".join(
                f"student layer {s} is paired with {t} (R² {number(r)}), but {b} predicts it better ({number(q)})"
                for s, t, r, b, q in better[:3]
            )
            + (f" and {len(better) - 3} more" if len(better) > 3 else "")
        )
    wanted = "matched" if better else "even"
    config = evidence.config
    locates = not pairs_itself(evidence) and config is not None and config.locate.layers != wanted
    return [
        Finding(
            ("warning" if backwards else "note"),
            "Layers are paired across depth",
            (f"{'. '.join(s[0].upper() + s[1:] for s in said)}. Layers at other depths do other work."),
            [
                {
                    "student layer": int(r.student_layer),
                    "teacher layer": int(r.teacher_layer),
                    "same depth": round(float(d), 1),
                }
                for r, d in zip(lines(pairs), diagonal(layers, student), strict=True)
            ],
            (
                [
                    Remedy(
                        "Choose layers " + ("that predict each other." if better else "evenly over the depth."),
                        {"locate.layers": wanted},
                    )
                ]
                if locates
                else []
            ),
        )
    ]


def _teacher_layers(evidence: Evidence, own: np.ndarray) -> int:
    models = (evidence.environment or {}).get("models", {})
    layers = (models.get("teacher") or {}).get("layers")
    table = evidence.table("stitching")
    found = 0 if table is None else table.teacher_layer.max() + 1
    most = max(int(found), int(own.max()) + 1)
    return max(most, layers) if isinstance(layers, int) else most


def _better_elsewhere(evidence: Evidence, pairs: pd.DataFrame) -> list[tuple[int, int, float, int, float]]:
    """Student layers whose teacher layer predicts them measurably worse than another one does: the intervals of their
    R² do not meet. (student layer, its teacher layer, R², the better layer, its R²)"""
    table = evidence.table("stitching")
    if table is None:
        return []
    made = []
    for pair in lines(pairs):
        own = table[(table.student_layer == pair.student_layer) & table.r2.notna()]
        mine = own[own.teacher_layer == pair.teacher_layer]
        if mine.empty:
            continue
        best: Any = own.loc[[own.r2.idxmax()]].iloc[0]
        if best.lo > mine.hi.iloc[0]:
            made.append(
                (
                    int(pair.student_layer),
                    int(pair.teacher_layer),
                    float(mine.r2.iloc[0]),
                    int(best.teacher_layer),
                    float(best.r2),
                )
            )
    return made


def blocks_jump(evidence: Evidence) -> list[Finding]:
    """Blocks and layers chosen by two random halves of the seeds, against chance (METHODS 1.2)."""
    _from_blocks(evidence)
    table = evidence.need("agreement")
    halves = table[(table.about == "split_half") & (table.model == "teacher")]
    blocks, layers = (halves[(halves.what == w) & halves.value.notna()] for w in ("block", "chosen_layers"))
    blocks = blocks[blocks.chance < 1]  # where the student's matrix is as large as the teacher's there is no choice
    layers = layers[layers.chance < 1]
    if blocks.empty and layers.empty:
        raise NotChecked("nothing was chosen that two halves of the seeds could disagree on.")
    mean, low, high = interval(blocks.value - blocks.chance)
    jumping = bool(mean <= 0 or (low <= 0 and high < SLIGHT))
    other = layers[layers.value < layers.chance]
    if not jumping and other.empty:
        if len(blocks) and not low > 0:
            raise NotChecked(
                f"too few matrices to tell: their blocks overlap by {number(mean)} more than by chance "
                f"({number(low)} to {number(high)}, {len(blocks)} matri{'x' if len(blocks) == 1 else 'ces'})."
            )
        return []
    n = int(halves.n.max()) if halves.n.notna().any() else 0
    said = []
    if jumping:
        said.append(
            f"two halves of the {n} seeds choose blocks that overlap by {number(float(blocks.value.mean()))}, chance "
            f"{number(float(blocks.chance.mean()))} (difference {number(mean)}, {number(low)} to {number(high)})"
        )
    if len(other):
        said.append(
            f"they choose layers that overlap by {number(float(other.value.mean()))}, chance "
            f"{number(float(other.chance.mean()))}"
        )
    text = "; ".join(said)
    seeds = evidence.config.locate.seeds if evidence.config else None
    return [
        Finding(
            "warning",
            "What is located depends on the seeds",
            (f"{text[0].upper()}{text[1:]}. With other examples another part of the teacher would have been moved."),
            [
                {
                    "what": what,
                    "module": module or "all",
                    "n": len(own),
                    "overlap": round(float(own.value.mean()), 3),
                    "chance": round(float(own.chance.mean()), 3),
                }
                for what, part in (("blocks", blocks), ("layers", layers))
                for module, own in part.groupby("module", sort=False)
            ],
            (
                [
                    *([Remedy("More seeds.", {"locate.seeds": 2 * seeds})] if seeds else []),
                    *_rows_columns(evidence, "Rows and columns in place of one window."),
                ]
            ),
        )
    ]


def _from_blocks(evidence: Evidence) -> None:
    if evidence.moves_blocks is False:
        raise NotChecked(f"{evidence.examined} moves no located block.")


def interference(evidence: Evidence) -> list[Finding]:
    """Energy of the block in directions that known text uses, against noise of the same size (METHODS 3.4)."""
    _from_blocks(evidence)
    table = evidence.need("weights")
    keys = ["module", "student_layer"]
    block, noise = (
        table[(table.source == s) & table.interference.notna()].drop_duplicates(keys) for s in ("block", "noise")
    )
    both = block.merge(noise[[*keys, "interference"]], on=keys, suffixes=("", "_noise"))
    if len(both) < 2:
        raise NotChecked("similarity.parts left interference out, or no block was located.")
    above, low, high = interval(both.interference - both.interference_noise)
    if not low > 0:
        return []
    rows = [
        r
        for r in evidence.rows or ()
        if r.get("model") == evidence.examined and r.get("group") == "known" and r.get("delta_ci")
    ]
    forgot = any(r["delta_ci"][1] < 0 for r in rows)
    return [
        Finding(
            ("warning" if forgot else "note"),
            "The block sits on directions that known facts use",
            (
                f"{_percent(both.interference)} of its energy meets the directions of what the student knows; noise of "
                f"the same size {_percent(both.interference_noise)}, chance {_percent(both.interference_expected)} "
                f"(difference to noise {number(100 * above, 1)} points, {number(100 * low, 1)} to "
                f"{number(100 * high, 1)}, over {len(both)} matrices). "
                + (
                    "And known facts were forgotten."
                    if forgot
                    else "No forgetting was measured; blocks of a near relative do so without harm."
                )
            ),
            [
                {
                    "module": m,
                    "layers": len(own),
                    "block": round(float(own.interference.mean()), 3),
                    "noise": round(float(own.interference_noise.mean()), 3),
                    "expected": round(float(own.interference_expected.mean()), 3),
                }
                for m, own in both.groupby("module", sort=False)
            ],
            (_rows_columns(evidence, "Choose another part of the teacher.") if forgot else []),
        )
    ]


def _rows_columns(evidence: Evidence, text: str) -> list[Remedy]:
    if evidence.config is not None and evidence.config.locate.structure == "rows_columns":
        return []
    return [Remedy(text, {"locate.structure": "rows_columns"})]


def _percent(shares: pd.Series) -> str:
    return f"{number(100 * float(shares.mean()), 0)} %"


RULES = (
    Rule(
        "pairing-crosses-depth",
        "Do paired layers lie at the same depth?",
        "The pairing goes down both models alike.",
        crossed_depth,
        "pairing",
        "similarity",
    ),
    Rule(
        "blocks-jump",
        "Would other seeds locate the same?",
        "Halves of the seeds agree beyond chance.",
        blocks_jump,
        "blocks",
        "sensitivity",
    ),
    Rule(
        "interference",
        "Does the block disturb what is known?",
        "It has no more energy on known directions than noise.",
        interference,
        "interference",
        "similarity",
    ),
)
