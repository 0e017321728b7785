"""What a benchmark asks, worked out before any model is loaded (no torch, no lm_eval).

A plan names the lm-eval tasks of a benchmark, their records where a file is given, and the settings put over their own
YAML. Prompts, filters, metrics and the choice of worked examples stay lm-eval's, so the numbers are those of its
command line on the same YAML and records; our own three (own.py) are tasks of the same kind.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from paraknow import access, limits
from paraknow.config import Benchmark, Evaluate
from paraknow.errors import InputError
from paraknow.evaluate import catalogue, own, records
from paraknow.evaluate.catalogue import Function, Leaf
from paraknow.evaluate.records import Record

SHOTS = "shots"  # the split that records of worked examples are given as
Splits = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Piece:
    """One lm-eval task: `overrides` are put over its YAML, `splits` stand for its dataset (empty: from a hub)."""

    leaf: Leaf
    overrides: Mapping[str, Any] = field(compare=False, default_factory=dict)
    splits: Splits = field(compare=False, default_factory=dict)
    tested: str = "test"

    @property
    def generated(self) -> int:
        """Longest text it generates, in tokens."""
        return Leaf("", None, None, {**self.leaf.settings, **self.overrides}).generated


@dataclass(frozen=True)
class Plan:
    """A benchmark ready to be asked. `limit`: items of each of its tasks."""

    benchmark: Benchmark
    pieces: tuple[Piece, ...]
    limit: int | None

    @property
    def from_hub(self) -> bool:
        return not self.pieces[0].splits

    @property
    def items(self) -> int | None:
        """Questions asked; None where a hub's dataset has not been read."""
        if self.from_hub:
            return None
        sizes = [len(p.splits[p.tested]) for p in self.pieces]
        return sum(size if self.limit is None else min(size, self.limit) for size in sizes)

    @property
    def requests(self) -> int | None:
        """What the items ask of a model: each candidate alone, or one text."""
        choices = self.pieces[0].leaf.settings.get("doc_to_choice")
        count = len(choices) if isinstance(choices, list) else 1
        return None if self.items is None else self.items * (count if self.pieces[0].leaf.ranked else 1)

    @property
    def generated(self) -> int:
        """Longest text it generates, in tokens; 0 where it generates none."""
        return max(p.generated for p in self.pieces)

    @property
    def hash(self) -> str:
        """SHA-256 over what is asked: settings, and records where they are given."""
        told: list[Any] = [self.benchmark.model_dump(exclude={"file", "shots_file"}), self.limit]
        told += [[p.leaf.name, p.splits] for p in self.pieces]
        return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def plans(settings: Evaluate) -> list[Plan]:
    """A plan for every benchmark of a config. Raises InputError, see `plan`."""
    return [plan(b, settings.limit, settings.run_code) for b in settings.benchmarks]


def plan(benchmark: Benchmark, limit: int | None = None, run_code: bool = False) -> Plan:
    """What a benchmark asks.

    Raises InputError: an unknown name, code to be run without the switch, a file or a field of it that is missing
    (with the line), more worked examples than there are, a benchmark that is not right or wrong item by item.
    """
    leaves = catalogue.leaves(benchmark.name)
    where = f"evaluate.benchmarks.{benchmark.title}"
    if benchmark.name in catalogue.RUN_CODE and not run_code:
        raise InputError(
            f"{where}: it is scored by running the code that models write; evaluate.run_code: true (--run-code) "
            "lets it run, in a sandbox on this machine."
        )
    if any(leaf.settings.get("output_type") == "loglikelihood_rolling" for leaf in leaves):
        raise InputError(f"{where}: it measures perplexity, not answers that are right or wrong; choose another.")
    asked = next((leaf for leaf in leaves if leaf.settings.get("num_fewshot") == 0), None)
    if benchmark.shots and asked is not None and benchmark.name not in catalogue.OURS:
        raise InputError(f"{where}: lm-eval asks {asked.name} without worked examples; leave shots at 0.")
    limit = benchmark.limit or limit
    if benchmark.name in catalogue.OURS:
        return Plan(benchmark, (_own(benchmark, leaves[0], where, limit),), None)  # its documents are limited already
    if benchmark.file is None:
        if benchmark.shots_file is not None:
            raise InputError(f"{where}: shots_file goes with a file of test records; give both or neither.")
        return Plan(benchmark, tuple(Piece(leaf, _settings(benchmark, leaf)) for leaf in leaves), limit)
    if any(leaf.settings.get("class") for leaf in leaves):
        raise InputError(f"{where}: lm-eval reads it with its own code, so it takes no file; leave the file out.")
    test, examples = _read(benchmark, leaves[0])
    if len(leaves) == 1:
        test, examples = _own_subject(leaves[0], test), examples and _own_subject(leaves[0], examples)
        return Plan(benchmark, (_piece(benchmark, leaves[0], where, test, examples),), limit)
    return Plan(benchmark, tuple(_by_subject(benchmark, leaves, where, test, examples)), limit)


def _settings(benchmark: Benchmark, leaf: Leaf) -> dict[str, Any]:
    """What the config sets over a task's YAML."""
    found: dict[str, Any] = {}
    if benchmark.shots is not None:
        found["num_fewshot"] = benchmark.shots
    if benchmark.max_tokens is not None and leaf.generated:
        names = ("max_new_tokens", "max_tokens", "max_completion_tokens")
        kept = {k: v for k, v in (leaf.settings.get("generation_kwargs") or {}).items() if k not in names}
        found["generation_kwargs"] = {**kept, "max_gen_toks": benchmark.max_tokens}
    return found


def _split_names(leaf: Leaf) -> tuple[str, str | None]:
    """(the split that is tested, the split worked examples come from) as lm-eval takes them."""
    s = leaf.settings
    tested = s.get("test_split") or s.get("validation_split") or "test"
    shown = (s.get("fewshot_config") or {}).get("split") or s.get("fewshot_split")
    return tested, shown or s.get("training_split") or s.get("validation_split")


def _read(benchmark: Benchmark, leaf: Leaf) -> tuple[list[Record], list[Record] | None]:
    """(test records, records of worked examples or None where none were given)."""
    assert benchmark.file is not None
    tested, shown = _split_names(leaf)
    where = f"evaluate.benchmarks.{benchmark.title}"
    shots = access.place(benchmark.shots_file, "data", f"{where}.shots_file") if benchmark.shots_file else None
    examples = None if shots is None else records.read(shots)
    folder = access.place(benchmark.file, "data", f"{where}.file")
    for path in (folder, shots):
        if path is not None:
            limits.check_data(path, where)
    if examples is None and shown not in (None, tested) and records.of_split(folder, [str(shown)]):
        examples = records.read(folder, [str(shown)])
    return records.read(folder, [tested]), examples


# -- lm-eval's tasks on records of one's own -----------------------------------------------------------------


def _piece(
    benchmark: Benchmark, leaf: Leaf, where: str, test: Sequence[Record], examples: Sequence[Record] | None
) -> Piece:
    settings = leaf.settings
    for record in [*test, *(examples or ())]:
        _check(record, settings)
    overrides = _settings(benchmark, leaf)
    shots = int(overrides.get("num_fewshot", settings.get("num_fewshot")) or 0)
    tested, _ = _split_names(leaf)
    docs = [r.values for r in test]
    written = (settings.get("fewshot_config") or {}).get("samples")  # examples that stand in the YAML itself
    pool = docs if examples is None else [r.values for r in examples]
    if examples is not None or not written:
        _check_shots(where, shots, pool, docs, examples is None)
        # where examples come from the split that is tested, lm-eval leaves the item itself out
        overrides["fewshot_split"] = tested if examples is None else SHOTS
    elif isinstance(written, list) and shots > len(written):
        raise InputError(f"{where}: {shots} shots are more than its {len(written)} worked examples; ask for fewer.")
    overrides |= {"test_split": tested, "num_fewshot": shots}
    names = {settings.get(f"{kind}_split") for kind in ("training", "validation", "fewshot")} - {None}
    return Piece(leaf, overrides, {**{str(n): pool for n in names}, SHOTS: pool, tested: docs}, tested)


def _check_shots(where: str, shots: int, pool: Sequence[Any], docs: Sequence[Any], same: bool) -> None:
    """Raises InputError where there are too few worked examples, or one of them is a test record."""
    if not shots:
        return
    if shots > len(pool) - same:
        rest = ", the item itself left out" if same else ""
        raise InputError(f"{where}: {shots} shots are more than the {len(pool)} examples there are{rest}.")
    if not same:
        seen = {json.dumps(d, sort_keys=True, default=str) for d in docs}
        both = sum(json.dumps(d, sort_keys=True, default=str) in seen for d in pool)
        if both:
            raise InputError(f"{where}: {both} records of shots_file are test records too; an item must not be shown.")


def _by_subject(
    benchmark: Benchmark,
    leaves: Sequence[Leaf],
    where: str,
    test: Sequence[Record],
    examples: Sequence[Record] | None,
) -> list[Piece]:
    """One file for a group of tasks: each record's `subject` names its task's dataset (MMLU's own fields)."""
    known = {str(leaf.settings.get("dataset_name")): leaf for leaf in leaves}
    if len(known) < len(leaves):
        raise InputError(f"{where}: its {len(leaves)} tasks cannot be told apart in one file; name one of them.")
    parted = [_subjects(part, known) if part is not None else None for part in (test, examples)]
    assert parted[0] is not None
    return [
        _piece(
            benchmark,
            known[subject],
            f"{where}, {subject}",
            found,
            None if parted[1] is None else parted[1].get(subject, []),
        )
        for subject in known
        if (found := parted[0].get(subject))
    ]


def _own_subject(leaf: Leaf, part: list[Record]) -> list[Record]:
    """What one of MMLU's tasks reads of a file of all subjects. Raises InputError where its own is not there."""
    subject = leaf.settings.get("dataset_name")
    if "mmlu" not in str(leaf.settings.get("dataset_path")).lower() or not any("subject" in r.values for r in part):
        return part
    kept = [r for r in part if r.values.get("subject") == subject]
    if not kept:
        raise InputError(f"{part[0].where}: no record's subject is {subject!r}, which {leaf.name} asks.")
    return kept


def _subjects(part: Sequence[Record], known: Mapping[str, Leaf]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in part:
        record.need(("subject",), filled=True)
        subject = str(record.values["subject"]).strip().lower().replace(" ", "_")
        if subject not in known:
            near = difflib.get_close_matches(subject, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(list(known)[:5])}, …"
            raise InputError(f"{record.where}: {record.values['subject']!r} is no subject of the benchmark; {hint}")
        found.setdefault(subject, []).append(record)
    return found


def _check(record: Record, settings: Mapping[str, Any]) -> None:
    """Raises InputError where a record lacks what the task's own templates read, or its answer is no choice."""
    if settings.get("process_docs") is not None:
        return  # the fields are made by lm-eval's function
    choices, target = settings.get("doc_to_choice"), settings.get("doc_to_target")
    offered = record.values.get("choices")
    if isinstance(choices, list) and isinstance(offered, list) and len(offered) != len(choices):
        raise InputError(f"{record.where}: the field 'choices' has {len(offered)} entries; {len(choices)} are asked.")
    for key in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        template = settings.get(key)
        if not isinstance(template, str) or isinstance(template, Function):
            continue
        if template.isidentifier():
            record.need((template,))
        else:
            _render(template, record)
    if not isinstance(choices, list) or target not in record.values:
        return
    answer = record.values[str(target)]
    if answer not in choices and (isinstance(answer, bool) or answer not in range(len(choices))):
        raise InputError(f"{record.where}: {target} {answer!r} is none of 0 to {len(choices) - 1}.")


def _render(template: str, record: Record) -> None:
    """Raises InputError naming the field that a template reads and the record lacks."""
    from jinja2 import UndefinedError

    try:
        _compiled(template).render(**{k: v for k, v in record.values.items() if v is not None})
    except UndefinedError as error:
        name = re.match(r"'(\w+)' is undefined", str(error))
        if name:
            record.need((name.group(1),))
        raise InputError(f"{record.where}: a field is not as the benchmark reads it ({error}).") from None
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(f"{record.where}: a field is not as the benchmark reads it ({error}).") from None


@lru_cache(maxsize=64)
def _compiled(template: str) -> Any:
    from jinja2 import BaseLoader, Environment, StrictUndefined

    environment = Environment(loader=BaseLoader(), undefined=StrictUndefined)
    environment.filters["regex_replace"] = lambda text, *_, **__: text  # lm-eval's own; here nothing is kept
    return environment.from_string(template)


# -- our own -----------------------------------------------------------------------------------------------


def _own(benchmark: Benchmark, leaf: Leaf, where: str, limit: int | None) -> Piece:
    overrides = _settings(benchmark, leaf)
    if benchmark.file is not None:
        test, examples = _read(benchmark, leaf)
    else:
        test, examples = _fetch(leaf, where, benchmark.name)
    shots = int(overrides.get("num_fewshot", leaf.settings["num_fewshot"]))
    flat = benchmark.name == "super_ni" and benchmark.shots is None and "Instances" not in test[0].values
    docs, pool = own.documents(benchmark.name, test, examples, 0 if flat else shots, limit)
    if benchmark.name == "mbpp":
        _check_shots(where, shots, pool, docs, False)
    # Super-NaturalInstructions' examples are part of its documents' prompts
    overrides["num_fewshot"] = shots if benchmark.name == "mbpp" else 0
    return Piece(leaf, overrides, {"test": docs, **({"prompt": pool or docs[:1]} if benchmark.name == "mbpp" else {})})


def _fetch(leaf: Leaf, where: str, name: str) -> tuple[list[Record], list[Record] | None]:
    """The records of one of our own from a hub. Raises InputError where it cannot be reached."""
    from datasets import load_dataset

    try:
        splits = load_dataset(leaf.settings["dataset_path"], leaf.settings.get("dataset_name"))
    except Exception as error:  # the hub client raises many kinds; all mean the same to the user
        raise unreachable(where, name, error) from error
    found = {s: [Record(f"{where}, {s} record {i}", dict(r)) for i, r in enumerate(splits[s])] for s in splits}
    return found["test"], found.get("prompt")


def no_template(plan: Plan, spec: str) -> InputError:
    """The sentence for a chat template that is asked for and missing."""
    return InputError(
        f"evaluate.benchmarks.{plan.benchmark.title}: chat is asked for, and the tokenizer of {spec!r} has no chat "
        "template; leave chat out or set it to false."
    )


def unreachable(where: str, name: str, error: Exception) -> InputError:
    """The sentence for a dataset that cannot be fetched."""
    reason = (str(error).strip().splitlines() or [""])[0][:200]
    return InputError(
        f"{where}: the dataset cannot be reached ({type(error).__name__}: {reason}); give a local file: "
        f"evaluate.benchmarks: [{{name: {name}, file: PATH}}]."
    )
