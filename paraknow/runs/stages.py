"""The stages of a run: load, locate, similarity, align, tune, evaluate. Each reads what earlier ones left in the run
folder and writes its own artifacts, so that a broken run goes on where it stopped."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from paraknow import __version__, data, files, inject, tune
from paraknow.checkpoints import weights_hash
from paraknow.checks import Checked
from paraknow.config import RunConfig
from paraknow.errors import RunError
from paraknow.evaluate import deltas, harness
from paraknow.locate.located import Located, locate
from paraknow.methods.base import Align, Candidate, Start
from paraknow.models import Loaded, load
from paraknow.progress import Progress, part
from paraknow.runs.store import Run
from paraknow.similarity.compared import compare

Warn = Callable[[str], None]


@dataclass
class Session:
    """One run being carried out: its folder, what was checked, and the models once they are loaded."""

    run: Run
    checked: Checked
    warn: Warn
    models: dict[str, Loaded] = field(default_factory=dict)

    @property
    def config(self) -> RunConfig:
        return self.checked.config

    def tasks(self, names: tuple[str, ...]) -> list[data.Task]:
        return [data.load_task(name, self.config.seed) for name in names]

    def jobs(self) -> Iterator[tuple[Candidate, int]]:
        """Every model the run makes, with each seed."""
        for candidate in self.checked.candidates:
            for seed in self.config.run_seeds:
                yield candidate, seed

    def adapter(self, candidate: Candidate, seed: int) -> Path:
        return self.run.path("adapters", candidate.label, str(seed))

    def start_file(self, candidate: Candidate, seed: int) -> Path:
        return self.run.path("align", candidate.label, f"{seed}.safetensors")


def stage_load(session: Session, progress: Progress) -> None:
    """Load both models and note versions, device, seeds and hashes in environment.json."""
    config = session.config
    for number, (name, checkpoint) in enumerate(
        (("teacher", session.checked.teacher), ("student", session.checked.student))
    ):
        if name not in session.models:
            session.models[name] = load(checkpoint, config.dtype, config.device)
        progress(number + 1, 2, checkpoint.title)
    device = session.models["student"].device
    environment = {
        "versions": _versions(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "seeds": list(config.run_seeds),
        "models": {name: _facts(loaded) for name, loaded in session.models.items()},
        "data": {task.name: task.hash for task in session.tasks(tuple(dict.fromkeys((*config.task, *config.suites))))},
    }
    _refuse_changes(session, environment)
    files.write_json(session.run.path("environment.json"), environment)


def _refuse_changes(session: Session, environment: dict[str, Any]) -> None:
    """A run that is resumed must find the models and the data it began with."""
    path = session.run.path("environment.json")
    if not path.is_file() or len(session.run.status().get("stages", [])) < 2:
        return
    before = files.read_json(path)
    for name in ("teacher", "student"):
        if before["models"][name]["sha256"] != environment["models"][name]["sha256"]:
            raise RunError(f"load: the {name}'s weights have changed since this run began; start a new run.")
    if before["data"] != environment["data"]:
        raise RunError("load: the task's data have changed since this run began; start a new run.")


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    packages = ("torch", "transformers", "peft", "lm_eval", "datasets", "numpy", "scipy")
    return {"paraknow": __version__, "python": platform.python_version(), **{p: version(p) for p in packages}}


def _facts(loaded: Loaded) -> dict[str, Any]:
    a = loaded.architecture
    return {
        "spec": loaded.checkpoint.spec,
        "title": loaded.checkpoint.title,
        "sha256": weights_hash(loaded.checkpoint),
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
    }


def stage_locate(session: Session, progress: Progress) -> None:
    """Sensitivities, neurons, layers and blocks into locate/."""
    config, tasks = session.config, session.tasks(session.config.task)
    pair = (session.models["teacher"], session.models["student"])
    result = locate(*pair, tasks, config.locate, config.seed, progress, config.similarity)
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


def stage_align(session: Session, progress: Progress) -> None:
    """Every method's start into align/<model>/<seed>.safetensors, and align/starts.parquet about them."""
    config, models = session.config, session.models
    blocks = Located.load_blocks(session.run.path("locate"))
    examined = session.checked.candidates[0]
    jobs, rows = list(session.jobs()), []
    for number, (candidate, seed) in enumerate(jobs):
        settings = examined.settings if candidate.control_of else candidate.settings
        align = Align(models["teacher"], models["student"], blocks, config.locate, seed, settings, examined.method)
        start = candidate.method.start(align)
        if candidate.control_of and candidate.label != "zero":
            _warn_if_same(session, candidate, seed, start)
        tensors: dict[str, torch.Tensor] = {}
        for (layer, module), (b, a) in start.factors.items():
            if not bool(torch.isfinite(b).all() & torch.isfinite(a).all()):
                raise RunError(f"align: {candidate.label} gives NaN or infinity for {module} of layer {layer}.")
            tensors |= {
                f"{layer}.{module}.B": b.float().cpu().contiguous(),
                f"{layer}.{module}.A": a.float().cpu().contiguous(),
            }
            weight = models["student"].weight(module, layer)
            rows.append(
                {
                    "model": candidate.label,
                    "seed": seed,
                    "layer": layer,
                    "module": module,
                    "rank": b.shape[1],
                    "norm": float((b.float() @ a.float()).norm()),
                    "weight_norm": float(weight.float().norm()),
                }
            )
        with files.replacing(session.start_file(candidate, seed)) as temporary:
            save_file(tensors, temporary, metadata={"tuned": str(start.tuned)})
        progress(number + 1, len(jobs), candidate.label)
    files.write_table(session.run.path("align", "starts.parquet"), pd.DataFrame(rows))


def _warn_if_same(session: Session, candidate: Candidate, seed: int, start: Start) -> None:
    examined = read_start(session.start_file(session.checked.candidates[0], seed)).factors
    same = start.factors.keys() == examined.keys() and all(
        torch.equal(b.float().cpu() @ a.float().cpu(), examined[p][0] @ examined[p][1])
        for p, (b, a) in start.factors.items()
    )
    if same:
        session.warn(
            f"align: the control {candidate.label} starts exactly as the method does, so it tells nothing here."
        )


def read_start(path: Path) -> Start:
    """A start as stage_align wrote it."""
    from safetensors import safe_open

    factors: dict[tuple[int, str], tuple[torch.Tensor, torch.Tensor]] = {}
    with safe_open(path, framework="pt") as stream:
        tuned = stream.metadata()["tuned"] == "True"
        for key in stream.keys():  # noqa: SIM118 (not a dict)
            layer, module, kind = key.split(".")
            if kind == "B":
                factors[(int(layer), module)] = (stream.get_tensor(key), stream.get_tensor(f"{layer}.{module}.A"))
    return Start(factors, tuned)


def stage_tune(session: Session, progress: Progress) -> None:
    """Fine-tune every start and export it into adapters/; then reload all of them in a fresh process."""
    config, student = session.config, session.models["student"]
    context = min(config.tune.max_length, student.architecture.context)
    examples = [e for task in session.tasks(config.task) for e in task.train]
    encoded = data.encode_all(examples, student.tokenizer, context, "tuning")
    if warning := encoded.warning("tuning"):
        session.warn(warning)
    jobs = list(session.jobs())
    steps = tune.steps_of(len(encoded.items), config.tune)
    probe = torch.tensor(encoded.items[0].ids)
    plain = inject.probe_logits(student.model, probe)
    for number, (candidate, seed) in enumerate(jobs):
        if session.adapter(candidate, seed).is_dir():
            continue  # finished before the run was broken off
        report = part(progress, number * steps, len(jobs) * steps, f"{candidate.label}, seed {seed}")
        _tune_one(session, candidate, seed, encoded.items, plain, probe, report)
    _reload_all(session, probe)


def _tune_one(
    session: Session,
    candidate: Candidate,
    seed: int,
    items: list[data.Encoded],
    plain: torch.Tensor,
    probe: torch.Tensor,
    report: Progress,
) -> None:
    student = session.models["student"]
    start = read_start(session.start_file(candidate, seed))
    facts: dict[str, Any] = {"method": candidate.method.name, "seed": seed, "settings": candidate.settings.model_dump()}
    with inject.attached(student, start) as wrapped:
        if start.tuned:
            shift = float((inject.probe_logits(wrapped, probe) - plain).abs().max())
            if not shift <= inject.TOLERANCE[student.model.dtype]:
                raise RunError(
                    f"tune: {candidate.label} does not start at the student; its logits differ by {shift:.2g}."
                )
            pad = student.tokenizer.pad_token_id or 0
            tuned = tune.fine_tune(wrapped, items, session.config.tune, seed, pad, report)
            facts |= {"start_difference": shift, "examples": tuned.examples, "trainable": tuned.trainable}
            frame = pd.DataFrame({"step": range(1, len(tuned.losses) + 1), "loss": tuned.losses})
            files.write_table(session.run.path("tune", candidate.label, f"{seed}.parquet"), frame)
        logits = inject.probe_logits(wrapped, probe)
        if start.tuned and torch.equal(logits, plain):
            raise RunError(
                f"tune: {candidate.label} is still the student after tuning; a larger tune.learning_rate may help."
            )
        memory = _logits_file(session, candidate, seed)
        with files.replacing(memory) as temporary:
            save_file({"logits": logits}, temporary)
        inject.export(wrapped, session.adapter(candidate, seed), student.checkpoint.spec, facts)


def _logits_file(session: Session, candidate: Candidate, seed: int) -> Path:
    return session.run.path("tune", candidate.label, f"{seed}.logits.safetensors")


def _reload_all(session: Session, probe: torch.Tensor) -> None:
    """Every adapter, loaded afresh, must give the logits that the tuned model gave in memory."""
    expected = {session.adapter(c, s): load_file(_logits_file(session, c, s))["logits"] for c, s in session.jobs()}
    differences = inject.reload_check(session.models["student"], probe, expected, session.run.path("adapters"))
    root = session.run.path("adapters")
    relative = {str(Path(folder).relative_to(root)): value for folder, value in differences.items()}
    files.write_json(root / "reload.json", {"largest_difference": relative})


def stage_evaluate(session: Session, progress: Progress) -> None:
    """Every model on the same items: evaluate/items.parquet, results.json and deltas.json."""
    config, student = session.config, session.models["student"]
    suites = {task.name: _limited(task.test, config.evaluate.limit) for task in session.tasks(config.suites)}
    subjects: list[tuple[str, int, Path | None]] = [("teacher", -1, None), ("student", -1, None)]
    subjects += [
        (c.label, seed, session.adapter(c, seed)) for c, seed in session.jobs() if session.adapter(c, seed).is_dir()
    ]
    parts = []
    for number, (label, seed, adapter) in enumerate(subjects):
        file = session.run.path("evaluate", "parts", f"{label}-{seed}.parquet")
        report = part(progress, number * 1000, len(subjects) * 1000, label, scale=1000)
        if not file.is_file():
            loaded = session.models["teacher"] if label == "teacher" else student
            if adapter:
                with inject.adapted(student, adapter) as wrapped:
                    frame = harness.evaluate(loaded, suites, config.evaluate.batch_size, wrapped, report)
            else:
                frame = harness.evaluate(loaded, suites, config.evaluate.batch_size, None, report)
            frame.insert(4, "model", label)
            frame.insert(5, "seed", seed)
            files.write_table(file, frame)
        parts.append(file)
    items = pd.concat([pd.read_parquet(file) for file in parts], ignore_index=True)
    bad = items[~items.logprob.map(lambda x: x == x and abs(x) != float("inf"))]
    if len(bad):
        raise RunError(
            f"evaluate: {bad.iloc[0].model} gives NaN or infinity on {bad.iloc[0].task}, item {bad.iloc[0].doc_id}."
        )
    files.write_table(session.run.path("evaluate", "items.parquet"), items)
    rows = deltas.rows(items, controls_of(session.checked.candidates), config.evaluate.resamples, config.seed)
    files.write_json(session.run.path("evaluate", "deltas.json"), {"run": session.run.id, "rows": rows})
    for file in parts:
        file.unlink(missing_ok=True)


def controls_of(candidates: list[Candidate]) -> dict[str, list[str]]:
    """Which controls a method is held against: a run's controls are the examined method's own."""
    # The oracle is the right answer, not something to be above.
    controls = [c.label for c in candidates if c.control_of and not c.method.needs_clone]
    return {candidates[0].label: controls}


def _limited(examples: tuple[data.Example, ...], limit: int | None) -> list[data.Example]:
    """At most `limit` examples of every group."""
    if limit is None:
        return list(examples)
    counts: dict[str, int] = {}
    kept = []
    for example in examples:
        counts[example.group] = counts.get(example.group, 0) + 1
        if counts[example.group] <= limit:
            kept.append(example)
    return kept


STAGES: dict[str, Callable[[Session, Progress], None]] = {
    "load": stage_load,
    "locate": stage_locate,
    "similarity": stage_similarity,
    "align": stage_align,
    "tune": stage_tune,
    "evaluate": stage_evaluate,
}
