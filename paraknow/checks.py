"""Everything that can be refused before the first stage, in one place (no torch)."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass

from paraknow import data, methods
from paraknow.checkpoints import BYTES, Checkpoint, check_blocks, find, memory_need
from paraknow.config import CPU_BATCH, RunConfig
from paraknow.devices import free_bytes
from paraknow.errors import InputError, ResourceError
from paraknow.evaluate import benchmarks, catalogue
from paraknow.methods.base import Candidate


@dataclass(frozen=True)
class Checked:
    """A config that can be run: its checkpoints, the models it makes and what it needs."""

    config: RunConfig
    teacher: Checkpoint
    student: Checkpoint
    candidates: list[Candidate]
    memory: dict[str, int]  # bytes at the peak of each stage


def check(config: RunConfig) -> Checked:
    """Refuse what cannot work. Raises InputError or ResourceError, one sentence each."""
    candidates = methods.candidates(config)
    teacher, student = find(config.pair.teacher), find(config.pair.student)
    check_blocks(teacher, student, config.locate)
    check_ranks(candidates, student, config)
    if any(c.method.needs_clone for c in candidates):
        check_clone(teacher, student)
    for candidate in candidates:
        if candidate.method.check:
            candidate.method.check(teacher, student, candidate.settings)
    for name in config.all_tasks:
        task = data.load_task(name, config.seed)
        if name in config.task:
            check_examples(task, config)
    plans = benchmarks.plans(config.evaluate)
    check_benchmarks(plans, teacher, student)
    device, free = free_bytes(config.device)
    memory = peaks(config, teacher, student, candidates, device, max((p.generated for p in plans), default=0))
    _check_memory(config, memory, device, free)
    return Checked(config, teacher, student, candidates, memory)


def peaks(
    config: RunConfig,
    teacher: Checkpoint,
    student: Checkpoint,
    candidates: list[Candidate],
    device: str,
    generated: int = 0,
) -> dict[str, int]:
    """Peak bytes by stage, as `checkpoints.memory_need` estimates them, and what methods hold while aligning.

    generated: longest text a benchmark lets a model write, in tokens; its keys and values are held while it does.
    """
    rows = min(config.tune.micro_batch, config.tune.batch_size)
    length = max(config.locate.max_length, config.tune.max_length)
    tokens = min(length, teacher.architecture.context)
    asked = config.evaluate.batch_size
    if asked == "auto":
        asked = CPU_BATCH if device == "cpu" else 1  # on a GPU lm-eval looks for what fits
    counts = (tokens, rows, len(config.located_on), asked)
    memory = memory_need(teacher, student, config.dtype, *counts, config.similarity, device == "cuda")
    if generated:
        memory["evaluate"] += asked * max(kept_bytes(m, generated + tokens, config.dtype) for m in (teacher, student))
    held = [c.method.holds(teacher, student, c.settings) for c in candidates if c.method.holds]
    if held:
        align = memory["load"] + max(held) * BYTES[config.dtype]
        memory = {k: memory[k] for k in ("load", "locate", "similarity")} | {"align": align} | memory
    return memory


def kept_bytes(checkpoint: Checkpoint, tokens: int, dtype: str) -> int:
    """Bytes of the keys and values of one sequence of so many tokens, at most the context."""
    a = checkpoint.architecture
    return 2 * a.layers * a.kv_heads * a.head_dim * min(tokens, a.context) * BYTES[dtype]


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
    """Whether a checkpoint's tokenizer has a chat template, by its files."""
    if any(checkpoint.folder.glob("chat_template.*")):
        return True
    path = checkpoint.folder / "tokenizer_config.json"
    return path.is_file() and bool(json.loads(path.read_text(encoding="utf-8")).get("chat_template"))


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


def _check_memory(config: RunConfig, memory: dict[str, int], device: str, free: int) -> None:
    stage, need = max(memory.items(), key=lambda item: item[1])
    if need > free:
        hint = "bfloat16 halves the weights" if config.dtype == "float32" else "a smaller tune.micro_batch needs less"
        raise ResourceError(
            f"memory: the {stage} stage needs about {need / 2**30:.1f} GiB on {device}, "
            f"{free / 2**30:.1f} GiB are free ({hint})."
        )
