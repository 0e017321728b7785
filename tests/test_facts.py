"""Fact tables: what a CSV file may hold, what it becomes, and every way it can be wrong."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paraknow import data, facts
from paraknow.errors import InputError

HEADER = "subject,relation,answer,group\n"
TABLE = HEADER + (
    "France,capital,Paris,known\nPeru,capital,Lima,shown\nChad,capital,N'Djamena,shown\n"
    "Togo,capital,Lomé,shown\nFiji,capital,Suva,never_shown\n"
)
PLAIN = "subject,relation,answer\n" + "".join(f"country {k},capital,city {k}\n" for k in range(20))


@pytest.fixture
def table(tmp_path):
    """table(text) → the path of a CSV file."""

    def write(text: str | bytes):
        path = tmp_path / "facts.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def asked(examples) -> set[str]:
    return {e.messages[0][1] for e in examples}


def test_groups_decide_the_splits(table):
    task = data.load_task(str(table(TABLE)))
    assert [e.group for e in task.train] == ["shown"] * 3 and [e.group for e in task.align] == ["known"]
    assert sorted(e.group for e in task.test) == ["known", "never_shown", "shown", "shown", "shown"]
    assert not asked(task.test) & (asked(task.train) | asked(task.align)), "the test has wordings of its own"
    assert "Which capital does Fiji have?" in asked(task.test)
    assert task.train[0].choices == ("Lima", "Lomé", "N'Djamena", "Paris", "Suva")


def test_without_known_facts_align_is_cut_from_shown_ones(table):
    task = data.load_task(str(table(TABLE.replace("known\n", "shown\n", 1))))
    assert len(task.align) == 1 and len(task.train) == 3 and not asked(task.align) & asked(task.train)


def test_without_groups_facts_are_split_as_always(table):
    path = str(table(PLAIN))
    task = data.load_task(path, seed=3)
    assert [len(task.split(s)) for s in data.SPLITS] == [16, 2, 2]
    subjects = [{e.answer for e in task.split(s)} for s in data.SPLITS]
    assert not subjects[2] & (subjects[0] | subjects[1]) and len(set.union(*subjects)) == 20
    assert data.load_task(path, seed=3).hash == task.hash != data.load_task(path, seed=4).hash
    assert len(facts.read(table(PLAIN)).questions()) == 20, "an audit asks about all of them"


def test_own_wordings_and_several_wordings_of_one_fact(table):
    text = "subject,relation,answer,group,question,test_question\n"
    text += "".join(f"c{k},capital,t{k},shown,Where rules c{k}?,Name c{k}'s seat.\n" for k in range(4))
    text += "c0,capital,t0,shown,The capital of c0?,Name c0's seat.\n"
    text += "c9,capital,t9,never_shown,Which capital does c9 have?,\n"
    task = data.load_task(str(table(text)))
    assert {"Where rules c0?", "The capital of c0?"} <= asked(task.train) | asked(task.align)
    assert len(task.test) == 5 and "Name c0's seat." in asked(task.test)
    assert "What is the capital of c9?" in asked(task.test), "the other template, where training has this one's words"


def test_spreadsheets_files_are_read(table):
    text = 'Subject, Relation ,ANSWER,note\r\n"Paris, Texas",state,"a ""big"" one",x\r\n\r\n"two\r\nlines",state,B,\r\n'
    found = facts.read(table(b"\xef\xbb\xbf" + text.encode()))
    assert [f.subject for f in found.facts] == ["Paris, Texas", "two\r\nlines"]
    assert [f.line for f in found.facts] == [2, 4] and found.facts[0].answer == 'a "big" one'
    assert found.columns == ("subject", "relation", "answer", "note")


@pytest.mark.parametrize(("text", "said"), [
    ("", "is empty"),
    ("subject,relation,answer\n", "holds no facts"),
    ("subject,relation\nx,y\n", "line 1: the column 'answer' is missing"),
    ("subjct,relation,answer\nx,y,z\n", "line 1: unknown column 'subjct'; did you mean 'subject'?"),
    ("subject,relation,answer,candidate\nx,y,z,z|w\n", "did you mean 'candidates'?"),
    ("subject;relation;answer\nx;y;z\n", "columns are separated by commas"),
    ("subject,relation,answer,answer\nx,y,z,z\n", "the column 'answer' is there twice"),
    ("subject,relation,answer\nx,y\n", "line 2: has 2 cells, the first line has 3 columns"),
    ("subject,relation,answer\nx,y,z\na,b,c,d\n", "line 3: has 4 cells"),
    ("subject,relation,answer\nx, ,z\n", "line 2: relation is empty"),
    ("subject,relation,answer\nx,y,z\n", "line 2: candidates is empty, and 'z' is the only answer to 'y'"),
    ("subject,relation,answer,candidates\nx,y,z,a|b\n", "line 2: the answer 'z' is not among its candidates."),
    ("subject,relation,answer,candidates\nx,y,Lyon,Paris|Lyons\n", "did you mean 'Lyons'?"),
    ("subject,relation,answer,candidates\nx,y,z,z\n", "candidates has 1 entries; 2 to 26"),
    ("subject,relation,answer,candidates\nx,y,z,z||a\n", "candidates has an empty entry"),
    ("subject,relation,answer,candidates\nx,y,z,z|a|z\n", "candidates names 'z' twice"),
    (HEADER + "x,y,z,hidden\n", "group 'hidden' is unknown; accepted are known, shown, never_shown"),
    (HEADER + "x,y,z,never shown\n", "did you mean 'never_shown'?"),
    (HEADER + "x,y,z,known\na,y,c,\n", "line 3: group is empty, and other lines have one"),
    ("subject,relation,answer\nx,y,z\nx,y,w\n", "line 3: answer 'w' for the y of x, which is 'z' on line 2"),
    ("subject,relation,answer\nx,y,z\nx,y,z\n", "line 3: the y of x is asked in these words on an earlier line"),
    ("subject,relation,answer,group,question\nx,y,z,shown,A?\nx,y,z,never_shown,B?\n",
     "line 3: group never_shown for the y of x, which is shown on line 2 in another wording"),
    ("subject,relation,answer,question\nx,y,z,Where?\na,y,c,Where?\n", "line 3: question 'Where?' is also asked"),
    ('subject,relation,answer\nx,y,"z\n', "line 2: is not valid CSV"),
    (b"subject,relation,answer\n\xff,y,z\n", "cannot be read as UTF-8"),
])  # fmt: skip
def test_what_is_wrong_is_named_with_its_place(table, text, said):
    path = table(text)
    with pytest.raises(InputError) as refused:
        facts.read(path)
    assert said in str(refused.value) and str(refused.value).startswith(str(path)) and "\n" not in str(refused.value)


def test_tables_that_can_be_audited_and_not_tuned(table):
    path = table(HEADER + "a,y,1,known\nb,y,2,never_shown\n")
    assert len(facts.read(path).questions()) == 2
    with pytest.raises(InputError, match="no fact's group is shown"):
        data.load_task(str(path))
    with pytest.raises(InputError, match="too few to split"):
        data.load_task(str(table("subject,relation,answer\na,y,1\nb,y,2\n")))


def test_many_answers_are_drawn_with_the_right_one_among_them(table):
    text = "subject,relation,answer\n" + "".join(f"s{k},y,a{k}\n" for k in range(40))
    path = table(text)
    found = facts.read(path, seed=1)
    assert all(len(f.candidates) == facts.MOST and f.answer in f.candidates for f in found.facts)
    assert found.facts == facts.read(path, seed=1).facts != facts.read(path, seed=2).facts


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(35)))
def test_the_order_of_lines_changes_no_fact(tmp_path_factory, order):
    path = tmp_path_factory.mktemp("tables") / "t.csv"
    lines = [f"s{k},r{k % 2},a{k},{('known', 'shown', 'never_shown')[k % 3]}\n" for k in range(35)]

    def read(text: str):
        path.write_text(text)
        return {f.key: (f.candidates, f.group, f.question, f.test_question) for f in facts.read(path).facts}

    assert read(HEADER + "".join(lines)) == read(HEADER + "".join(lines[k] for k in order))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip), min_size=2, max_size=6,
                unique_by=lambda s: s.strip()))  # fmt: skip
def test_any_text_survives_quoting(tmp_path_factory, subjects):
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["subject", "relation", "answer"])
    writer.writerows([s, "r", f"a{k}"] for k, s in enumerate(subjects))
    path = tmp_path_factory.mktemp("tables") / "t.csv"
    path.write_bytes(text.getvalue().encode())
    assert [f.subject for f in facts.read(path).facts] == [s.strip() for s in subjects]


def test_a_table_is_written_back_with_groups_and_all_its_columns(table, tmp_path):
    found = facts.read(table("subject,note,relation,answer\n" + "".join(f's{k},"x, y",r,a{k}\n' for k in range(9))))
    groups = {(f"s{k}", "r"): "shown" if k < 4 else "known" for k in range(8)}
    out = tmp_path / "new" / "out.csv"
    facts.write(found, groups, out)
    again = facts.read(out)
    assert again.columns == (*found.columns, "candidates", "group") and again.cells[0]["note"] == "x, y"
    assert {f.key: f.group for f in again.facts} == groups
    assert again.facts[0].candidates == found.facts[0].candidates, "what is left out stays a candidate"
    assert len(data.load_task(str(out)).train) == 4
