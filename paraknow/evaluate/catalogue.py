"""Benchmarks by name: our own, and those of the installed lm-eval, read from its YAML files (no torch, no lm_eval).

Importing lm-eval takes seconds and brings torch, and its own index reads fourteen thousand files as YAML; a name's
settings are looked up here with a text scan of those files, so that a config can be checked while it is typed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from paraknow.errors import InputError

OURS = ("humaneval", "mbpp", "super_ni")
RUN_CODE = ("humaneval", "mbpp")
METRICS = {"humaneval": "pass@1", "mbpp": "pass@1", "super_ni": "exact match, ROUGE-L"}
# what people most often ask for, shown where no name is given
COMMON = (
    "mmlu gsm8k humaneval mbpp super_ni arc_challenge arc_easy hellaswag winogrande piqa boolq openbookqa "
    "truthfulqa_mc1 commonsense_qa gsm8k_cot mmlu_pro bbh lambada_openai"
).split()
_KEY = re.compile(r"""^["']?(task|group|class|include)["']?[ \t]*:[ \t]*["']?([^"'\s#\[{]*)""", re.MULTILINE)
_TAGS = re.compile(r"""^["']?tag["']?[ \t]*:[ \t]*(.*(?:\n[ \t]*-[ \t].*)*)""", re.MULTILINE)
# what a group's own YAML may say; everything else is set over its tasks
_GROUP_KEYS = ("group", "group_alias", "task", "aggregate_metric_list", "metadata", "tag", "version")


class Function(str):
    """A `!function` of a task's YAML, by its name; lm-eval imports it when it builds the task."""


class _Loader(yaml.SafeLoader):
    """YAML as lm-eval writes it, nothing imported."""


_Loader.add_constructor("!function", lambda loader, node: Function(node.value))


@dataclass(frozen=True)
class Entry:
    """One name of lm-eval: a task, a group of tasks, or a tag that tasks carry."""

    name: str
    kind: str
    path: Path | None = None
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class Leaf:
    """One task of a benchmark. `part`: which direct member of the group it belongs to, None for a task alone.

    settings: its YAML with what its groups set over it, which are `overrides` alone.
    """

    name: str
    path: Path | None
    part: str | None
    settings: Mapping[str, Any] = field(compare=False)
    overrides: Mapping[str, Any] = field(compare=False, default_factory=dict)

    @property
    def ranked(self) -> bool:
        """Whether candidates are ranked; otherwise text is generated or one continuation is scored."""
        return self.settings.get("output_type") == "multiple_choice"

    @property
    def generated(self) -> int:
        """Longest text it generates, in tokens; 0 where it generates none. lm-eval's own default is 256."""
        if self.settings.get("output_type", "generate_until") != "generate_until":
            return 0
        given = self.settings.get("generation_kwargs") or {}
        names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
        return next((int(given[n]) for n in names if given.get(n)), 256)


def tasks_folder() -> Path:
    """Where the installed lm-eval keeps its tasks."""
    spec = find_spec("lm_eval")
    assert spec is not None and spec.origin is not None  # a dependency of this package
    return Path(spec.origin).parent / "tasks"


@lru_cache(maxsize=1)
def index() -> dict[str, Entry]:
    """Every name lm-eval knows."""
    found: dict[str, Entry] = {}
    tags: dict[str, list[str]] = {}
    inherited: dict[Path, list[str]] = {}
    for path in sorted(tasks_folder().rglob("*.yaml")):
        text = path.read_text(encoding="utf-8", errors="replace")
        keys = dict(reversed(_KEY.findall(text)))  # the first of each key
        kind = "python" if "class" in keys else "group" if "group" in keys else "task"
        name = keys.get("group" if kind == "group" else "task")
        if not name:
            continue
        found.setdefault(name, Entry(name, kind, path))
        own = _tags(text)
        if own is None and keys.get("include"):
            above = (path.parent / keys["include"]).resolve()
            if above not in inherited:
                more = above.read_text(encoding="utf-8", errors="replace") if above.is_file() else ""
                inherited[above] = _tags(more) or []
            own = inherited[above]
        for tag in own or [] if kind != "group" else []:
            tags.setdefault(tag, []).append(name)
    for tag, names in tags.items():
        found.setdefault(tag, Entry(tag, "tag", None, tuple(sorted(set(names)))))
    return found


def _tags(text: str) -> list[str] | None:
    match = _TAGS.search(text)
    if match is None:
        return None
    try:
        value = yaml.load(match.group(0), _Loader)
    except yaml.YAMLError:
        return []
    tags = next(iter(value.values())) if isinstance(value, dict) else None
    return [tags] if isinstance(tags, str) else [str(t) for t in tags or []]


@lru_cache(maxsize=512)
def settings(path: Path) -> dict[str, Any]:
    """What a task's YAML says, with what it includes; functions by name. Raises InputError where it is no YAML."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{path}: the benchmark's YAML cannot be read ({' '.join(str(error).split())}).") from None
    above = values.pop("include", [])
    merged: dict[str, Any] = {}
    for name in above if isinstance(above, list) else [above]:
        merged.update({k: v for k, v in settings(path.parent / name).items() if k != "task_list"})
    return {**merged, **values}


def own_settings(name: str) -> dict[str, Any]:
    """The YAML of one of our own benchmarks."""
    return yaml.safe_load((files("paraknow.evaluate") / "tasks" / f"{name}.yaml").read_text(encoding="utf-8"))


def find(name: str) -> Entry:
    """A name as one of ours or of lm-eval's. Raises InputError with the nearest known name."""
    if name in OURS:
        return Entry(name, "ours")
    known = index()
    if name not in known:
        # plain names first: of fourteen thousand, the longest variants are seldom meant
        near = difflib.get_close_matches(name.lower(), sorted([*known, *OURS], key=len), n=1, cutoff=0.7)
        hint = f"did you mean {near[0]!r}?" if near else "`paraknow benchmarks NAME` searches them."
        raise InputError(f"evaluate.benchmarks: {name!r} is no benchmark known here; {hint}")
    return known[name]


@lru_cache(maxsize=64)
def leaves(name: str) -> tuple[Leaf, ...]:
    """The tasks a name stands for, in lm-eval's order.

    Raises InputError: unknown, or one of its tasks runs code that a model wrote outside our sandbox.
    """
    entry = find(name)
    found = [Leaf(name, None, None, own_settings(name))] if entry.kind == "ours" else list(_below(entry, None, {}))
    for leaf in found:
        if leaf.settings.get("unsafe_code") and entry.kind != "ours":
            raise InputError(
                f"evaluate.benchmarks: {name!r} runs code that models write with no sandbox around it; humaneval and "
                "mbpp are measured here in one."
            )
    return tuple(found)


def _below(entry: Entry, part: str | None, overrides: Mapping[str, Any]) -> Iterator[Leaf]:
    if entry.kind == "tag":
        for member in entry.members:
            yield from _below(index()[member], part or member, overrides)
        return
    assert entry.path is not None
    if entry.kind != "group":
        yield Leaf(entry.name, entry.path, part, {**settings(entry.path), **overrides}, overrides)
        return
    own = settings(entry.path)
    members = own.get("task")
    overrides = {**{k: v for k, v in own.items() if k not in _GROUP_KEYS}, **overrides}
    for item in members if isinstance(members, list) else [members]:
        given: dict[str, Any] = dict(item) if isinstance(item, dict) else {"task": item}
        named: Any = given.pop("group", None) or given.pop("task", None)
        called = str(named)
        child = index().get(called)
        if child is None:  # a task written out in the group itself
            yield Leaf(f"{entry.name}::{called}", None, part or called, {**overrides, **given})
            continue
        yield from _below(child, part or _alias(child), {**overrides, **given})


def _alias(entry: Entry) -> str:
    if entry.path is None:
        return entry.name
    values = settings(entry.path)
    return str(values.get("group_alias") or values.get("task_alias") or entry.name)


def summary(name: str) -> dict[str, Any]:
    """name, kind, tasks (how many), source (a hub's dataset), metric, shots, runs_code of one name."""
    entry = find(name)
    found = list(_below(entry, None, {})) if entry.kind != "ours" else list(leaves(name))
    first = found[0].settings
    metrics = [m.get("metric") for m in first.get("metric_list") or []]
    return {
        "name": name,
        "from": "ParaKnow" if entry.kind == "ours" else "lm-eval",
        "kind": "task" if entry.kind in ("ours", "python") else entry.kind,
        "tasks": len(found),
        "source": first.get("dataset_path"),
        "metric": METRICS.get(name) or ", ".join(map(str, metrics)) or None,
        "shots": int(first.get("num_fewshot") or 0),
        "needs": needs(name, found),
    }


def needs(name: str, found: list[Leaf]) -> str | None:
    """What has to be switched on for it, or why it is refused."""
    if name in RUN_CODE:
        return "evaluate.run_code"
    return "refused: runs code outside the sandbox" if any(x.settings.get("unsafe_code") for x in found) else None
