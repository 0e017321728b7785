"""Recipes: the papers' settings as shipped configs (no torch).

A file in recipes/ holds a family: pairs × tasks × methods, each combination one recipe named <pair>-<task>-<method>.
Its config is the family's `config` with the pair, the task's name and the method's settings put in. `published` are
figures of the papers, to be shown beside ours and never as ours; `needs` is what a recipe lacks to be comparable.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from paraknow import config as configs
from paraknow import files, resources
from paraknow.config import Part, RunConfig
from paraknow.errors import InputError
from paraknow.wrong import explain


class Pair(Part):
    """Two models, and what is known of their kinship."""

    teacher: str
    student: str
    about: str = ""


class Sizes(Part):
    """Examples of a task's splits where they cannot be counted offline; tokens: the mean length of an example.

    What is missing is unknown. `choices`: candidates ranked per test item, 1 where the answer is compared as a whole.
    """

    train: int | None = Field(None, ge=0)
    align: int | None = Field(None, ge=0)
    test: int | None = Field(None, ge=0)
    tokens: int | None = Field(None, ge=1)
    choices: int = Field(1, ge=1)


class Task(Part):
    """A task by name, its sizes, how it is measured, and what is missing here to score it as the papers do."""

    task: str
    sizes: Sizes = Sizes()
    evaluate: dict[str, Any] = Field(default_factory=dict)
    needs: tuple[str, ...] = ()


class Figure(Part):
    """One published number: of the method named, of a baseline, of teacher or student."""

    model: str
    value: float
    setting: str = ""


class Published(Part):
    """What a paper reports on one task."""

    measure: str
    figures: tuple[Figure, ...]


class Family(Part):
    """One file of recipes."""

    title: str
    source: str
    pairs: dict[str, Pair]
    tasks: dict[str, Task]
    methods: dict[str, dict[str, Any]]
    config: dict[str, Any] = Field(default_factory=dict)
    published: dict[str, Published] = Field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """One combination. `config`: plain values, as a run's YAML file holds them."""

    name: str
    title: str
    pair: Pair
    method: str
    task: Task
    config: dict[str, Any]
    published: Published | None
    source: str

    def parsed(self) -> RunConfig:
        """The config a run is made of. Raises InputError."""
        return configs.parse(self.config, f"recipe {self.name}")

    def figures(self) -> list[dict[str, Any]]:
        """Published numbers of the models this recipe makes: model, value, setting, measure, source."""
        if self.published is None:
            return []
        others = [b["name"] if isinstance(b, dict) else b for b in self.config.get("baselines", [])]
        mine = ("teacher", "student", self.method, *others)
        about = {"measure": self.published.measure, "source": self.source}
        return [{**f.model_dump(), **about} for f in self.published.figures if f.model in mine]

    def summary(self) -> dict[str, Any]:
        """name, title, teacher, student, about (their kinship), task, method, published, needs, source."""
        return {
            "name": self.name,
            "title": self.title,
            **self.pair.model_dump(),
            "task": self.task.task,
            "method": self.method,
            "published": self.figures(),
            "needs": list(self.task.needs),
            "source": self.source,
        }

    def yaml(self) -> str:
        """The config as a file of its own, with what was published and what is missing as comments."""
        lines = [f"# Recipe {self.name}: {self.title}. Models: {self.pair.about}. Source: {self.source}."]
        for f in self.figures():
            setting = f", {f['setting']}" if f["setting"] else ""
            lines.append(f"# Published (not ours): {f['model']} {f['value']:.2f} ({f['measure']}{setting}).")
        lines += [f"# Needs {need}." for need in self.task.needs]
        return "\n".join(lines) + "\n" + yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True)


def folder() -> Path:
    """Where the families lie."""
    return resources.root() / "recipes"


def expand(family: Family) -> list[Recipe]:
    """Every pair × task × method of a family."""
    made = []
    for pair_name, pair in family.pairs.items():
        for task_name, task in family.tasks.items():
            for method_name, values in family.methods.items():
                name = f"{pair_name}-{task_name}-{method_name}"
                config = {
                    "name": name,
                    "pair": {"teacher": pair.teacher, "student": pair.student},
                    "task": task.task,
                    **merged(merged(family.config, {"evaluate": task.evaluate} if task.evaluate else {}), values),
                }
                about = (family.published.get(task_name), family.source)
                made.append(Recipe(name, family.title, pair, values["method"]["name"], task, config, *about))
    return made


def merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Nested settings of both; the second's hold where both have one."""
    both = {
        k: merged(first[k], v) if isinstance(v, dict) and isinstance(first.get(k), dict) else v
        for k, v in second.items()
    }
    return {**first, **both}


def read(path: Path) -> list[Recipe]:
    """The recipes of one file. Raises InputError: not YAML, an unknown key, no method named."""
    try:
        family = Family.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        return expand(family)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())}).") from None
    except ValidationError as error:
        raise InputError(f"{path}: {explain(error, Family)}") from None
    except (KeyError, TypeError):
        raise InputError(f"{path}: every entry of methods needs method: {{name: …}}.") from None


@lru_cache(maxsize=1)
def catalogue() -> dict[str, Recipe]:
    """All shipped recipes by name, family by family. Raises InputError where two have one name."""
    found: dict[str, Recipe] = {}
    for path in sorted(folder().glob("*.yaml")):
        for recipe in read(path):
            if recipe.name in found:
                raise InputError(f"{path}: there is another recipe named {recipe.name!r}.")
            found[recipe.name] = recipe
    return found


def find(name: str) -> Recipe:
    """A recipe by name. Raises InputError with the nearest known name."""
    known = catalogue()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise InputError(
            f"there is no recipe {name!r}; " + (f"did you mean {near[0]!r}?" if near else "see `paraknow recipes`.")
        )
    return known[name]


def known_sizes() -> dict[str, Sizes]:
    """Sizes by the task's name, of every task a recipe names."""
    return {recipe.task.task: recipe.task.sizes for recipe in catalogue().values()}


@lru_cache(maxsize=1)
def model_configs() -> dict[str, dict[str, Any]]:
    """Hub id → {config (values of its config.json), tokenizer (a name models share)}, for dry runs offline."""
    return files.read_json(folder() / "models.json")["models"]
