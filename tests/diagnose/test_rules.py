"""Every rule on a run broken on purpose, and all of them on a sound one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from paraknow import config
from paraknow.diagnose import RULES, Evidence, findings, headline
from tests.diagnose import made
from tests.diagnose.made import of, sound

OPTIONAL = {
    "warnings",
    "moves_blocks",
    "layerwise",
    "blocks",
    "starts",
    "aligned",
    "changes",
    "checks",
    "stitching",
}  # not alone
NAN = float("nan")
DIVERGED = made.losses(np.linspace(1, 3, 12))
LEVEL = made.losses(2 + 0.1 * np.cos(np.arange(12.0)))
SHUFFLED = [0, 2, 1, 3]
UNLIKE = {"models": {"teacher": {"vocabulary": 512}, "student": {"vocabulary": 999}}, "same_vocabulary": False}


def no_gain_over_noise() -> list[dict[str, Any]]:
    rows = made.rows()
    for row in rows:
        if row["model"] == "seeking" and row["group"] != "known":
            row["claim"] = False
            row["against"][1] |= {"delta": 0.01, "delta_ci": [-0.05, 0.07]}
    return rows


def few_items(teacher: int) -> list[dict[str, Any]]:
    return [
        {"model": "student", "suite": "demo:people", "group": "never_shown", "n": 8},
        made.row("teacher", "never_shown", teacher, n=8),
        made.row("seeking", "never_shown", 1, n=8),
    ]


def strangers() -> pd.DataFrame:
    return sound().aligned.assign(kinship=0.3)


BROKEN = [  # rule, evidence, severity, words of the finding
    (
        "unfinished",
        sound(status={"state": "failed", "stage": "tune", "error": "tuning: the loss", "stages": []}),
        "blocking",
        "tuning: the loss",
    ),
    ("unfinished", sound(status={"state": "done", "stages": ["load"]}), "blocking", "never evaluated"),
    ("unfinished", sound(status={"state": "running", "stage": "tune", "stages": []}), "note", "stage tune"),
    ("start-differs", sound(checks=made.checks(start_difference=0.3)), "blocking", "answer differently"),
    ("start-differs", sound(checks=made.checks(start_difference=[NAN, 1e-6, 1e-6, 0.2])), "blocking", "start at"),
    ("nothing-moved", sound(checks=made.checks(moved=0.0)), "blocking", "nothing was moved"),
    ("change-size", sound(changes=made.table(norm=9.0, weight_norm=5.0)), "warning", "layers 0, 1, 2, 3"),
    ("change-size", sound(changes=made.table(norm=1e-9, weight_norm=5.0)), "note", "round most of it away"),
    ("loss", sound(losses=DIVERGED), "blocking", "seeking, seed 0"),
    ("loss", sound(losses=DIVERGED[DIVERGED.label != "seeking"]), "warning", "seeking+noise"),
    ("loss", sound(losses=LEVEL), "warning", "not measurably better"),
    ("loss", sound(losses=made.losses([2.0, NAN] * 6)), "blocking", "seeking, seed 1"),
    ("loss", sound(checks=made.checks(kept_step=3)), "blocking", "worse"),
    ("rank-clipped", sound(ranks={"seeking": 16}), "warning", "down to 8"),
    ("control-same", sound(checks=made.checks(same=[False, False, True, True])), "warning", "seeking+noise"),
    (
        "reload",
        sound(reload={"largest_difference": {"seeking/0": 0.5}, "limit": {"seeking/0": 1e-4}}),
        "blocking",
        "not what was measured",
    ),
    ("reload", sound(reload={"largest_difference": {"seeking/0": 0.0}}), "warning", "seeking/1"),
    ("budgets", sound(budgets=made.budgets(steps=6)), "note", "gaussian (steps)"),
    ("budgets", sound(budgets=made.budgets().assign(added=1000)), "note", "1,000 parameters"),
    ("warned", sound(warnings=["tuning: 3 prompts were cut."]), "note", "3 prompts"),
    ("crossed", sound(rows=made.rows(never_shown=(1, 1))), "note", "No unseen knowledge"),
    ("gain-above-controls", sound(rows=no_gain_over_noise()), "blocking", "not better than every control"),
    ("gain-above-controls", sound(rows=made.rows(shown=(1, 1), never_shown=(0, 0))), "warning", "No gain"),
    (
        "nothing-to-transfer",
        sound(rows=[r if r["model"] != "teacher" else made.row("teacher", r["group"], 1) for r in made.rows()]),
        "blocking",
        "nothing can arrive",
    ),
    ("only-shown", sound(rows=made.rows(never_shown=(1, 0))), "warning", "nobody showed"),
    ("forgetting", sound(rows=made.rows(known=(0, 20))), "warning", "−33.3 points"),
    ("forgetting", sound(rows=[*made.rows(), made.row("seeking", "all", 0, 30, "demo:sum")]), "warning", "demo:sum"),
    ("too-few", sound(rows=few_items(8)), "warning", "8 items"),
    ("too-few", sound(rows=few_items(5)), "blocking", "8 items"),
    ("not-read-out", sound(items=made.items(right=0.0, rank=1)), "note", "still not the first"),
    ("seeds-disagree", sound(items=made.items(other_seed=0.1)), "warning", "seed 0 against 1"),
    ("strangers", sound(aligned=strangers()), "warning", "agree by 0.30"),
    ("low-cka", sound(cka=made.cka(0.03)), "warning", "shuffled rows"),
    ("low-cka", sound(cka=made.cka(0.2)), "note", "untrained"),
    ("vocabularies", sound(environment=UNLIKE), "note", "different vocabularies"),
    (
        "pairing-crosses-depth",
        sound(blocks=made.blocks(SHUFFLED), stitching=made.stitching(SHUFFLED)),
        "warning",
        "do not go down",
    ),
    ("pairing-crosses-depth", sound(stitching=made.stitching(SHUFFLED)), "note", "predicts it better"),
    ("blocks-jump", sound(agreement=made.agreement(block=0.28)), "warning", "overlap by 0.30"),
    ("blocks-jump", sound(agreement=made.agreement(layers=0.2)), "warning", "choose layers"),
    ("interference", sound(weights=made.weights(0.5)), "note", "50 %"),
    ("interference", sound(weights=made.weights(0.5), rows=made.rows(known=(0, 20))), "warning", "forgotten"),
]


@pytest.mark.parametrize(
    ("rule", "evidence", "severity", "said"), BROKEN, ids=[f"{b[0]}-{k}" for k, b in enumerate(BROKEN)]
)
def test_a_run_broken_on_purpose(rule: str, evidence: Evidence, severity: str, said: str) -> None:
    found = of(rule, evidence)
    assert [f.severity for f in found] == [severity], found
    assert said in f"{found[0].title} {found[0].says}"
    for remedy in found[0].remedies:
        assert remedy.text
        assert evidence.config is not None
        config.changed(evidence.config, remedy.changes)  # settings that there are, with values they take


def test_every_rule_is_broken_at_least_once() -> None:
    assert {rule.name for rule in RULES} == {b[0] for b in BROKEN}


def test_a_sound_run_is_left_alone() -> None:
    found = findings(sound())
    assert {f.rule: f.severity for f in found if f.severity != "fine"} == {"crossed": "good"}
    assert headline(found) == "Knowledge crossed in this run; nothing warns of it."


def test_a_run_without_anything_says_why_of_every_rule() -> None:
    found = findings(Evidence())
    assert {f.severity for f in found} == {"not checked"} and len(found) == len(RULES)
    assert all(f.says.endswith(".") for f in found)


@pytest.mark.parametrize("name", [n for n in Evidence.__dataclass_fields__ if n != "missing"])
def test_what_is_missing_is_said_and_breaks_nothing(name: str) -> None:
    found = findings(replace(sound(items=made.items(n=4)), **{name: None}, missing={name: f"{name} was lost."}))
    assert name in OPTIONAL or any(f"{name} was lost." in f.says for f in found)
    assert not [f for f in found if f.severity in ("blocking", "warning")]


@pytest.mark.parametrize("rule", ["start-differs", "nothing-moved", "change-size"])
def test_runs_of_an_earlier_version_are_not_taken_for_good(rule: str) -> None:
    (found,) = of(rule, sound(checks=None, changes=None))
    assert found.severity == "not checked" and "before it was written down" in found.says


def test_the_gravest_stands_first() -> None:
    found = findings(sound(rows=made.rows(known=(0, 20), never_shown=(1, 0)), checks=made.checks(moved=0.0)))
    order = [f.severity for f in found]
    ranks = ["blocking", "warning", "note", "good", "fine", "not checked"]
    assert order == sorted(order, key=ranks.index) and order[0] == "blocking"
    assert headline(found).startswith("Nothing can be relied on yet: what was saved is the student itself")


def test_one_seed_and_few_steps_are_not_judged() -> None:
    one = made.items()
    assert of("seeds-disagree", sound(items=one[one.seed != 1]))[0].severity == "not checked"
    short = made.losses()
    assert of("loss", sound(losses=short[short.step <= 4]))[0].severity == "not checked"


def test_seeds_may_be_read_as_floats() -> None:
    read = made.items(other_seed=0.1).astype({"seed": float, "doc_id": float})
    (found,) = of("seeds-disagree", sound(items=read))
    assert found.severity == "warning" and "seed 0 against 1" in found.says


def test_candidates_that_do_not_fit_are_passed_over() -> None:
    odd = made.items(right=0.0, rank=1)
    odd["candidates"] = [["x"] if k % 3 == 0 else v for k, v in enumerate(odd.candidates)]
    assert of("not-read-out", sound(items=odd))[0].severity in ("note", "fine", "not checked")
    assert of("not-read-out", sound(items=odd.assign(target="nowhere")))[0].severity == "not checked"


TABLES = [n for n in Evidence.__dataclass_fields__ if isinstance(getattr(sound(), n), pd.DataFrame)]


SMALL = sound(items=made.items(n=4))


def odd(name: str, kind: str) -> pd.DataFrame:
    """A table with nothing but names, without rows, with one row, or with zeros for numbers."""
    table = getattr(SMALL, name)
    numbers = list(table.select_dtypes("number").columns)
    kinds = {"none": table.iloc[:0], "one": table.iloc[:1], "missing": table.assign(**dict.fromkeys(numbers, NAN))}
    return kinds.get(kind, table.assign(**dict.fromkeys(numbers, 0.0)))


@pytest.mark.parametrize("kind", ["none", "one", "missing", "zero"])
def test_odd_tables_break_nothing(kind: str) -> None:
    found = findings(replace(SMALL, **{name: odd(name, kind) for name in TABLES}))
    assert len(found) >= len(RULES) and not [f for f in found if "are damaged" in f.says]


@pytest.mark.parametrize("name", TABLES)
def test_one_table_without_numbers_breaks_nothing(name: str) -> None:
    found = findings(replace(SMALL, **{name: odd(name, "missing")}))
    assert len(found) >= len(RULES) and not [f for f in found if "are damaged" in f.says]


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"model": "seeking", "suite": "x", "group": "known"}],
        [
            dict.fromkeys(made.row("seeking", "all", 1))
            | {"model": "seeking", "suite": "s", "group": "shown", "against": []}
        ],
    ],
)
def test_rows_that_hold_little_break_nothing(rows: list[dict[str, Any]]) -> None:
    found = findings(replace(SMALL, rows=rows))
    assert len(found) >= len(RULES) and not [f for f in found if "are damaged" in f.says]
