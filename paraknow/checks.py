"""Everything that can be refused before the first stage, in one place (no torch)."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, replace
from functools import cached_property

from paraknow import data, limits, methods
from paraknow.checkpoints import Checkpoint, check_blocks, find
from paraknow.config import RunConfig
from paraknow.errors import InputError
from paraknow.evaluate import benchmarks, catalogue
from paraknow.fitting import Free, refused
from paraknow.memory import Case, Parts
from paraknow.methods.base import Candidate


@dataclass(frozen=True)
class Checked:
    """A config that can be run: its checkpoints, the models it makes and what it needs."""

    config: RunConfig
    teacher: Checkpoint
    student: Checkpoint
    candidates: list[Candidate]
    case: Case
    free: Free

    @cached_property
    def parts(self) -> dict[str, Parts]:
        """Where the memory of each stage goes."""
        return self.case.need(self.config).stages

    @property
    def memory(self) -> dict[str, int]:
        """Bytes at the peak of each stage."""
        return {stage: parts.total for stage, parts in self.parts.items()}


def check(given: RunConfig | Checked, held: int = 0, here: bool = True) -> Checked:
    """Refuse what cannot work. Raises InputError or ResourceError, one sentence each.

    held: bytes on the device that models in memory take, which will be used again. here: on this machine, so that its
    device and memory are looked at too.
    """
    checked = given if isinstance(given, Checked) else prepare(given, here)
    if not here:
        return checked
    free = Free.now(checked.config.device)
    free = replace(free, bytes=free.bytes + held)
    if refusal := refused(checked.config, checked.case, free):
        raise refusal
    return replace(checked, free=free)


def prepare(config: RunConfig, here: bool = True) -> Checked:
    """The same without a look at whether memory suffices; no such device is refused."""
    limits.check(config)
    candidates = methods.candidates(config)
    teacher, student = find(config.pair.teacher), find(config.pair.student)
    check_blocks(teacher, student, config.locate)
    check_ranks(candidates, student, config)
    if any(c.method.needs_clone for c in candidates):
        check_clone(teacher, student)
    for candidate in candidates:
        if candidate.method.check:
            candidate.method.check(teacher, student, candidate.settings)
    tasks = {name: data.load_task(name, config.seed) for name in config.all_tasks}
    for name in config.task:
        check_examples(tasks[name], config)
    plans = benchmarks.plans(config.evaluate)
    check_benchmarks(plans, teacher, student)
    free = Free.now(config.device if here else "auto")
    generated = max((p.generated for p in plans), default=0)
    case = Case(teacher, student, candidates, free.device, tasks, generated, bool(plans))
    return Checked(config, teacher, student, candidates, case, free)


def check_examples(task: data.Task, config: RunConfig) -> None:
    settings = config.similarity
    if {"cka", "stitching"} & set(settings.parts) and (count := len(task.split(settings.split))) < 4:
        raise InputError(
            f"similarity: the {settings.split} split of {task.name} has {count} example{'s' * (count != 1)}, and "
            "comparing two models needs at least 4; give more, or leave it out with similarity.parts: []."
        )


def check_benchmarks(
    plans: list[benchmarks.Plan], teacher: Checkpoint, student: Checkpoint, fetch: bool = True
) -> None:
    """Refuse what could not be asked. `fetch`: a dataset from a hub is fetched now (lm-eval is imported).

    Raises InputError: no chat template, no room for a prompt, no sandbox for code, a hub that cannot be reached.
    """
    for plan in plans:
        where = f"evaluate.benchmarks.{plan.benchmark.title}"
        for checkpoint in (teacher, student):
            if plan.benchmark.chat and not has_template(checkpoint) and fetch:
                raise benchmarks.no_template(plan, checkpoint.spec)
            if plan.generated >= checkpoint.architecture.context:
                raise InputError(
                    f"{where}: answers of {plan.generated} tokens leave no room for a question in the context of "
                    f"{checkpoint.spec!r}, {checkpoint.architecture.context}; set a smaller max_tokens."
                )
        if plan.benchmark.name in catalogue.RUN_CODE:
            sandbox = importlib.import_module("paraknow.evaluate.sandbox")
            if reason := sandbox.available():
                raise InputError(f"{where}: {reason}")
        if plan.from_hub and fetch:
            public = importlib.import_module("paraknow.evaluate.public")  # brings lm-eval and torch
            public.tasks(plan)


def has_template(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint's tokenizer has a chat template, by its files. Raises InputError where they are damaged."""
    if any(checkpoint.folder.glob("chat_template.*")):
        return True
    path = checkpoint.folder / "tokenizer_config.json"
    if not path.is_file():
        return False
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")).get("chat_template"))
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"model {checkpoint.spec!r}: tokenizer_config.json cannot be read ({error}).") from None


def check_ranks(candidates: list[Candidate], student: Checkpoint, config: RunConfig) -> None:
    for candidate in (c for c in candidates if not c.control_of):
        rank = getattr(candidate.settings, "rank", 0)
        for module in config.locate.selected():
            shape = student.architecture.shape(module)
            if rank > min(shape):
                raise InputError(
                    f"method.rank: {rank} is above the shorter side of the student's {module} matrix {shape}; "
                    f"at most {min(shape)} is possible."
                )


def check_clone(teacher: Checkpoint, student: Checkpoint) -> None:
    a, b = teacher.architecture, student.architecture
    if not (teacher.folder / "clone_map.safetensors").is_file() or (a.hidden, a.layers) != (2 * b.hidden, b.layers):
        raise InputError(
            "method 'oracle' needs a cloned pair, whose answer is known: demo:clone-teacher and demo:student."
        )
