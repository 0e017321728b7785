"""The findings tell the rungs of the ladder apart, on artifacts of four recorded runs (20 items a group).

tests/diagnose/ladder/<rung>/ holds what findings rest on, as `paraknow run` wrote it for the shipped pairs with
method: {name: transport, label: transport-kin, maps: vocabulary, attention: true, pairing: kin}, controls zero, noise
and shuffled_teacher, 4 seeds, evaluate.limit 20.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest

from paraknow.diagnose import Finding, headline
from paraknow.runs import diagnosis
from paraknow.runs.store import Run

KIN, STRANGERS = ("clone", "sibling"), ("stranger", "equal")


@lru_cache
def found_on(rung: str) -> dict[str, Finding]:
    found = diagnosis.diagnose(Run(Path(__file__).parent / "ladder" / rung, recorded=True))
    assert len({f.rule for f in found}) == len(found)  # here no rule says two things
    return {f.rule: f for f in found}


@pytest.mark.parametrize("rung", KIN)
def test_between_kin_knowledge_crossed_and_nothing_was_forgotten(rung: str) -> None:
    found = found_on(rung)
    assert found["crossed"].severity == "good"
    for rule in ("gain-above-controls", "forgetting", "strangers", "nothing-to-transfer", "only-shown", "too-few"):
        assert found[rule].severity == "fine", (rule, found[rule])
    assert headline(list(found.values())) == "Knowledge crossed in this run; nothing warns of it."


@pytest.mark.parametrize("rung", STRANGERS)
def test_between_strangers_nothing_crossed_and_the_pair_is_named_as_the_reason(rung: str) -> None:
    found = found_on(rung)
    for rule in ("gain-above-controls", "forgetting", "strangers"):
        assert found[rule].severity == "warning", (rule, found[rule])
    assert found["crossed"].severity == "note"
    assert found["nothing-to-transfer"].severity == "fine"
    assert headline(list(found.values())).startswith("No transfer of unseen knowledge can be claimed")


def test_only_a_stranger_s_neurons_outweigh_the_layers_they_replace() -> None:
    assert found_on("sibling")["change-size"].severity == "fine"
    assert found_on("equal")["change-size"].severity == "warning"
    assert found_on("clone")["change-size"].severity == "not checked"  # other shapes than the student's
    assert "other shapes" in found_on("clone")["change-size"].says


def test_the_clone_s_layers_are_the_most_alike() -> None:
    below = {r: sum(line["below untrained"] for line in found_on(r)["low-cka"].numbers) for r in (*KIN, *STRANGERS)}
    assert below["clone"] < min(below[r] for r in STRANGERS)
    assert found_on("equal")["low-cka"].severity == "warning"
