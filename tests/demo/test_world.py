from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paraknow.demo import world


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.integers(8, 120))
def test_a_world_follows_from_its_seed(seed, people):
    made = world.make_world(seed, people, held_out=20)
    assert made == world.make_world(seed, people, held_out=20)
    assert len({p.name for p in made.people}) == people
    sizes = Counter(p.group for p in made.people)
    assert sizes["known"] == people // 2 and sizes["shown"] == people // 4 and sum(sizes.values()) == people


def test_no_answer_is_commoner_than_chance():
    made = world.make_world(0)
    for group in world.GROUPS:
        for relation, answers in world.ANSWERS.items():
            counts = Counter(p.facts[relation] for p in made.people if p.group == group)
            assert max(counts.values()) - min(counts.values()) <= 1 and len(counts) == len(answers)


def test_test_questions_are_in_no_training_set():
    made = world.make_world(0)
    suites = world.suites(made)
    trained = {r["question"] for g in world.GROUPS for r in world.fact_records(made, g, test=False)}
    for skill in world.SKILLS:
        trained |= {r["question"] for r in world.skill_records(made, skill, test=False)}
    for name, splits in suites.items():
        assert trained.isdisjoint(r["question"] for r in splits["test"]), name
        for split in ("train", "align"):
            assert trained >= {r["question"] for r in splits[split]}
    assert {r["group"] for r in suites["people"]["train"]} == {"shown"}
    assert Counter(r["group"] for r in suites["people"]["test"]) == {"known": 225, "shown": 225, "never_shown": 225}


def test_a_constant_answer_sorts_one_list_at_most():
    held = world.make_world(0).held_out
    for skill in ("reverse", "sort"):
        answers = [world.ask(skill, operand)[1] for operand in held[skill]]
        assert len(answers) == len(set(answers)) == 200


def test_answers_are_right():
    assert world.ask("sum", "17+25") == ("What is 17 + 25?", "42")
    assert world.ask("reverse", "31542")[1] == "24513"
    assert world.ask("sort", "31542")[1] == "12345"
    with pytest.raises(ValueError, match="unknown skill"):
        world.ask("divide", "1")
    for operand in world.questions("sort"):
        assert operand not in (world.ask("sort", operand)[1], world.ask("sort", operand)[1][::-1])
