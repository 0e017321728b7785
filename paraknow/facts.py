"""A user's own fact table: a CSV file becomes a task with known, shown and never shown facts (METHODS 4.3; no torch).

One line is one fact in one wording. Columns: `subject`, `relation`, `answer`; optional `candidates` (separated by |),
`group` (known, shown, never_shown), `question` and `test_question`. Other columns are kept and not read.
"""

from __future__ import annotations

import csv
import difflib
import io
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from paraknow import data, files
from paraknow.data import Example, Task
from paraknow.errors import InputError

REQUIRED = ("subject", "relation", "answer")
COLUMNS = (*REQUIRED, "candidates", "group", "question", "test_question")
GROUPS = ("known", "shown", "never_shown")
MOST = len(data.LETTERS)  # candidates of one fact, as everywhere
QUESTION, TEST_QUESTION = "What is the {relation} of {subject}?", "Which {relation} does {subject} have?"

Key = tuple[str, str]  # subject and relation: what makes two lines one fact


@dataclass(frozen=True)
class Fact:
    """One line of a table, `line` counted from 1 with the header. `question` is how training asks it."""

    line: int
    subject: str
    relation: str
    answer: str
    candidates: tuple[str, ...]
    group: str
    question: str
    test_question: str

    @property
    def key(self) -> Key:
        return self.subject, self.relation

    def example(self, *, test: bool) -> Example:
        """The fact as an example, in the wording of the test or of training."""
        asked = self.test_question if test else self.question
        name = f"{self.relation}: {self.subject} ({self.line})"
        return Example(name, (("user", asked),), self.answer, self.candidates, self.group)


@dataclass(frozen=True)
class FactTable:
    """A table as it was read: its facts, one per line, and the cells of every line by column, for writing it back."""

    path: Path
    facts: tuple[Fact, ...]
    columns: tuple[str, ...]
    cells: tuple[dict[str, str], ...]

    def questions(self) -> list[tuple[Fact, Example]]:
        """Every fact in its test wording; lines that ask the same question count once."""
        asked: dict[str, tuple[Fact, Example]] = {}
        for fact in self.facts:
            asked.setdefault(fact.test_question, (fact, fact.example(test=True)))
        return list(asked.values())

    def task(self, name: str, seed: int) -> Task:
        """The table as a task.

        With groups: train holds `shown`, align `known` (a part of `shown` where nothing is known), both as training
        asks them; test asks about all facts in the test wording. Without groups: an ordinary split of facts
        (`data.split_examples`), of which test takes the test wording.
        Raises InputError: nothing to train on, or fewer than three facts to split.
        """
        test = tuple(example for _, example in self.questions())
        if self.facts[0].group == "all":
            return self._split(name, seed)
        parts = {
            split: [f.example(test=False) for f in self.facts if f.group == group]
            for split, group in (("train", "shown"), ("align", "known"))
        }
        if not parts["train"]:
            raise InputError(f"{self.path}: no fact's group is shown, so there is nothing to locate and to tune with.")
        return data.from_parts(name, {**{s: e for s, e in parts.items() if e}, "test": list(test)}, seed)

    def _split(self, name: str, seed: int) -> Task:
        lines: dict[Key, list[Fact]] = {}
        for fact in self.facts:
            lines.setdefault(fact.key, []).append(fact)
        firsts = {own[0].example(test=False): own for own in lines.values()}
        whole = data.split_examples(name, list(firsts), seed)  # one example a fact: its wordings stay together

        def of(examples: Sequence[Example], test: bool) -> tuple[Example, ...]:
            made = [fact.example(test=test) for example in examples for fact in firsts[example]]
            return tuple({e.messages: e for e in made}.values())

        return Task(name, of(whole.train, False), of(whole.align, False), of(whole.test, True))


def read(path: Path, seed: int = 0) -> FactTable:
    """A fact table from a CSV file: UTF-8 with or without a byte order mark, quoted fields, any line ends.

    Missing candidates are the distinct answers of the same relation in the table (at least 2), of which at most 26 are
    drawn by `seed`, the right one always among them; they do not depend on the order of lines.
    Raises InputError: one sentence that names the file, the line and the column.
    """
    columns, lines = _cells(path)
    facts = [_fact(path, number, cells) for number, cells in lines]
    _refuse_contradictions(path, facts)
    answers: dict[str, set[str]] = {}
    for fact in facts:
        answers.setdefault(fact.relation, set()).add(fact.answer)
    whole = tuple(f if f.candidates else _with_candidates(path, f, answers[f.relation], seed) for f in facts)
    return FactTable(path, whole, columns, tuple(cells for _, cells in lines))


def write(table: FactTable, groups: Mapping[Key, str], out: Path) -> None:
    """The table with `groups` as its group column, replaced in one step; facts that have no group there are left out.

    Candidates are written out: without the facts that are left out they would be others.
    """
    columns = [*table.columns, *(c for c in ("candidates", "group") if c not in table.columns)]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for fact, cells in zip(table.facts, table.cells, strict=True):
        if fact.key in groups:
            writer.writerow({**cells, "candidates": "|".join(fact.candidates), "group": groups[fact.key]})
    files.write_text(out, text.getvalue())


def _cells(path: Path) -> tuple[tuple[str, ...], list[tuple[int, dict[str, str]]]]:
    """(columns, (line, cells by column) of every line that is not blank)."""
    rows = _rows(path)
    header = next(rows, None)
    if header is None:
        raise InputError(f"{path}: is empty; a first line with the columns {', '.join(REQUIRED)} is needed.")
    columns = tuple(name.strip().lower() for name in header[1])
    _refuse_columns(path, columns)
    lines = []
    for number, row in rows:
        if len(row) != len(columns):
            raise InputError(
                f"{path}, line {number}: has {len(row)} cells, the first line has {len(columns)} columns; a text with "
                "a comma needs quotes around it."
            )
        lines.append((number, {c: cell.strip() for c, cell in zip(columns, row, strict=True)}))
    if not lines:
        raise InputError(f"{path}: holds no facts, only the names of columns.")
    return columns, lines


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line it begins on, cells) of every line of a CSV file that is not blank."""
    number = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            for row in reader:
                if any(cell.strip() for cell in row):
                    yield number, row
                number = reader.line_num + 1
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error}).") from None
    except csv.Error as error:
        raise InputError(f"{path}, line {number}: is not valid CSV ({error}).") from None


def _refuse_columns(path: Path, columns: Sequence[str]) -> None:
    if twice := [c for c in columns if columns.count(c) > 1]:
        raise InputError(f"{path}, line 1: the column {twice[0]!r} is there twice.")
    for name in (c for c in COLUMNS if c not in columns):
        near = difflib.get_close_matches(name, [c for c in columns if c not in COLUMNS], n=1, cutoff=0.75)
        if near:
            raise InputError(f"{path}, line 1: unknown column {near[0]!r}; did you mean {name!r}?")
        if name in REQUIRED:
            odd = "; columns are separated by commas" if len(columns) == 1 and set(columns[0]) & set(";\t") else ""
            raise InputError(f"{path}, line 1: the column {name!r} is missing (it has {', '.join(columns)}){odd}.")


def _fact(path: Path, line: int, cells: Mapping[str, str]) -> Fact:
    """One line, checked by itself; candidates are empty where the table gives none."""
    where = f"{path}, line {line}"
    for name in REQUIRED:
        if not cells[name]:
            raise InputError(f"{where}: {name} is empty.")
    subject, relation, answer = (cells[name] for name in REQUIRED)
    group = cells.get("group", "") or "all"
    if group not in (*GROUPS, "all"):
        near = difflib.get_close_matches(group, GROUPS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"accepted are {', '.join(GROUPS)}, or nothing."
        raise InputError(f"{where}: group {group!r} is unknown; {hint}")
    plain = {name: text.format(relation=relation, subject=subject) for name, text in _TEMPLATES.items()}
    question = cells.get("question", "") or plain["question"]
    test = cells.get("test_question", "")
    if not test:  # another wording than training's, whichever that is
        test = plain["question" if question == plain["test_question"] else "test_question"]
    candidates = _given_candidates(cells.get("candidates", ""), answer, where)
    return Fact(line, subject, relation, answer, candidates, group, question, test)


_TEMPLATES = {"question": QUESTION, "test_question": TEST_QUESTION}


def _given_candidates(text: str, answer: str, where: str) -> tuple[str, ...]:
    if not text:
        return ()
    candidates = tuple(part.strip() for part in text.split("|"))
    if not all(candidates):
        raise InputError(f"{where}: candidates has an empty entry; they are separated by single |.")
    if twice := [c for c in candidates if candidates.count(c) > 1]:
        raise InputError(f"{where}: candidates names {twice[0]!r} twice.")
    if not 2 <= len(candidates) <= MOST:
        raise InputError(f"{where}: candidates has {len(candidates)} entries; 2 to {MOST} are possible.")
    if answer not in candidates:
        near = difflib.get_close_matches(answer, candidates, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise InputError(f"{where}: the answer {answer!r} is not among its candidates{hint}")
    return candidates


def _with_candidates(path: Path, fact: Fact, answers: set[str], seed: int) -> Fact:
    others = sorted(answers - {fact.answer})
    if not others:
        raise InputError(
            f"{path}, line {fact.line}: candidates is empty, and {fact.answer!r} is the only answer to "
            f"{fact.relation!r} in the table; at least 2 are needed."
        )
    if len(others) >= MOST:
        others = random.Random(f"{seed}\n{fact.relation}\n{fact.subject}").sample(others, MOST - 1)
    candidates = tuple(sorted([*others, fact.answer]))
    values = {**vars(fact), "candidates": candidates}
    return Fact(**values)


def _refuse_contradictions(path: Path, facts: Sequence[Fact]) -> None:
    """One fact has one answer and one group, one question has one answer; a table has groups or it has none."""
    first: dict[Key, Fact] = {}
    asked: dict[str, Fact] = {}
    seen: set[tuple[Key, str]] = set()
    for fact in facts:
        where, other = f"{path}, line {fact.line}", first.setdefault(fact.key, fact)
        about = f"the {fact.relation} of {fact.subject}"
        if (fact.group == "all") != (facts[0].group == "all"):
            empty = fact if fact.group == "all" else facts[0]
            raise InputError(
                f"{path}, line {empty.line}: group is empty, and other lines have one; give every fact a group or none."
            )
        if fact.answer != other.answer:
            raise InputError(
                f"{where}: answer {fact.answer!r} for {about}, which is {other.answer!r} on line {other.line}."
            )
        if fact.group != other.group:
            raise InputError(
                f"{where}: group {fact.group} for {about}, which is {other.group} on line {other.line} in another "
                "wording; a fact has one group."
            )
        if (fact.key, fact.question) in seen:
            raise InputError(f"{where}: {about} is asked in these words on an earlier line already.")
        seen.add((fact.key, fact.question))
        for column, text in (("question", fact.question), ("test_question", fact.test_question)):
            same = asked.setdefault(text, fact)
            if same.answer != fact.answer:
                raise InputError(
                    f"{where}: {column} {text!r} is also asked on line {same.line}, where the answer is "
                    f"{same.answer!r}; a question must name its subject."
                )
