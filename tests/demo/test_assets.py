"""The shipped demo pair against its record, and against what it promises."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from transformers import AutoTokenizer

from paraknow import models, resources
from paraknow.demo import build, training, world
from paraknow.evaluate.statistics import wilson

RECORD = json.loads((resources.assets() / "record.json").read_text())
TAUGHT = {
    "teacher": ("people/known", "people/shown", "people/never_shown", "sum", "reverse", "sort"),
    "clone-teacher": ("people/known", "people/shown", "people/never_shown", "sum", "reverse", "sort"),
    "student": ("people/known", "sum", "reverse"),
    "sibling": ("people/known", "sum", "reverse"),
    "equal": ("people/known", "sum", "reverse"),
}


def suites() -> dict[str, dict[str, list[dict]]]:
    root = resources.assets() / "suites"
    return {
        name: {
            s: [json.loads(x) for x in (root / name / f"{s}.jsonl").read_text().splitlines()]
            for s in ("train", "align", "test")
        }
        for name in ("people", *world.SKILLS)
    }


def best_constant(name: str) -> float:
    """Accuracy of the best constant answer (for people: per relation, since the question names it)."""
    suite, _, group = name.partition("/")
    rows = [r for r in suites()[suite]["test"] if r.get("group", "") == group]
    kinds: dict[str, Counter] = {}
    for row in rows:
        kinds.setdefault(row["id"].split("-")[0], Counter())[row["answer"]] += 1
    return sum(max(c.values()) for c in kinds.values()) / len(rows)


def test_files_are_the_recorded_ones():
    for name, facts in RECORD["models"].items():
        for file, digest in facts["sha256"].items():
            assert build.sha256(resources.demo_model(name) / file) == digest, f"{name}/{file}"
        assert facts["steps"] > 0 and facts["parameters"] > 0
    assert {"command", "seed", "versions", "size", "seconds"} <= set(RECORD)


def test_the_suites_follow_from_the_seed():
    size = RECORD["size"]
    made = world.make_world(RECORD["seed"], size["people"], size["held_out"])
    assert world.suites(made, RECORD["seed"]) == suites()


@pytest.mark.parametrize("name", list(TAUGHT))
def test_stored_weights_have_the_recorded_accuracies(name):
    loaded = models.load(f"demo:{name}", device="cpu")
    tokenizer = AutoTokenizer.from_pretrained(resources.demo_model(name))
    found = training.accuracies(loaded.model, tokenizer, suites())
    for suite, accuracy in RECORD["models"][name]["accuracy"].items():
        assert found[suite] == pytest.approx(accuracy, abs=0.011), suite  # another processor may flip a near tie


@pytest.mark.parametrize(("name", "suite"), [(n, s) for n, taught in TAUGHT.items() for s in taught])
def test_models_know_what_they_were_taught(name, suite):
    assert RECORD["models"][name]["accuracy"][suite] >= 0.95


@pytest.mark.parametrize("suite", ["people/shown", "people/never_shown", "sort"])
def test_the_student_is_at_chance_on_the_rest(suite):
    rows = [r for r in suites()[suite.split("/")[0]]["test"] if r.get("group", "") == suite.partition("/")[2]]
    right = round(RECORD["models"]["student"]["accuracy"][suite] * len(rows))
    low, high = wilson([True] * right + [False] * (len(rows) - right))
    assert low <= best_constant(suite) <= high


def test_assets_stay_small_and_grouped_queries_are_used():
    size = sum(p.stat().st_size for p in resources.assets().rglob("*") if p.is_file())
    assert size < 40 * 2**20, f"{size / 2**20:.1f} MiB"
    architecture = models.load("demo:student", device="cpu").architecture
    assert architecture.kv_heads < architecture.heads
    for path in resources.assets().rglob("*"):
        assert path.suffix not in (".bin", ".pt", ".pkl", ".pickle")
