from __future__ import annotations

import pandas as pd
import pytest

from paraknow.errors import InputError
from paraknow.evaluate import items

ANSWERS = {("m", 0): [1, 1, 0, 1, 1], ("m", 1): [1, 0, 0, 1, 0], ("student", -1): [0, 1, 0, 1, 1]}
TEXTS = ["Where was Ada born?", "Sort 3 1 2", "Who?", "What (exactly)?", "Müller?"]


def table() -> pd.DataFrame:
    rows = [
        {"task": "t" if doc < 3 else "u", "group": "all", "doc_id": doc, "model": model, "seed": seed, "target": "York"}
        | {"correct": bool(c), "prompt": TEXTS[doc], "answer": f"{model}{seed}", "logprob": -1.0 - doc - seed / 2}
        for (model, seed), answers in ANSWERS.items()
        for doc, c in enumerate(answers)
    ]
    return pd.DataFrame(rows)


def test_a_line_an_item_with_seeds_averaged():
    found = items.lines(table(), "m", "student").set_index("doc_id")
    assert found.change.to_dict() == {0: "gained", 1: "lost", 4: "lost", 3: "both right", 2: "both wrong"}
    assert list(found.change)[:3] == ["gained", "lost", "lost"], "what flipped stands first"
    assert found.correct[1] == 0.5 and found.correct_reference[1] == 1.0
    assert found.logprob[0] == pytest.approx(-1.25) and found.moved[0] == pytest.approx(-1.25 - -0.5)
    assert found.answer[0] == "m0" and found.answer_reference[0] == "student-1"
    other = items.lines(table(), "student", "m").set_index("doc_id")
    assert other.change[0] == "lost" and other.moved[0] == pytest.approx(-found.moved[0])


def test_equal_shares_that_are_neither_all_nor_none_are_alike():
    whole = table()
    whole = pd.concat([whole, whole[whole.model == "m"].assign(model="twin")])
    found = items.lines(whole, "m", "twin").set_index("doc_id")
    assert found.change.to_dict() == {0: "both right", 3: "both right", 2: "both wrong", 1: "alike", 4: "alike"}


@pytest.mark.parametrize(
    ("options", "docs"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"search": "BORN ada"}, {0}),
        ({"search": "müller"}, {4}),
        ({"search": "(exactly)?"}, {3}),
        ({"search": "york m0"}, {0, 1, 2, 3, 4}),
        ({"search": "nowhere"}, set()),
        ({"changes": ["gained", "both wrong"]}, {0, 2}),
        ({"tasks": ["u"], "changes": ["lost"]}, {4}),
        ({"groups": ["all"], "search": "york m0"}, {0, 1, 2, 3, 4}),
    ],
)
def test_lines_are_searched_and_filtered(options, docs):
    found = items.select(items.lines(table(), "m", "student"), **options)
    assert set(found.doc_id) == docs and list(found.index) == list(range(len(docs)))


def test_what_is_not_there_is_named():
    with pytest.raises(InputError, match="'seeking' is not in this run; it has m, student"):
        items.lines(table(), "seeking", "student")
    with pytest.raises(InputError, match="'won'"):
        items.select(items.lines(table(), "m", "student"), changes=["won"])


@pytest.mark.parametrize(("column", "value", "found"), [
    ("logprob", float("nan"), 1), ("logprob", float("-inf"), 1),
    ("candidate_logprobs", [0.0, float("nan")], 1), ("candidate_logprobs", [0.0, float("inf")], 1),
    ("candidate_logprobs", [0.0, float("-inf")], 0),
])  # fmt: skip
def test_numbers_that_no_sound_model_gives_are_found(column, value, found):
    whole = table().assign(raw=None, note=None, candidate_logprobs=None)
    assert items.broken(whole).empty
    whole.at[3, column] = value
    assert list(items.broken(whole).index) == [3] * found
    assert items.broken(whole.assign(logprob=-1.0, candidate_logprobs=float("nan"))).empty, "missing"
    generated = whole.assign(raw="text", logprob=float("nan"), candidate_logprobs=None)
    assert items.broken(generated).empty


def test_an_answer_is_the_first_seeds_or_missing():
    whole = table()
    whole.loc[(whole.model == "m") & (whole.seed == 0), "answer"] = None
    assert items.lines(whole, "m", "student").answer.isna().all()


def test_missing_answers_do_no_harm():
    whole = table().assign(answer=None)
    assert len(items.select(items.lines(whole, "m", "student"), "york")) == 5


def test_rank_of_the_right_answer() -> None:
    assert items.rank("b", ["a", "b", "c"], [-1.0, -2.0, -3.0]) == 2
    assert items.rank("a", ["a", "b"], [-1.0, -1.0]) == 1  # a tie counts for it
    assert items.rank("b", ["a", "b"], [-1.0, float("-inf")]) == 2
    assert items.rank("x", ["a", "b"], [-1.0, -2.0]) is None and items.rank("a", ["a"], [float("nan")]) is None


@pytest.mark.parametrize("asked", [{"tasks": ["nope"]}, {"groups": ["nope"]}])
def test_a_task_or_group_that_no_item_has_is_named(asked):
    with pytest.raises(InputError, match="'nope': the items are of "):
        items.select(items.lines(table(), "m", "student"), **asked)
