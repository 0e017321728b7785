"""Made-up records in the fields of public benchmarks' publishers, written as files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SUBJECTS = ("anatomy", "astronomy", "virology")


def write(path: Path, records: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return str(path)


def gsm8k(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "question": f"Ada has {n} pears and buys {n + 2} more. How many pears has she?",
            "answer": f"She has {n} + {n + 2} = <<{n}+{n + 2}={2 * n + 2}>>{2 * n + 2}.\n#### {2 * n + 2}",
        }
        for n in range(start, start + count)
    ]


def mmlu(each: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "subject": subject,
            "question": f"Which of these is number {n} in {subject}?",
            "choices": [f"{n}", f"{n + 1}", f"{n + 2}", f"{n + 3}"],
            "answer": (n + k) % 4,
        }
        for n in range(start, start + each)
        for k, subject in enumerate(SUBJECTS[:2])
    ]


def humaneval(count: int = 2) -> list[dict[str, Any]]:
    return [
        {
            "task_id": f"HumanEval/{n}",
            "prompt": f'def add_{n}(x):\n    """Add {n}."""\n',
            "canonical_solution": f"    return x + {n}\n",
            "test": f"def check(candidate):\n    assert candidate(1) == {n + 1}\n",
            "entry_point": f"add_{n}",
        }
        for n in range(count)
    ]


def mbpp(ids: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {
            "task_id": n,
            "text": f"Write a function that adds {n}.",
            "code": f"def add(x):\r\n    return x + {n}",
            "test_list": [f"assert add(1) == {n + 1}", f"assert add(0) == {n}"],
        }
        for n in ids
    ]


def super_ni(instances: int = 3, examples: int = 2) -> dict[str, Any]:
    return {
        "Definition": ["Say the colour of the thing."],
        "Positive Examples": [{"input": f"thing {n}", "output": "red", "explanation": ""} for n in range(examples)],
        "Instances": [{"id": f"t-{n}", "input": f"object {n}", "output": ["Blue.", "navy"]} for n in range(instances)],
    }


def gpqa(count: int) -> list[dict[str, Any]]:
    wrong = {f"Incorrect Answer {k}": f"wrong {k}" for k in (1, 2, 3)}
    return [{"Question": f"What is number {n}?", "Correct Answer": f"right {n}", **wrong} for n in range(count)]
