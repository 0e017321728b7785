"""Rules on the pair: kinship, CKA and vocabularies."""

from __future__ import annotations

import numpy as np
import pandas as pd

from paraknow.diagnose.evidence import Evidence, interval, lines, number
from paraknow.diagnose.finding import Finding, NotChecked, Remedy, Rule

# Mean kinship: kinds of pairs where nothing crossed had 0.24 to 0.34, those where something did 0.67 up.
STRANGERS, KIN = 0.345, 0.665


def pairs_of(evidence: Evidence) -> pd.DataFrame:
    """student_layer, teacher_layer as the run pairs them: by its blocks, where the method works from them; by what
    transport paired; else by stitching."""
    names = ["student_layer", "teacher_layer"]
    if pairs_itself(evidence):
        own = evidence.need("aligned")
        own = own[own.model == evidence.examined]
        return own[names].dropna().drop_duplicates("student_layer").astype(int).sort_values("student_layer")
    if (blocks := evidence.table("blocks")) is not None:
        inner = blocks[~blocks.module.isin(("embed", "lm_head"))]
        return inner[names].dropna().drop_duplicates("student_layer").astype(int).sort_values("student_layer")
    stitched = evidence.need("stitching")
    own = stitched.loc[stitched.paired.eq(True), names].drop_duplicates("student_layer")
    return own.astype(int).sort_values("student_layer")


def pairs_itself(evidence: Evidence) -> bool:
    """Whether the method pairs layers by a rule of its own, so that `locate.layers` changes nothing."""
    own = evidence.table("aligned")
    if own is None or not {"student_layer", "teacher_layer"} <= set(own):
        return False
    paired = own.student_layer.notna() & own.teacher_layer.notna()
    return bool((own.model.eq(evidence.examined) & paired).any())


def strangers(evidence: Evidence) -> list[Finding]:
    """Kinship (METHODS 2.6, pairing `kin`) tells lineage from mere likeness; CKA and R² do not (docs/results.md)."""
    settings, found = evidence.need("settings"), evidence.table("aligned")
    by_kinship = [label for label, own in settings.items() if own.get("pairing") == "kin"]
    if found is not None and "kinship" in found:  # other pairings keep it too, of layers that are no kin
        found = found[found.model.isin(by_kinship) & found.kinship.notna()]
    if found is None or "kinship" not in found or found.empty:
        raise NotChecked("kinship is measured by the method transport with pairing: kin, which did not run.")
    own = found[found.model.eq(evidence.examined)] if (found.model == evidence.examined).any() else found
    own = own[own.model.eq(own.model.iloc[0]) & own.seed.eq(own.seed.iloc[0])]
    mean, low, high = interval(own.kinship)
    if mean >= KIN:
        return []
    layers = [
        {
            "student layer": int(r.student_layer),
            "teacher layer": int(r.teacher_layer),
            "kinship": round(float(r.kinship), 3),
        }
        for r in lines(own.dropna(subset=["student_layer", "teacher_layer"]))
    ]
    if mean > STRANGERS:
        return [
            Finding(
                "note",
                "Kinship does not tell what these two models are",
                (
                    f"Their attention matrices, matched by vocabulary, agree by {number(mean)} on average over layers "
                    f"({number(low)} to {number(high)}). That lies between what was measured: strangers 0.24 to 0.34, "
                    "pairs where knowledge crossed 0.67 and more. Whether it can cross here, it cannot tell."
                ),
                layers,
            )
        ]
    return [
        Finding(
            "warning",
            "The two models look like strangers",
            (
                f"Their attention matrices, matched by vocabulary, agree by {number(mean)} on average over layers "
                f"({number(low)} to {number(high)}); a clone and its teacher reach 0.93, pairs that were pruned or "
                "trained on from each other 0.83 to 0.94, strangers of any size 0.24 to 0.34. Between such pairs no "
                "method tried so far moved knowledge that nobody showed the student."
            ),
            layers,
            [Remedy("Take a pair of one lineage: a student pruned or distilled from this teacher.")],
        )
    ]


def low_cka(evidence: Evidence) -> list[Finding]:
    """CKA at paired layers against its null and an untrained pair of the same shapes (METHODS 3.1)."""
    table = evidence.need("cka").merge(pairs_of(evidence), on=["student_layer", "teacher_layer"])
    table = table[table.cka.notna() & table.lo.notna() & table.null_hi.notna()]
    table = table[~table.module.isin(("attention", "ffn"))]  # the same outputs as o and down
    if table.empty:
        raise NotChecked("CKA was not measured at the paired layers.")
    table = table.assign(
        excess=table.cka - table.null, chance=table.lo <= table.null_hi, bare=table.hi < table.untrained
    )
    if not table.chance.any() and not table.bare.any():
        return []
    numbers = []
    for module, own in table.groupby("module", sort=False):
        numbers.append(
            {"module": module, "paired layers": len(own)}
            | {
                name: round(float(own[column].mean()), 3)
                for name, column in (
                    ("CKA", "cka"),
                    ("from", "lo"),
                    ("to", "hi"),
                    ("null, at most", "null_hi"),
                    ("CKA − null", "excess"),
                )
            }
            | {"untrained": round(v, 3) if np.isfinite(v := float(own.untrained.mean())) else None}
            | {"no more than chance": int(own.chance.sum()), "below untrained": int(own.bare.sum())}
        )
    chance, bare = table[table.chance], table[table.bare]
    said = []
    if len(chance):
        said.append(f"{_modules(chance)}: not above what shuffled rows give")
    if len(bare):
        said.append(
            f"{_modules(bare)}: less alike than in two untrained models of the same shapes, so training took them apart"
        )
    return [
        Finding(
            ("warning" if len(chance) else "note"),
            (
                "Paired layers are hardly alike"
                if len(chance)
                else "Some paired layers are less alike than untrained ones"
            ),
            (
                f"Outputs of the paired layers on the same text. {'; '.join(said)}. What is moved there meets another "
                "way of saying things. A high CKA does not say that knowledge crosses either."
            ),
            numbers,
            (
                [Remedy("Pair layers by how well they predict each other.", {"locate.layers": "matched"})]
                if evidence.config is not None
                and evidence.config.locate.layers != "matched"
                and not pairs_itself(evidence)
                else []
            ),
        )
    ]


def _modules(part: pd.DataFrame) -> str:
    counts = part.module.value_counts()
    return ", ".join(f"{name} ({n} layer{'s' * (n != 1)})" for name, n in counts.items())


def vocabularies(evidence: Evidence) -> list[Finding]:
    """Two tokenizers: positions are matched by characters, and what needs one vocabulary is refused."""
    environment = evidence.need("environment")
    models = environment.get("models") or {}
    sizes = {name: (models.get(name) or {}).get("vocabulary") for name in ("teacher", "student")}
    same = environment.get("same_vocabulary")
    if same is None and (None in sizes.values() or sizes["teacher"] == sizes["student"]):
        raise NotChecked(
            "whether both tokenizers give every token the same id was not written down when this run was made."
        )
    if same or (same is None and sizes["teacher"] == sizes["student"]):
        return []
    return [
        Finding(
            "note",
            "The two models read text differently",
            (
                "Their tokenizers have different vocabularies, so the models are compared only where their tokens end "
                "at the same character, embeddings are not moved, and methods that match models by vocabulary are "
                "refused."
            ),
            [{"model": name, "tokens": size} for name, size in sizes.items()],
            (
                [
                    Remedy(
                        "Maps fitted on text need no common vocabulary.",
                        {"method": {"name": "transport", "maps": "procrustes"}},
                    )
                ]
                if evidence.config is not None and evidence.config.method.name != "transport"
                else []
            ),
        )
    ]


RULES = (
    Rule(
        "strangers",
        "Are the two models of one lineage?",
        "Kinship is as high as in pairs where knowledge crossed.",
        strangers,
        "kinship",
        "ladder",
    ),
    Rule(
        "low-cka",
        "Are paired layers alike?",
        "All paired layers are above the null and an untrained pair.",
        low_cka,
        "cka",
        "similarity",
    ),
    Rule(
        "vocabularies",
        "Do both models read the same tokens?",
        "Both tokenizers give every token the same id.",
        vocabularies,
        "",
        "similarity",
    ),
)
