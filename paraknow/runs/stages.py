"""The stages of a run: load, locate, similarity, align, tune, evaluate, diagnose. Each reads what earlier ones left in
the run folder and writes its own artifacts, so that a broken run goes on where it stopped."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from paraknow import __version__, budget, files, results
from paraknow.checkpoints import same_vocabulary, weights_hash
from paraknow.errors import RunError
from paraknow.evaluate import deltas, kept
from paraknow.evaluate.items import broken
from paraknow.evaluate.knowledge import limited
from paraknow.evaluate.measure import measure
from paraknow.locate.located import Located, locate
from paraknow.methods.base import Method
from paraknow.models import Loaded
from paraknow.progress import Progress, part
from paraknow.runs import diagnosis, pairs, store
from paraknow.runs.reuse import data_hashes
from paraknow.runs.session import Session
from paraknow.runs.transfer import stage_align, stage_tune
from paraknow.similarity.compared import compare


def stage_load(session: Session, progress: Progress) -> None:
    """Load both models and note versions, device, seeds and hashes in environment.json."""
    config, checked = session.config, session.checked
    pairs.load(session.models, config, checked.case, lambda number, title: progress(number * 1000, 4000, title))
    device = session.models["student"].device
    environment = {
        "versions": _versions(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "seeds": list(config.run_seeds),
        "models": {
            name: _facts(loaded, part(progress, 2000 + 1000 * number, 4000, f"checksum of the {name}", scale=1000))
            for number, (name, loaded) in enumerate(session.models.items())
        },
        "data": data_hashes(config, session.plans()),
        "same_vocabulary": same_vocabulary(checked.teacher, checked.student),
    }
    _refuse_changes(session, environment)
    files.write_json(session.run.path("environment.json"), environment)


def _refuse_changes(session: Session, environment: dict[str, Any]) -> None:
    """A run that is resumed must find the models and the data it began with."""
    path = session.run.path("environment.json")
    if not path.is_file() or len(session.run.status().get("stages", [])) < 2:
        return
    try:
        before = files.read_json(path)
    except (OSError, ValueError):
        raise RunError(
            "load: environment.json cannot be read, so nobody can tell whether models and data are still those the run "
            "began with; start a new run."
        ) from None
    for name in ("teacher", "student"):
        if before["models"][name]["sha256"] != environment["models"][name]["sha256"]:
            raise RunError(f"load: the {name}'s weights have changed since this run began; start a new run.")
    if before["data"] != environment["data"]:
        raise RunError("load: the task's data have changed since this run began; start a new run.")


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    packages = ("torch", "transformers", "peft", "lm_eval", "datasets", "numpy", "scipy")
    return {"paraknow": __version__, "python": platform.python_version(), **{p: version(p) for p in packages}}


def _facts(loaded: Loaded, progress: Progress) -> dict[str, Any]:
    a = loaded.architecture
    return {
        "spec": loaded.checkpoint.spec,
        "title": loaded.checkpoint.title,
        "sha256": weights_hash(loaded.checkpoint, progress),
        "family": a.family.name,
        "parameters": loaded.checkpoint.parameters,
        "layers": a.layers,
        "hidden": a.hidden,
        "ffn": a.ffn,
        "heads": a.heads,
        "kv_heads": a.kv_heads,
        "head_dim": a.head_dim,
        "vocabulary": a.vocabulary,
        "tied": a.tied,
        "placed": dict(Counter(loaded.layers)),
    }


def stage_locate(session: Session, progress: Progress) -> None:
    """Sensitivities, neurons, layers and blocks into locate/."""
    config = session.config
    tasks, own = session.tasks(config.located_on), session.tasks(config.task)
    pair = (session.models["teacher"], session.models["student"])
    with budget.counting(*pair) as spent:
        result = locate(*pair, tasks, config.locate, config.seed, progress, config.similarity, own)
    files.write_json(session.run.path("locate", "spent.json"), spent)
    for warning in result.warnings:
        session.warn(warning)
    if len(result.stitching):
        files.write_table(session.run.path("similarity", "stitching.parquet"), result.stitching)
    result.save(session.run.path("locate"))


def stage_similarity(session: Session, progress: Progress) -> None:
    """How alike the two models are, and how the blocks lie to the student's weights, into similarity/."""
    config, settings = session.config, session.config.similarity
    if session.run.path("similarity", "stitching.parquet").is_file():  # layers were matched by it
        settings = settings.model_copy(update={"parts": tuple(p for p in settings.parts if p != "stitching")})
    blocks = Located.load_blocks(session.run.path("locate"))
    rank = getattr(session.checked.candidates[0].settings, "rank", 16)
    pair, tasks = (session.models["teacher"], session.models["student"]), session.tasks(config.task)
    result = compare(*pair, tasks, settings, blocks, rank, config.seed, progress)
    for warning in result.warnings:
        session.warn(warning)
    result.save(session.run.path("similarity"))


def stage_evaluate(session: Session, progress: Progress) -> None:
    """Every model on the same items: evaluate/items.parquet, results.json and deltas.json."""
    config, student = session.config, session.models["student"]
    size = config.evaluate.batch_size
    suites = {task.name: limited(task.test, config.evaluate.limit) for task in session.tasks(config.suites)}
    subjects: list[tuple[str, int, tuple[Method, Path] | None]] = [("teacher", -1, None), ("student", -1, None)]
    subjects += [
        (c.label, seed, (c.method, session.adapter(c, seed)))
        for c, seed in session.jobs()
        if session.adapter(c, seed).is_dir()
    ]
    parts, whole = [], 1000 * len(subjects) + 1000  # the intervals at the end take about as long as one model
    for number, (label, seed, result) in enumerate(subjects):
        file = session.run.path("evaluate", "parts", f"{label}-{seed}.parquet")
        report = part(progress, number * 1000, whole, label, scale=1000)
        if not file.is_file():
            loaded = session.models["teacher"] if label == "teacher" else student
            if result:
                with results.applied(session.models["teacher"], student, *result) as model:
                    frame = measure(loaded, suites, session.plans(), size, model, report)
            elif config.evaluate.reuse:
                frame = kept.measure(loaded, suites, session.plans(), size, store.measured_folder(), report)
            else:
                frame = measure(loaded, suites, session.plans(), size, None, report)
            frame.insert(4, "model", label)
            frame.insert(5, "seed", seed)
            files.write_table(file, frame)
        parts.append(file)
    items = pd.concat([pd.read_parquet(file) for file in parts], ignore_index=True)
    if len(bad := broken(items)):
        raise RunError(
            f"evaluate: {bad.iloc[0].model} gives NaN or infinity on {bad.iloc[0].task}, item {bad.iloc[0].doc_id}."
        )
    files.write_table(session.run.path("evaluate", "items.parquet"), items)
    report = part(progress, whole - 1000, whole, "intervals", scale=1000)
    rows = deltas.rows(items, _controls(session), config.evaluate.resamples, config.seed, report)
    files.write_json(session.run.path("evaluate", "deltas.json"), {"run": session.run.id, "rows": rows})
    for file in parts:
        file.unlink(missing_ok=True)


def _controls(session: Session) -> dict[str, list[str]]:
    """Which controls a method is held against: a run's controls are the examined method's own.

    The oracle is the right answer, not something to be above; a control that starts as the method does is the method.
    """
    candidates = session.checked.candidates
    controls = [c for c in candidates if c.control_of and not c.method.needs_clone]
    starts = {c.label: session.start_file(c, session.config.run_seeds[0]) for c in controls}
    kept = [n for n, file in starts.items() if not (file.is_file() and results.read_notes(file).get("same"))]
    return {candidates[0].label: kept}


def stage_diagnose(session: Session, progress: Progress) -> None:
    """Findings about the run into diagnose.json."""
    diagnosis.write(session.run, ended=True)
    progress(1, 1)


STAGES: dict[str, Callable[[Session, Progress], None]] = {
    "load": stage_load,
    "locate": stage_locate,
    "similarity": stage_similarity,
    "align": stage_align,
    "tune": stage_tune,
    "evaluate": stage_evaluate,
    "diagnose": stage_diagnose,
}
