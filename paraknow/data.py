"""Examples: reading records, rendering prompts, masking everything but the answer (no torch).

A record is one JSON object in one of four shapes: `messages`; `question`/`answer`;
`question`/`choices`/`answer`; `prompt`/`completion`. Optional in each: `group` (known, shown,
never_shown; default all) and `id`.

Choices: where `answer` is an integer, the options are shown in the prompt with letters and the answer is
the letter (MMLU's own fields); where it is a string, the choices are candidates to rank and are not shown.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paraknow import access, limits, resources
from paraknow.errors import InputError

GROUPS = ("known", "shown", "never_shown", "all")
SHAPES = "messages; question and answer; question, choices and answer; or prompt and completion"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SPLITS = ("train", "align", "test")


@dataclass(frozen=True)
class Example:
    """One question with its answer. `messages` end with the user's turn; `raw` prompts are used unrendered."""

    id: str
    messages: tuple[tuple[str, str], ...]
    answer: str
    choices: tuple[str, ...] | None = None
    group: str = "all"
    raw: bool = False


@dataclass(frozen=True)
class Task:
    """A named task with its three splits: seeds and tuning read train, evaluation reads test."""

    name: str
    train: tuple[Example, ...]
    align: tuple[Example, ...]
    test: tuple[Example, ...]

    def split(self, name: str) -> tuple[Example, ...]:
        return {"train": self.train, "align": self.align, "test": self.test}[name]

    @property
    def hash(self) -> str:
        """SHA-256 over all examples: two runs with the same hash saw the same data."""
        digest = hashlib.sha256()
        for name in SPLITS:
            for example in self.split(name):
                digest.update(repr(example).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Encoded:
    """Token ids of one example. `ids[answer_start:]` is the answer with the end token."""

    example: Example
    ids: tuple[int, ...]
    answer_start: int
    cut: int = 0


@dataclass
class EncodedSet:
    """Encoded examples, with how many had their prompt cut from the left and how many had to be left out."""

    items: list[Encoded] = field(default_factory=list)
    cut: int = 0
    dropped: int = 0

    def warning(self, what: str) -> str | None:
        """One sentence that counts what was cut or left out, or None."""
        if not (self.cut or self.dropped):
            return None
        total = len(self.items) + self.dropped
        parts = []
        if self.cut:
            parts.append(f"{self.cut} of {total} prompts were cut from the left to fit the context")
        if self.dropped:
            parts.append(f"{self.dropped} of {total} examples were left out because their answer alone does not fit")
        return f"{what}: " + "; ".join(parts) + "."


def parse_record(record: Any, where: str, index: int) -> Example:
    """One record as an Example. `where` names the place for the error sentence.

    Raises InputError: not an object, none of the four shapes, an empty answer, a choice that does not exist.
    """
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected a JSON object with {SHAPES}; got {type(record).__name__}.")
    group = record.get("group", "all")
    if group not in GROUPS:
        raise InputError(f"{where}: group {group!r} is none of {', '.join(GROUPS)}.")
    choices: tuple[str, ...] | None = None
    raw = False
    if "messages" in record:
        messages, answer = _parse_messages(record["messages"], where)
    elif "question" in record and "answer" in record:
        question, answer = str(record["question"]), record["answer"]
        if "choices" in record:
            question, answer, choices = _parse_choices(question, record["choices"], answer, where)
        messages = (("user", question),)
    elif "prompt" in record and "completion" in record:
        messages, answer, raw = (("user", str(record["prompt"])),), record["completion"], True
    else:
        fields = ", ".join(sorted(map(str, record))) or "no fields"
        raise InputError(f"{where}: a record needs {SHAPES}; this one has {fields}.")
    if not isinstance(answer, str) or not answer.strip():
        raise InputError(f"{where}: the answer is empty or not text; every example needs an answer.")
    if not all(text.strip() for _, text in messages):
        raise InputError(f"{where}: the question is empty.")
    return Example(str(record.get("id", index)), messages, answer, choices, group, raw)


def _parse_messages(turns: Any, where: str) -> tuple[tuple[tuple[str, str], ...], str]:
    if not isinstance(turns, list) or not all(isinstance(t, dict) and {"role", "content"} <= set(t) for t in turns):
        raise InputError(f"{where}: messages must be a list of objects with role and content.")
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise InputError(f"{where}: messages must end with an assistant turn after at least one other turn.")
    return tuple((str(t["role"]), str(t["content"])) for t in turns[:-1]), turns[-1]["content"]


def _parse_choices(question: str, choices: Any, answer: Any, where: str) -> tuple[str, str, tuple[str, ...]]:
    if not isinstance(choices, list) or not 2 <= len(choices) <= len(LETTERS):
        raise InputError(f"{where}: choices must be a list of 2 to {len(LETTERS)} answers.")
    texts = tuple(str(choice) for choice in choices)
    if isinstance(answer, int) and not isinstance(answer, bool):
        if not 0 <= answer < len(texts):
            raise InputError(f"{where}: answer {answer} is no index into its {len(texts)} choices.")
        options = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False))
        return f"{question}\n{options}", LETTERS[answer], tuple(LETTERS[: len(texts)])
    if answer not in texts:
        raise InputError(f"{where}: answer {answer!r} is not among its choices.")
    return question, str(answer), texts


def read_jsonl(path: Path) -> list[Example]:
    """All records of a JSONL file. Raises InputError naming the file and the first bad line."""
    examples = []
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                where = f"{path}, line {number}"
                try:
                    record = json.loads(line)
                except json.JSONDecodeError as error:
                    raise InputError(
                        f"{where}: not valid JSON ({error.msg}); one object per line is accepted."
                    ) from None
                examples.append(parse_record(record, where, number - 1))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error}).") from None
    if not examples:
        raise InputError(f"{path}: holds no records; {SHAPES} are accepted, one JSON object per line.")
    return examples


def split_examples(name: str, examples: Sequence[Example], seed: int) -> Task:
    """80 % train, 10 % align, 10 % test, shuffled by `seed`; never_shown facts go to test alone.

    Records that ask the same question stay on one side. Raises InputError under 3 different questions.
    """
    hidden = [e for e in examples if e.group == "never_shown"]
    questions: dict[tuple, list[Example]] = {}
    for example in examples:
        if example.group != "never_shown":
            questions.setdefault(example.messages, []).append(example)
    if len(questions) < 3:
        raise InputError(
            f"task {name}: {len(questions)} different questions are too few to split; at least 3 are needed."
        )
    order = list(questions.values())
    random.Random(seed).shuffle(order)
    tenth = max(1, len(order) // 10)
    align, test, train = order[:tenth], order[tenth : 2 * tenth], order[2 * tenth :]
    return Task(name, *(tuple(e for same in part for e in same) for part in (train, align, [*test, hidden])))


def load_task(name: str, seed: int = 0) -> Task:
    """A task by name: `demo:people|sum|reverse|sort`, a JSONL file, a fact table (.csv, see facts.py), a folder with
    train.jsonl (and align.jsonl, test.jsonl), or `hub:org/name[/config][@revision]` (a dataset hub).

    A single file or split is divided 80/10/10 by `seed`. Raises InputError naming what is wrong.
    """
    if name.startswith("demo:"):
        return _load_folder(name, resources.suite_folder(name.removeprefix("demo:")), seed)
    if name.startswith("hub:"):
        return _load_hub(name, seed)
    path = access.place(name, "data", f"task {name!r}")
    limits.check_data(path, f"task {name!r}")
    if path.is_dir():
        return _load_folder(name, path, seed)
    if is_table(name) and path.is_file():
        from paraknow import facts

        return facts.read(path, seed).task(name, seed)
    if path.is_file():
        return split_examples(name, read_jsonl(path), seed)
    raise InputError(
        f"task {name!r} was not found; accepted are demo:people, demo:sum, demo:reverse, demo:sort, "
        "a .jsonl file, a .csv fact table, a folder with train.jsonl, or hub:org/name."
    )


def is_table(name: str) -> bool:
    """Whether a task's name is that of a fact table."""
    return name.lower().endswith(".csv") and not name.startswith(("demo:", "hub:"))


def _load_folder(name: str, folder: Path, seed: int) -> Task:
    if not (folder / "train.jsonl").is_file():
        raise InputError(f"task {name!r}: the folder {folder} has no train.jsonl.")
    parts = {s: read_jsonl(folder / f"{s}.jsonl") for s in SPLITS if (folder / f"{s}.jsonl").is_file()}
    return from_parts(name, parts, seed)


def from_parts(name: str, parts: dict[str, list[Example]], seed: int) -> Task:
    """A task from some of its splits; absent ones are cut from train, so that test and train never share an example.

    Raises InputError where a fact marked never_shown is in train or align: it would be shown.
    """
    for split in ("train", "align"):
        if leaked := [e for e in parts.get(split, []) if e.group == "never_shown"]:
            raise InputError(
                f"task {name!r}: {split} holds {len(leaked)} records marked never_shown, such as {leaked[0].id!r}."
            )
    if set(parts) == set(SPLITS):
        return Task(name, *(tuple(parts[s]) for s in SPLITS))
    rest = split_examples(name, parts["train"], seed)
    spare = {"align": rest.align, "test": rest.test}
    unused = [e for split, examples in spare.items() if split in parts for e in examples]
    align, test = (tuple(parts.get(split, examples)) for split, examples in spare.items())
    return Task(name, (*rest.train, *unused), align, test)


def _load_hub(name: str, seed: int) -> Task:
    from datasets import load_dataset

    access.hub_data(name.removeprefix("hub:"), f"task {name!r}")
    repository, _, revision = name.removeprefix("hub:").partition("@")
    part = None
    if repository.count("/") == 2 and not repository.startswith("/"):  # org/name/config
        repository, _, part = repository.rpartition("/")
    _check_size(repository, revision, name)
    try:
        splits = load_dataset(repository, part, revision=revision or None)
    except Exception as error:  # the hub client raises many kinds; all mean the same to the user
        raise InputError(
            f"task {name!r}: the dataset could not be loaded ({type(error).__name__}: {error})."
        ) from error
    # MMLU calls its training questions auxiliary.
    train = "train" if "train" in splits else "auxiliary_train"
    names = {"train": train, "align": "validation", "test": "test"}
    parts = {
        ours: [parse_record(dict(r), f"{name}, {theirs} record {i}", i) for i, r in enumerate(splits[theirs])]
        for ours, theirs in names.items()
        if theirs in splits
    }
    if "train" not in parts:
        raise InputError(f"task {name!r}: the dataset has no train split (it has {', '.join(splits)}).")
    return from_parts(name, parts, seed)


def _check_size(repository: str, revision: str, name: str) -> None:
    """Refuse to fetch a large dataset for a visitor; one whose size no hub tells is here already, or nowhere."""
    if not limits.shared():
        return
    from huggingface_hub import HfApi, constants

    from paraknow.checkpoints import unreachable

    try:
        info = HfApi().dataset_info(repository, revision=revision or None, files_metadata=True)
    except unreachable():
        return
    size = sum(file.size or 0 for file in info.siblings or [])
    limits.check_download(f"task {name!r}", size, Path(constants.HF_HUB_CACHE))


def sample(examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """At most `count` examples drawn without repetition, the same for every model that asks with this seed."""
    return random.Random(seed).sample(list(examples), min(count, len(examples)))


def render(example: Example, tokenizer: Any) -> tuple[str, str]:
    """Prompt text and answer text (with its leading space, without the end token).

    A chat template is used where the tokenizer has one; otherwise `Question: …\\nAnswer:`.
    """
    if example.raw:
        return example.messages[-1][1], example.answer
    if getattr(tokenizer, "chat_template", None):
        turns = [{"role": role, "content": text} for role, text in example.messages]
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True), example.answer
    names = {"user": "Question", "assistant": "Answer", "system": "System"}
    lines = [f"{names.get(role, role.capitalize())}: {text}" for role, text in example.messages]
    return "\n".join(lines) + "\nAnswer:", f" {example.answer}"


def unrendered(prompt: str) -> str | None:
    """The question of a prompt that `render` made without a chat template, of one turn; None for any other text."""
    found = re.fullmatch(r"Question: (.+)\nAnswer:", prompt, re.DOTALL)
    return None if found is None or re.search(r"\n(Question|Answer|System):", found[1]) else found[1]


def tokens(text: str, example: Example, tokenizer: Any, **options: Any) -> Any:
    """What the tokenizer makes of an example's text; a chat template has put its special tokens there already."""
    special = not (getattr(tokenizer, "chat_template", None) and not example.raw)
    return tokenizer(text, add_special_tokens=special, **options)


def encode(example: Example, tokenizer: Any, context: int) -> Encoded | None:
    """Token ids of one example, at most `context` long; None where the answer alone does not fit.

    Prompt and answer are tokenised together, as lm-eval does, so that both see the same tokens. A prompt
    that is too long loses its beginning; the answer is never cut.
    """
    prompt, answer = render(example, tokenizer)
    whole = list(tokens(prompt + answer, example, tokenizer)["input_ids"])
    before = list(tokens(prompt, example, tokenizer)["input_ids"])
    end = tokenizer.eos_token_id
    # some tokenizers close every text with an end token: a prompt is not over
    start = len(before) - (end is not None and before[-1:] == [end] and not prompt.endswith(tokenizer.eos_token))
    if end is not None and (not whole or whole[-1] != end):
        whole.append(end)
    start = min(start, len(whole) - 1)
    cut = max(0, len(whole) - context)
    if start - cut < 1:
        return None
    return Encoded(example, tuple(whole[cut:]), start - cut, cut)


def encode_all(examples: Iterable[Example], tokenizer: Any, context: int, what: str) -> EncodedSet:
    """Encode examples, counting the cut and the dropped. Raises InputError if no example keeps its answer."""
    result = EncodedSet()
    for example in examples:
        encoded = encode(example, tokenizer, context)
        if encoded is None:
            result.dropped += 1
        else:
            result.cut += encoded.cut > 0
            result.items.append(encoded)
    if not result.items:
        raise InputError(f"{what}: no example keeps its answer within the context of {context} tokens.")
    return result


def padded(items: Sequence[Encoded], pad: int = 0) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """Right-padded ids, attention mask and labels (−100 on everything but the answer), one row per item."""
    width = max(len(item.ids) for item in items)
    ids, mask, labels = [], [], []
    for item in items:
        blank = width - len(item.ids)
        ids.append([*item.ids, *[pad] * blank])
        mask.append([1] * len(item.ids) + [0] * blank)
        labels.append([-100] * item.answer_start + list(item.ids[item.answer_start :]) + [-100] * blank)
    return ids, mask, labels
