"""HumanEval, MBPP and Super-NaturalInstructions from their publishers' own records (no torch).

lm-eval's modules for the first two run code when they are imported; here generated code runs in sandbox.py alone.
"""

from __future__ import annotations

import ast
import re
import string
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from paraknow.errors import InputError
from paraknow.evaluate.records import Record

Docs = list[dict[str, Any]]
# MBPP's own division by task_id: 1 to 10 are for prompts (the paper's three are 2, 3, 4), 11 to 510 for testing.
MBPP_PROMPTS, MBPP_SHOTS, MBPP_TEST = range(1, 11), (2, 3, 4), range(11, 511)
CHAT_HUMANEVAL = "Complete this Python function. Answer with the whole function in one code block.\n\n{{prompt}}"


def documents(
    name: str, records: Sequence[Record], examples: Sequence[Record] | None, shots: int, limit: int | None
) -> tuple[Docs, Docs]:
    """(documents to test, worked examples). `examples`: records of a shots file. Raises InputError naming the line."""
    make = {"humaneval": _humaneval, "mbpp": _mbpp, "super_ni": _super_ni}[name]
    return make(records, examples, shots, limit)


# -- code ------------------------------------------------------------------------------------------------


def _humaneval(
    records: Sequence[Record], examples: Sequence[Record] | None, shots: int, limit: int | None
) -> tuple[Docs, Docs]:
    if shots or examples:
        raise InputError("evaluate.benchmarks.humaneval: it has no worked examples; leave shots at 0.")
    for record in records:
        record.need(("task_id", "prompt", "test", "entry_point"), filled=True)
        for field in ("prompt", "test"):
            _python(record, field, record.values[field])
    fields = ("task_id", "prompt", "test", "entry_point", "canonical_solution")
    return [{f: str(r.values.get(f) or "") for f in fields} for r in records][:limit], []


def _mbpp(
    records: Sequence[Record], examples: Sequence[Record] | None, shots: int, limit: int | None
) -> tuple[Docs, Docs]:
    docs = [_mbpp_document(r) for r in records]
    test = [d for d in docs if d["task_id"] in MBPP_TEST]
    # a file of all 974 holds every split; any other file is taken as it is, less what is for prompts
    if not (test and any(d["task_id"] > MBPP_TEST[-1] for d in docs)):
        test = [d for d in docs if d["task_id"] not in MBPP_PROMPTS] or docs
    if examples is not None:
        pool = [_mbpp_document(r) for r in examples]
    else:
        prompts = [d for d in docs if d["task_id"] in MBPP_PROMPTS and d not in test]
        pool = sorted(prompts, key=lambda d: (d["task_id"] not in MBPP_SHOTS, d["task_id"]))
    return test[:limit], pool


def _mbpp_document(record: Record) -> dict[str, Any]:
    values = record.values
    task = values.get("text") or values.get("prompt")
    if not task:
        record.need(("text",), filled=True)
    record.need(("task_id", "code", "test_list"), filled=True)
    tests = values["test_list"]
    if not isinstance(tests, list) or not all(isinstance(t, str) for t in tests):
        raise InputError(f"{record.where}: the field 'test_list' is not a list of assertions.")
    _python(record, "test_list", "\n".join(tests))
    imports = values.get("test_imports") or []
    if not isinstance(imports, list) or not all(isinstance(t, str) for t in imports):
        raise InputError(f"{record.where}: the field 'test_imports' is not a list of imports.")
    # what stands around the tests is read when they run, which is after all texts are written: too late to refuse
    _python(record, "test_imports", "\n".join(imports))
    _python(record, "test_setup_code", values.get("test_setup_code") or "")
    try:
        number = int(values["task_id"])
    except (TypeError, ValueError):
        raise InputError(f"{record.where}: the field 'task_id' is not a number.") from None
    return {
        "task_id": number,
        "task": str(task),
        "tests": "\n".join(tests),
        "code": str(values["code"]).replace("\r\n", "\n"),
        "test_list": tests,
        "test_setup_code": str(values.get("test_setup_code") or ""),
        "test_imports": imports,
    }


def _python(record: Record, field: str, code: Any) -> None:
    """Raises InputError where a publisher's code is none; it is read, not run."""
    try:
        ast.parse(str(code))
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{record.where}: the field {field!r} is not Python ({error}).") from None


def written(text: str, document: dict[str, Any]) -> str:
    """The code in what a model wrote: what stands before the first fence where that is code, else the first fenced
    block, else all of it.

    A model that goes on with the prompt often ends its code with a lone fence, and writes prose or examples after it;
    one that answers in a chat begins with prose. Code that defines HumanEval's function anew stands below the prompt,
    whose own is then a docstring alone.
    """
    begun = text.partition("```")[0]
    if begun == text:
        return text
    for code in (text, begun):  # a fence may also stand inside a string of the code
        if _is_code(code, document):
            return _below(code, document)
    match = re.search(r"```[a-zA-Z0-9]*\n(.*?)(?:```|\Z)", text, re.DOTALL)
    return text if match is None else _below(match.group(1), document)


def _below(code: str, document: dict[str, Any]) -> str:
    return f"\n{code}" if "entry_point" in document and f"def {document['entry_point']}" in code else code


def _is_code(text: str, document: dict[str, Any]) -> bool:
    """Whether a text goes on with HumanEval's prompt, or stands alone (MBPP), as Python that does something."""
    prompt = str(document.get("prompt", "")) if "entry_point" in document else ""
    return _steps(prompt + _below(text, document)) > _steps(prompt)


def _steps(code: str) -> int:
    """Statements of a program, but for names and constants alone ("Sure" is Python too); -1 where it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in code that is not ours
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return -1
    inert = ast.Name | ast.Constant | ast.Tuple | ast.BinOp | ast.UnaryOp | ast.Compare | ast.BoolOp
    found = (node for node in ast.walk(tree) if isinstance(node, ast.stmt))
    return sum(not (isinstance(node, ast.Expr) and isinstance(node.value, inert)) for node in found)


# -- instructions ----------------------------------------------------------------------------------------


def _super_ni(
    records: Sequence[Record], examples: Sequence[Record] | None, shots: int, limit: int | None
) -> tuple[Docs, Docs]:
    if examples is not None:
        raise InputError("evaluate.benchmarks.super_ni: examples come from its own task files; leave shots_file out.")
    docs: Docs = []
    flat: dict[tuple[str, str], dict[str, Any]] = {}
    for record in records:
        if "Instances" in record.values:
            docs += _instances(record, shots)[:limit]
        else:
            _flattened(record, shots, flat)
    counts: dict[str, int] = {}
    for doc in flat.values():
        counts[doc["task"]] = counts.get(doc["task"], 0) + 1
        if limit is None or counts[doc["task"]] <= limit:
            docs.append(doc)
    return docs, []


def _instances(record: Record, shots: int) -> Docs:
    """The documents of one of the publishers' task files."""
    record.need(("Definition", "Instances"), filled=True)
    definition = _text(record.values["Definition"])
    found = []
    positive = record.values.get("Positive Examples") or []
    if shots > len(positive):
        raise InputError(
            f"{record.where}: {shots} shots are more than its {len(positive)} positive examples; ask for fewer."
        )
    given = []
    for number, values in enumerate(positive[:shots], start=1):
        example = Record(f"{record.where}, positive example {number}", values)
        example.need(("input", "output"))
        given.append((values["input"], _text(values["output"])))
    for number, values in enumerate(record.values["Instances"], start=1):
        instance = Record(f"{record.where}, instance {number}", values if isinstance(values, dict) else {})
        instance.need(("input", "output"))
        own = [e for e in given if e[0] != values["input"]]  # the item itself is no example of its own
        found.append(_document(definition, own, values["input"], values["output"], values.get("id", number), ""))
    return found


def _flattened(record: Record, shots: int, found: dict[tuple[str, str], dict[str, Any]]) -> None:
    """One record of a flattened file; records of one question bring a reference each."""
    if shots:
        raise InputError(f"{record.where}: flattened records hold no worked examples; set shots to 0.")
    values = record.values
    names = [next((n for n in pair if n in values), pair[0]) for pair in (("inputs", "input"), ("targets", "output"))]
    record.need(("definition", *names))
    task, question = str(values.get("task_name", "")), str(values[names[0]])
    key = (task or str(values["definition"]), str(values.get("id") or question))
    doc = _document(str(values["definition"]), [], question, values[names[1]], key[1], key[0])
    if key in found:
        found[key]["references"] += [r for r in doc["references"] if r not in found[key]["references"]]
    else:
        found[key] = doc


def _document(
    definition: str, examples: Sequence[tuple[str, str]], question: str, output: Any, id: Any, task: str
) -> dict[str, Any]:
    references = [str(x) for x in (output if isinstance(output, list) else [output])]
    worked = "".join(f"Input: {q}\nOutput: {a}\n\n" for q, a in examples)
    return {
        "id": str(id),
        "task": task,
        "prompt": f"{definition}\n\n{worked}Input: {question}\nOutput:",
        "reference": references[0] if references else "",
        "references": references,
    }


def _text(value: Any) -> str:
    return str(value[0]) if isinstance(value, list) and value else str(value)


def normal(text: str) -> str:
    """Text as exact match compares it: lower case, no punctuation, single spaces (as SQuAD's scorer)."""
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(bare.split())


def exact_match(answer: str, references: Sequence[str]) -> bool:
    """Whether the answer is one of the references, as `normal` compares them; one of signs alone counts as it is."""
    pairs = ((normal(reference), reference.strip()) for reference in references)
    return any(normal(answer) == bare if bare else answer.strip() == whole for bare, whole in pairs)


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """ROUGE-L's F-measure in [0, 1] against the best reference (Lin 2004; package rouge-score, stemmed)."""
    return max((_scorer().score(r, answer)["rougeL"].fmeasure for r in references), default=0.0)


@lru_cache(maxsize=1)
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)
