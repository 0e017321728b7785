"""What two models know, in bits, before anything is moved: is there something to transfer, and on which facts?

from paraknow.evaluate.knowledge import audit_pair
found = audit_pair("demo:teacher", "demo:student", "demo:people")
found.groups, found.facts, found.words
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from paraknow import data, facts
from paraknow.checkpoints import BYTES, Checkpoint, find
from paraknow.data import Example
from paraknow.devices import free_bytes
from paraknow.errors import InputError, ResourceError, RunError
from paraknow.evaluate import deltas
from paraknow.models import Loaded
from paraknow.progress import Progress, silent

KNOWN_TO = {(True, True): "both", (True, False): "teacher", (False, True): "student", (False, False): "neither"}
GROUPS = {
    "known": "facts known to both",
    "shown": "facts to be shown",
    "never_shown": "facts never shown",
    "all": "all facts",
}


@dataclass(frozen=True)
class Audit:
    """What teacher and student know.

    groups: one row per group: group, n, and (teacher_…, student_…) accuracy, ci (Wilson, 95 %), bits and bits_ci;
        surplus and surplus_ci: the teacher's bits minus the student's, item by item. What cannot be measured is None.
    facts: one row per item: id, group, question, answer, teacher_answer, student_answer, teacher_bits, student_bits,
        known_to (both, teacher, student, neither: whose first-ranked answer is right).
    counts: group (and `all`) → known_to → number of items. words: one sentence per group.
    """

    teacher: str
    student: str
    task: str
    groups: list[dict[str, Any]]
    facts: pd.DataFrame
    counts: dict[str, dict[str, int]]
    words: list[str]


def audit_pair(
    teacher: str | Loaded,
    student: str | Loaded,
    task: str,
    *,
    seed: int = 0,
    limit: int | None = None,
    batch_size: int = 128,
    resamples: int = 2000,
    dtype: str = "float32",
    device: str = "auto",
    stage: Callable[[str], Progress] = lambda name: silent,
) -> Audit:
    """Measure both models alone on the same items and say what each knows (METHODS 4.3).

    Items: the test split of a task; of a fact table (.csv) all facts, in the test wording. Models given by name are
    loaded one after the other and freed. limit: at most so many items per group. stage(name) gives a progress callback.
    Raises InputError (no such task or model), ResourceError (a model does not fit), RunError (NaN, named).
    """
    examples = limited(questions(task, seed), limit)
    pair, parts = {"teacher": teacher, "student": student}, []
    names = [given.checkpoint.spec if isinstance(given, Loaded) else given for given in pair.values()]
    for given in pair.values():
        if not isinstance(given, Loaded):
            _refuse_large(find(given), dtype, device)  # both before either is measured
    for name, given in pair.items():
        with _opened(given, dtype, device) as loaded:
            parts.append(_measured(loaded, name, task, examples, batch_size, stage(name)))
    return read(pd.concat(parts, ignore_index=True), examples, (names[0], names[1], task), resamples, seed)


def questions(task: str, seed: int = 0) -> list[Example]:
    """What an audit asks: all facts of a table in their test wording, else a task's test split. Raises InputError."""
    if data.is_table(task) and Path(task).expanduser().is_file():
        return [example for _, example in facts.read(Path(task).expanduser(), seed).questions()]
    found = list(data.load_task(task, seed).test)
    if not found:
        raise InputError(f"task {task!r}: its test split is empty.")
    return found


def limited(examples: Sequence[Example], limit: int | None) -> list[Example]:
    """At most `limit` examples of every group, in their order."""
    counts: dict[str, int] = {}
    kept = []
    for example in examples:
        counts[example.group] = counts.get(example.group, 0) + 1
        if limit is None or counts[example.group] <= limit:
            kept.append(example)
    return kept


def _refuse_large(checkpoint: Checkpoint, dtype: str, device: str) -> None:
    place, free = free_bytes(device)
    need = checkpoint.parameters * BYTES[dtype]
    if need > free:
        raise ResourceError(
            f"memory: {checkpoint.title} needs about {need / 2**30:.1f} GiB on {place}, {free / 2**30:.1f} are free."
        )


@contextmanager
def _opened(given: str | Loaded, dtype: str, device: str) -> Iterator[Loaded]:
    """A model that is loaded already, or one that is for as long as it is measured."""
    from paraknow.models import load, release

    if isinstance(given, Loaded):
        yield given
        return
    loaded = load(given, dtype, device)
    try:
        yield loaded
    finally:
        del loaded
        release()


def _measured(
    loaded: Loaded, name: str, task: str, examples: Sequence[Example], batch_size: int, progress: Progress
) -> pd.DataFrame:
    from paraknow.evaluate import harness, items

    frame = harness.evaluate(loaded, {task: examples}, batch_size, progress=progress)
    if len(bad := items.broken(frame)):
        raise RunError(f"audit: the {name} gives NaN or infinity on item {bad.iloc[0].doc_id}.")
    return frame.assign(model=name, seed=-1)


# -- reading ---------------------------------------------------------------------------------------------


def read(
    items: pd.DataFrame,
    examples: Sequence[Example],
    names: tuple[str, str, str],
    resamples: int = 2000,
    seed: int = 0,
) -> Audit:
    """An audit from the items of `teacher` and `student` as `harness.evaluate` measures them; `doc_id` counts
    `examples`. `names`: of teacher, student and task. Raises RunError where the two answered different items."""
    deltas.join(items)
    about = _items(items, examples, seed)
    by_group = {g: part for g, part in about.groupby("group", sort=False)}
    order = sorted(by_group, key=lambda g: deltas.GROUP_ORDER[str(g)])
    rows = {(r["group"], r["model"]): r for r in deltas.rows(items, {}, resamples, seed)}
    groups = [_group(str(g), by_group[g], rows[(g, "teacher")], rows[(g, "student")], resamples, seed) for g in order]
    counts = {str(g): _counts(by_group[g]) for g in order}
    if len(order) > 1:
        counts["all"] = _counts(about)
    return Audit(*names, groups, about, counts, [words(row) for row in groups])


def _items(items: pd.DataFrame, examples: Sequence[Example], seed: int) -> pd.DataFrame:
    """One row per item; bits are fitted per model and group, as everywhere."""
    sides = {}
    for model, frame in items.groupby("model"):
        kept = []
        for _, part in frame.groupby("group", sort=False):
            part = part.sort_values("doc_id")
            bits = deltas.item_bits(part, seed)
            kept.append(part.assign(bits=None if bits is None else bits[0]))
        sides[str(model)] = pd.concat(kept).set_index("doc_id").sort_index()
    teacher, student = sides["teacher"], sides["student"]
    right = zip(teacher.correct, student.correct, strict=True)
    asked = [examples[number] for number in teacher.index]
    return pd.DataFrame(
        {
            "id": [e.id for e in asked],
            "group": teacher.group.to_numpy(),
            "question": [e.messages[-1][1] for e in asked],
            "answer": teacher.target.to_numpy(),
            **{f"{n}_answer": side.answer.to_numpy() for n, side in sides.items()},
            **{f"{n}_bits": side.bits.astype(float).to_numpy() for n, side in sides.items()},
            "known_to": [KNOWN_TO[bool(a), bool(b)] for a, b in right],
        }
    )


def _counts(part: pd.DataFrame) -> dict[str, int]:
    return {state: int((part.known_to == state).sum()) for state in KNOWN_TO.values()}


def _group(
    group: str, part: pd.DataFrame, teacher: dict[str, Any], student: dict[str, Any], resamples: int, seed: int
) -> dict[str, Any]:
    row: dict[str, Any] = {"group": group, "n": teacher["n"]}
    for name, own in (("teacher", teacher), ("student", student)):
        row |= {f"{name}_{key}": own[key] for key in ("accuracy", "ci", "bits", "bits_ci")}
    surplus = (part.teacher_bits - part.student_bits).to_numpy(float)
    known = not pd.isna(surplus).any()
    row["surplus"] = float(surplus.mean()) if known else None
    row["surplus_ci"] = deltas.bits_interval(surplus[None], resamples, seed) if known else None
    return row


def words(row: Mapping[str, Any]) -> str:
    """What can be measured on one group, in words."""
    about, n = GROUPS[row["group"]], row["n"]
    if row["surplus"] is None:
        return f"{about} ({n}): these have no candidates to rank, so bits cannot be measured; accuracy alone can."
    if row["surplus_ci"] is None:
        return f"{about} ({n}): one item says nothing about the spread."
    low, high = (_plain(x) for x in row["surplus_ci"])
    if row["surplus_ci"][0] > 0:
        return (
            f"{about}: the teacher knows {_plain(row['surplus'])} bits ({low} to {high}) that the student does not: "
            f"enough to measure transfer on {n} facts."
        )
    if row["surplus_ci"][1] < 0:
        return f"{about}: the student knows more than the teacher ({low} to {high} bits): nothing to transfer."
    return (
        f"{about}: what the teacher knows beyond the student ({low} to {high} bits on {n} facts) may be 0: nothing to "
        "transfer."
    )


def _plain(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # + 0.0: never "-0.00"


# -- groups ----------------------------------------------------------------------------------------------


def sorted_groups(found: Audit, table: facts.FactTable, seed: int = 0) -> dict[facts.Key, str]:
    """A group for every fact that a run can use: known to both → known; to the teacher only → half shown, half
    never_shown, drawn by `seed`. A fact in several wordings counts as known where all of them are answered.

    Raises InputError where fewer than six facts (as many as can be split and compared) are the teacher's alone.
    """
    states: dict[facts.Key, set[str]] = {}
    known_to = dict(zip(found.facts.id, found.facts.known_to, strict=True))
    for fact, example in table.questions():
        if example.id in known_to:
            states.setdefault(fact.key, set()).add(known_to[example.id])
    knows = {key: (not own & {"student", "neither"}, not own & {"teacher", "neither"}) for key, own in states.items()}
    alone = sorted(key for key, (teacher, student) in knows.items() if teacher and not student)
    if len(alone) < LEAST:
        raise InputError(
            f"{len(alone)} facts are known to the teacher only; at least {LEAST} are needed to show some and keep "
            "some back, so no table was written."
        )
    random.Random(seed).shuffle(alone)
    half = (len(alone) + 1) // 2
    made = {key: "known" for key, sides in knows.items() if all(sides)}
    return made | {key: "shown" if k < half else "never_shown" for k, key in enumerate(alone)}


LEAST = 6  # three to show, which is what can be split, and three to keep back
