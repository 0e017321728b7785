"""The calibration ladder: pairs from a known answer to none at all (METHODS 4.3; no torch)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rung:
    """One pair of the ladder: the names of its two models, and what they have in common, in words."""

    teacher: str
    student: str
    words: str


# From one model in two widths down to two models that share nothing but their language.
LADDER = {
    "clone": Rung("clone-teacher", "student", "the teacher is a widening of the student after it learned more"),
    "sibling": Rung("teacher", "sibling", "the student was pruned from the teacher and healed on known text"),
    "stranger": Rung("teacher", "student", "two models of different size, trained apart"),
    "equal": Rung("teacher", "equal", "two models of one size, trained apart"),
}
# Steps between sibling and stranger, for the study of lineage (`--study`).
BETWEEN = {
    "rotated": Rung("teacher", "rotated", "the sibling with its residual stream turned by a random rotation"),
    "healed": Rung("teacher", "healed", "the sibling after healing three times as long"),
    "descendant": Rung("heir", "equal", "one size; the teacher is the student after it went on to learn the facts"),
    "same_start": Rung("teacher", "same-start", "one size and one random start; trained on different data"),
    "same_data": Rung("teacher", "same-data", "one size and the same batches, unknown facts masked; another start"),
}
RUNGS = {**LADDER, **BETWEEN}


def rung_of(teacher: str, student: str) -> str | None:
    """The rung of the ladder that two demo models make; None where nobody knows."""
    for rung, pair in RUNGS.items():
        if (teacher, student) == (f"demo:{pair.teacher}", f"demo:{pair.student}"):
            return rung
    return None
