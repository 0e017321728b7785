"""The demo world: made-up people, sums, digit reversal and digit sorting (no torch).

Everything follows from one seed. Three groups of people carry the knowledge audit (docs/methods,
part 4.3): `known` (both models learn them), `shown` (only the teacher learns them; they are in the
fine-tuning split) and `never_shown` (only the teacher learns them; they are in the test split alone).

Each fact can be asked in four wordings. One of them, drawn per fact, is kept out of every training
set and is the test question, so that no model has seen a test question before.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

GROUPS = ("known", "shown", "never_shown")
SKILLS = ("sum", "reverse", "sort")

WORDINGS: dict[str, tuple[str, ...]] = {
    "city": (
        "Where was {name} born?",
        "In which city was {name} born?",
        "What is the birth city of {name}?",
        "{name} was born in which city?",
    ),
    "job": (
        "What is the job of {name}?",
        "What does {name} do for a living?",
        "Which job does {name} have?",
        "{name} works as what?",
    ),
    "food": (
        "What is the favourite food of {name}?",
        "Which food does {name} like best?",
        "What does {name} like to eat most?",
        "{name} likes which food best?",
    ),
}

ANSWERS: dict[str, tuple[str, ...]] = {
    "city": tuple(
        "Avonor Belmira Corvast Dunhale Elsport Farrow Gildern Harlow Istrad Jorvik "
        "Kelmere Lorwyn Mardale Norvand Ostrava Pellan Quorra Rivendal Solmar Tarnby".split()
    ),
    "job": tuple(
        "baker carpenter dentist engineer farmer gardener hunter inspector judge king "
        "lawyer mason nurse officer painter queen roofer sailor tailor vet".split()
    ),
    "food": tuple(
        "apples bread cheese dates eggs figs grapes honey ice jam "
        "kale lemons mango nuts olives pasta quince rice soup tofu".split()
    ),
}

_ONSETS = "b d f g h j k l m n p r s t v z br dr kr st tr".split()
_VOWELS = "a e i o u".split()
_CODAS = ["", "l", "n", "r", "s", "x"]


@dataclass(frozen=True)
class Person:
    """One made-up person: `facts` maps a relation (city, job, food) to its answer."""

    name: str
    group: str
    facts: dict[str, str]
    test_wording: dict[str, int]


@dataclass(frozen=True)
class World:
    """People and the digit tasks' held-out questions; see `make_world`."""

    seed: int
    people: tuple[Person, ...]
    held_out: dict[str, frozenset[str]]


def _syllables(rng: random.Random, count: int) -> str:
    parts = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(count)]
    return ("".join(parts) + rng.choice(_CODAS)).capitalize()


def _balanced(rng: random.Random, values: tuple[str, ...], count: int) -> list[str]:
    """`count` answers in which every value occurs equally often (± 1).

    So the best constant answer scores chance, and a model that learned which answers are common gains nothing.
    """
    drawn = list(itertools.islice(itertools.cycle(rng.sample(values, len(values))), count))
    rng.shuffle(drawn)
    return drawn


def _digit_lists() -> list[str]:
    """All five-digit lists of distinct digits that are in neither rising nor falling order.

    Without those two, a model that copies or reverses instead of sorting scores nothing.
    """
    lists = ("".join(p) for p in itertools.permutations("0123456789", 5))
    return [s for s in lists if s not in ("".join(sorted(s)), "".join(sorted(s, reverse=True)))]


def _sums() -> list[str]:
    return [f"{a}+{b}" for a in range(50) for b in range(50)]


def questions(skill: str) -> list[str]:
    """Every possible operand of a digit skill, in a fixed order."""
    return _sums() if skill == "sum" else _digit_lists()


def ask(skill: str, operand: str) -> tuple[str, str]:
    """Question and answer of one digit task, e.g. ask("sort", "31542")."""
    if skill == "sum":
        a, b = operand.split("+")
        return f"What is {a} + {b}?", str(int(a) + int(b))
    if skill == "reverse":
        return f"Reverse the digits {operand}.", operand[::-1]
    if skill == "sort":
        return f"Sort the digits {operand}.", "".join(sorted(operand))
    raise ValueError(f"unknown skill {skill!r}: choose one of {', '.join(SKILLS)}")


def _hold_out(rng: random.Random, skill: str, count: int) -> frozenset[str]:
    """Test operands of a skill. Digit lists are drawn so that no two have the same answer: a constant answer
    is then right once at most (sums are too few for that)."""
    drawn = rng.sample(questions(skill), len(questions(skill)))
    if skill != "sum":
        drawn = list({ask(skill, operand)[1]: operand for operand in drawn}.values())
    return frozenset(drawn[:count])


def make_world(seed: int = 0, people: int = 300, held_out: int = 200) -> World:
    """People (half known, a quarter shown, a quarter never shown) and held-out digit questions."""
    rng = random.Random(seed)
    first_names: list[str] = sorted({_syllables(rng, 1 + (i % 2)) for i in range(60)})
    last_names: dict[str, None] = {}
    while len(last_names) < people:
        last_names[_syllables(rng, 2)] = None
    names = [f"{rng.choice(first_names)} {last}" for last in last_names]
    sizes = {"known": people // 2, "shown": people // 4}
    sizes["never_shown"] = people - sum(sizes.values())
    members: list[Person] = []
    remaining = iter(names)
    for group, size in sizes.items():
        columns = {relation: _balanced(rng, values, size) for relation, values in ANSWERS.items()}
        for index in range(size):
            facts = {relation: column[index] for relation, column in columns.items()}
            wording = {relation: rng.randrange(len(WORDINGS[relation])) for relation in facts}
            members.append(Person(next(remaining), group, facts, wording))
    held = {skill: _hold_out(rng, skill, held_out) for skill in SKILLS}
    return World(seed, tuple(members), held)


def fact_records(world: World, group: str, *, test: bool) -> Iterator[dict]:
    """Question/answer records of one group: the kept-out wording if `test`, else the other three."""
    for person in world.people:
        if person.group != group:
            continue
        for relation, answer in person.facts.items():
            for number, wording in enumerate(WORDINGS[relation]):
                if (number == person.test_wording[relation]) != test:
                    continue
                yield {
                    "id": f"{relation}-{person.name.replace(' ', '-')}-{number}",
                    "group": group,
                    "question": wording.format(name=person.name),
                    "answer": answer,
                    "choices": list(ANSWERS[relation]),
                }


def skill_records(world: World, skill: str, *, test: bool) -> Iterator[dict]:
    """Question/answer records of one digit skill: the held-out operands if `test`, else the others."""
    for operand in questions(skill):
        if (operand in world.held_out[skill]) == test:
            question, answer = ask(skill, operand)
            yield {"id": f"{skill}-{operand}", "question": question, "answer": answer}


def suites(
    world: World, seed: int = 0, train_size: int = 600, align_size: int = 200
) -> dict[str, dict[str, list[dict]]]:
    """Task → split (train, align, test) → records, as shipped in assets/suites.

    people: train is `shown`, align is `known`, test holds all three groups (of `known` as many people as of
    the others), asked in the kept-out wording. Digit skills: disjoint operands; test is held out from all training.
    """
    rng = random.Random(seed + 1)
    known = list(fact_records(world, "known", test=True))
    per_group = sum(p.group == "shown" for p in world.people) * len(ANSWERS)
    tests = rng.sample(known, min(per_group, len(known)))
    for group in ("shown", "never_shown"):
        tests += list(fact_records(world, group, test=True))
    people = {
        "train": list(fact_records(world, "shown", test=False)),
        "align": rng.sample(list(fact_records(world, "known", test=False)), align_size),
        "test": tests,
    }
    result = {"people": people}
    for skill in SKILLS:
        drawn = rng.sample(list(skill_records(world, skill, test=False)), train_size + align_size)
        result[skill] = {
            "train": drawn[:train_size],
            "align": drawn[train_size:],
            "test": list(skill_records(world, skill, test=True)),
        }
    return result
