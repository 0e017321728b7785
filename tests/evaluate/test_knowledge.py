"""The audit of a pair: what both models know, whether there is anything to transfer, and groups made from it."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from paraknow import cli, data, facts
from paraknow.data import Example
from paraknow.errors import InputError, ResourceError, RunError
from paraknow.evaluate import deltas, knowledge
from paraknow.evaluate.knowledge import audit_pair

CANDIDATES = tuple("abcdefgh")


def examples(count: int, group: str = "all") -> list[Example]:
    made = []
    for k in range(count):
        made.append(Example(f"r: s{k} ({k + 2})", (("user", f"Q{group}{k}?"),), CANDIDATES[k % 8], CANDIDATES, group))
    return made


def items(asked: list[Example], knows: dict[str, float], seed: int = 0) -> pd.DataFrame:
    """As the harness measures them: each model knows a share of the items and guesses the others."""
    rng, rows = np.random.default_rng(seed), []
    for model, share in knows.items():
        for k, example in enumerate(asked):
            scores = rng.normal(-6, 1, len(CANDIDATES))
            if k % 100 < 100 * share:
                scores[CANDIDATES.index(example.answer)] = -0.1
            best = int(scores.argmax())
            rows.append(
                {
                    "task": "t",
                    "group": example.group,
                    "doc_id": k,
                    "doc_hash": str(k),
                    "model": model,
                    "seed": -1,
                    "prompt": "p",
                    "target": example.answer,
                    "answer": CANDIDATES[best],
                    "correct": CANDIDATES[best] == example.answer,
                    "logprob": float(scores.max()),
                    "answer_tokens": 1,
                    "candidates": list(CANDIDATES),
                    "candidate_logprobs": scores.tolist(),
                }
            )
    return pd.DataFrame(rows)


def read(asked, knows, **more):
    return knowledge.read(items(asked, knows), asked, ("T", "S", "t"), 300, **more)


def test_a_surplus_is_measured_with_its_interval_and_said():
    found = read(examples(100), {"teacher": 1.0, "student": 0.0})
    (row,) = found.groups
    assert row["n"] == 100 and row["teacher_accuracy"] == 1.0 and row["teacher_bits"] > 2.8
    assert abs(row["student_bits"]) < 0.3 and row["surplus_ci"][0] < row["surplus"] < row["surplus_ci"][1]
    for name in ("teacher", "student"):
        low, high = row[f"{name}_bits_ci"]
        assert low <= row[f"{name}_bits"] <= high
    assert row["surplus"] == pytest.approx(row["teacher_bits"] - row["student_bits"])
    assert "enough to measure transfer on 100 facts" in found.words[0] and found.words[0].startswith("all facts: ")
    assert found.counts["all"]["both"] + found.counts["all"]["teacher"] == 100


@pytest.mark.parametrize(("knows", "said"), [
    ({"teacher": 0.0, "student": 0.0}, "may be 0: nothing to transfer"),
    ({"teacher": 1.0, "student": 1.0}, "may be 0: nothing to transfer"),
    ({"teacher": 0.0, "student": 1.0}, "the student knows more than the teacher"),
])  # fmt: skip
def test_nothing_to_transfer_is_said(knows, said):
    assert said in read(examples(60), knows).words[0]


def test_groups_stand_in_their_order_and_items_keep_their_place():
    asked = [*examples(5, "never_shown"), *examples(6, "known"), *examples(7, "shown")]
    found = read(asked, {"teacher": 1.0, "student": 0.0})
    assert [(r["group"], r["n"]) for r in found.groups] == [("known", 6), ("shown", 7), ("never_shown", 5)]
    assert list(found.facts.question) == [e.messages[0][1] for e in asked]
    assert sum(found.counts["all"].values()) == 18 == len(found.facts)
    assert set(found.facts.known_to) <= {"teacher", "both"} and len(found.words) == 3


def test_bits_are_those_of_a_runs_rows():
    asked = examples(40)
    measured = items(asked, {"teacher": 0.8, "student": 0.3})
    found = knowledge.read(measured, asked, ("T", "S", "t"), 300)
    rows = {r["model"]: r for r in deltas.rows(measured, {}, 300)}
    for name in ("teacher", "student"):
        assert (
            found.groups[0][f"{name}_bits"] == rows[name]["bits"] == pytest.approx(found.facts[f"{name}_bits"].mean())
        )
        assert found.groups[0][f"{name}_bits_ci"] == rows[name]["bits_ci"]


def test_what_cannot_be_measured_is_missing():
    asked = examples(1)
    (row,) = read(asked, {"teacher": 1.0, "student": 0.0}).groups
    assert row["surplus_ci"] is None and row["teacher_bits_ci"] is None and "one item" in knowledge.words(row)
    plain = items(examples(9), {"teacher": 1.0, "student": 0.0}).assign(candidates=None, candidate_logprobs=None)
    (row,) = (found := knowledge.read(plain, examples(9), ("T", "S", "t"), 300)).groups
    assert row["surplus"] is None and row["teacher_accuracy"] == 1.0 and "no candidates" in found.words[0]
    json.dumps(found.groups, allow_nan=False)


def test_other_items_are_refused():
    measured = items(examples(9), {"teacher": 1.0, "student": 0.0})
    with pytest.raises(RunError, match="not measured on the same items"):
        knowledge.read(measured.iloc[1:], examples(9), ("T", "S", "t"), 300)


# -- groups --------------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "facts.csv"
    lines = "".join(f"s{k},r,{CANDIDATES[k % 8]},{'|'.join(CANDIDATES)}\n" for k in range(30))
    path.write_text("subject,relation,answer,candidates\n" + lines)
    return facts.read(path)


def audited(table, known_to: list[str]) -> knowledge.Audit:
    ids = [example.id for _, example in table.questions()]
    frame = pd.DataFrame({"id": ids[: len(known_to)], "known_to": known_to})
    return knowledge.Audit("T", "S", "t", [], frame, {}, [])


def test_facts_are_sorted_by_who_knows_them(table):
    known_to = ["both"] * 9 + ["teacher"] * 11 + ["student"] * 4 + ["neither"] * 6
    found = knowledge.sorted_groups(audited(table, known_to), table)
    subjects = {g: {int(s[1:]) for (s, _), own in found.items() if own == g} for g in facts.GROUPS}
    assert subjects["known"] == set(range(9)) and len(subjects["shown"]) == 6 and len(subjects["never_shown"]) == 5
    assert subjects["shown"] | subjects["never_shown"] == set(range(9, 20))
    again = knowledge.sorted_groups(audited(table, known_to), table)
    assert again == found != knowledge.sorted_groups(audited(table, known_to), table, seed=1)
    assert len(knowledge.sorted_groups(audited(table, known_to[:15]), table)) == 15, "what was not asked is left out"


def test_too_little_to_transfer_makes_no_table(table):
    with pytest.raises(InputError, match="5 facts are known to the teacher only; at least 6"):
        knowledge.sorted_groups(audited(table, ["teacher"] * 5 + ["both"] * 25), table)


# -- with models ---------------------------------------------------------------------------------------


def test_a_random_pair_knows_nothing(tiny_pair, table):
    found = audit_pair(*tiny_pair, str(table.path), resamples=300)
    (row,) = found.groups
    assert row["n"] == 30 == len(found.facts) and abs(row["teacher_bits"]) < 1 and abs(row["student_bits"]) < 1
    assert found.teacher == tiny_pair[0].checkpoint.spec and set(found.facts.answer) <= set(CANDIDATES)


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(monkeypatch):
    monkeypatch.setattr(knowledge, "free_bytes", lambda device: ("cpu", 1000))
    with pytest.raises(ResourceError, match="memory: demo:teacher needs"):
        audit_pair("demo:teacher", "demo:student", "demo:people")


@pytest.fixture
def command(capsys):
    """command(code, …) → stdout, stderr of `paraknow audit`, which must exit with that code."""

    def run(code: int, *arguments: str) -> tuple[str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(["audit", "--teacher", "demo:teacher", "--student", "demo:student", *arguments])
        captured = capsys.readouterr()
        assert stop.value.code == code, captured.err
        return captured.out, captured.err

    return run


def test_the_demo_pair_has_its_numbers(command):
    out, _ = command(0, "demo:people", "--limit", "15", "--resamples", "300", "--json")
    found = json.loads(out)
    rows = {r["group"]: r for r in found["groups"]}
    assert found["schema_version"] == 1 and set(rows) == {"known", "shown", "never_shown"}
    for group in ("shown", "never_shown"):
        assert rows[group]["teacher_accuracy"] > 0.9 and rows[group]["student_accuracy"] < 0.35
        assert rows[group]["surplus_ci"][0] > 2 and abs(rows[group]["student_bits"]) < 1
    assert rows["known"]["student_accuracy"] > 0.8 and rows["known"]["surplus_ci"][0] < 0.3
    assert len(found["facts"]) == 45 and found["counts"]["never_shown"]["teacher"] >= 10
    assert "enough to measure transfer on 15 facts" in found["words"][2]


def test_a_users_table_becomes_a_task(command, tmp_path):
    people = [e for e in data.load_task("demo:people").test if e.group != "shown"]
    chosen = people[:12] + people[-12:]
    file, out = tmp_path / "people.csv", tmp_path / "groups.csv"
    lines = [f"{e.id},fact,{e.answer},{'|'.join(e.choices)},{e.messages[0][1]}\n" for e in chosen]
    file.write_text("subject,relation,answer,candidates,test_question\n" + "".join(lines))
    said, _ = command(0, str(file), "--resamples", "300", "--out", str(out))
    groups = [f.group for f in facts.read(out).facts]
    assert groups.count("known") >= 10 and groups.count("shown") >= 5 and groups.count("never_shown") >= 5
    assert "left out" in said and "Known to" in said
    task = data.load_task(str(out))
    assert {e.group for e in task.test} == {"known", "shown", "never_shown"} and len(task.train) >= 5


def test_too_little_to_write_is_said_after_the_numbers(command, tmp_path):
    file, out = tmp_path / "t.csv", tmp_path / "o.csv"
    file.write_text("subject,relation,answer\nFrance,capital,Paris\nPeru,capital,Lima\n")
    said, err = command(2, str(file), "--out", str(out))
    assert "Known to" in said and "known to the teacher only; at least 6" in err and not out.exists()


@pytest.mark.parametrize(("arguments", "said"), [
    (["demo:peple"], "there is no demo task 'peple'"),
    (["nowhere.csv"], "task 'nowhere.csv' was not found"),
    (["demo:people", "--out", "x.csv"], "--out writes a fact table back"),
    (["facts.csv", "--out", "x.parquet"], "the table is written as .csv"),
    (["demo:people", "--dtype", "int8"], "--dtype 'int8': choose one of float32"),
    (["demo:people", "--device", "tpu"], "--device 'tpu'"),
    (["demo:people", "--student", "demo:studnt"], "there is no demo model"),
    (["missing.csv", "--out", "x.csv"], "missing.csv: cannot be read"),
])  # fmt: skip
def test_bad_input_is_one_sentence(command, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    out, err = command(2, *arguments)
    assert said in err and err.startswith("paraknow: ") and len(err.strip().splitlines()) == 1 and out == ""
