"""The stages align and tune: what every method makes of the student, and what that cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from paraknow import budget, data, files, inject, results, savepoint, tune
from paraknow.errors import RunError
from paraknow.locate.located import Located
from paraknow.methods.base import Align, Candidate, Start
from paraknow.progress import Progress, part
from paraknow.runs import changes
from paraknow.runs.session import Session
from paraknow.savepoint import Savepoint


def stage_align(session: Session, progress: Progress) -> None:
    """Every method's start into align/<model>/<seed>.safetensors, and align/starts.parquet about them.

    Rows that a method keeps about its making go to align/<model>/<seed>.parquet, its losses to tune/ (step and loss,
    and the student layer of each step where layers are trained one after another).
    """
    models, jobs = session.models, list(session.jobs())
    for number, (candidate, seed) in enumerate(jobs):
        if session.start_file(candidate, seed).is_file():
            _savepoint(session, "align", candidate, seed, {}).remove()
            continue  # made before the run was broken off
        report = part(progress, number * 1000, len(jobs) * 1000, candidate.label, scale=1000)
        align = _align(session, candidate, seed, report)
        with budget.counting(models["teacher"], models["student"]) as spent:
            align.savepoint = _savepoint(session, "align", candidate, seed, spent)
            start = candidate.method.start(align)
        if bad := results.unsound(start):
            raise RunError(f"align: {candidate.label} gives NaN or infinity for {bad[1]} of layer {bad[0]}.")
        same = bool(candidate.control_of) and candidate.label != "zero" and _same(session, seed, start)
        if same:
            session.warn(
                f"align: the control {candidate.label} starts exactly as the method does, so it tells nothing here and "
                "does not count."
            )
        for fact in ("stopped", "warning"):
            if fact in start.facts:
                session.warn(f"align: {candidate.label}: {start.facts[fact]}")
        files.write_table(session.start_rows(candidate, seed), pd.DataFrame(_rows(session, candidate, seed, start)))
        if start.table:
            files.write_table(session.start_file(candidate, seed).with_suffix(".parquet"), pd.DataFrame(start.table))
        if start.losses:
            _write_losses(session, candidate, seed, start.losses, start.loss_layers)
        notes = {"facts": _plain(start.facts), "same": same, **spent}
        results.save_start(session.start_file(candidate, seed), start, **notes)
        align.savepoint.remove()
        report(1, 1)
    tables = [pd.read_parquet(session.start_rows(candidate, seed)) for candidate, seed in jobs]
    files.write_table(session.run.path("align", "starts.parquet"), pd.concat(tables, ignore_index=True))


def _align(session: Session, candidate: Candidate, seed: int, progress: Progress) -> Align:
    config, examined = session.config, session.checked.candidates[0]
    tasks = session.tasks(config.task)
    located = session.run.path("locate")
    tables = [located / "neurons.parquet", located / "ffn.parquet"]
    neurons, ffn = (pd.read_parquet(path) if path.is_file() else None for path in tables)
    return Align(
        session.models["teacher"],
        session.models["student"],
        Located.load_blocks(located),
        config.locate,
        seed,
        examined.settings if candidate.control_of else candidate.settings,
        examined.method if candidate.control_of else candidate.method,
        train=tuple(e for task in tasks for e in task.train),
        known=tuple(e for task in tasks for e in task.align),
        tune=config.tune,
        neurons=neurons,
        ffn_sensitivity=ffn,
        progress=progress,
    )


def _savepoint(session: Session, stage: str, candidate: Candidate, seed: int, spent: dict[str, float]) -> Savepoint:
    """Where this model's tuning stands, if it was broken off; it does not fit another model's or other settings."""
    examined = session.checked.candidates[0]
    methods = [candidate, examined] if candidate.control_of else [candidate]
    made = [{"method": c.method.name, "settings": c.settings.model_dump(mode="json")} for c in methods]
    about = {"stage": stage, "model": candidate.label, "seed": seed, "made": made}
    path = session.run.path(stage, candidate.label, f"{seed}{savepoint.ENDING}")
    return Savepoint(path, about, lambda text: session.warn(f"{stage}: {candidate.label}, seed {seed}: {text}"), spent)


def _plain(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts that JSON can hold; numbers that are not finite are left out."""
    kept = {name: value for name, value in facts.items() if isinstance(value, str | int | float | bool | list)}
    return {name: value for name, value in kept.items() if not isinstance(value, float) or math.isfinite(value)}


def _rows(session: Session, candidate: Candidate, seed: int, start: Start) -> list[dict[str, Any]]:
    """Size of every changed matrix: model, seed, layer, module, rank, norm, weight_norm.

    rank is missing and norm that of the whole difference where a matrix is replaced by one of its own shape; both
    are missing where it has another shape.
    """
    rows = []
    for place in (*start.factors, *start.matrices):
        layer, module = place
        weight = session.models["student"].weight(module, layer).float()
        rank, norm = None, float("nan")
        if place in start.factors:
            b, a = start.factors[place]
            rank, norm = b.shape[1], float((b.float() @ a.float()).norm())
        elif start.matrices[place].shape == weight.shape:
            norm = float((start.matrices[place].to(weight) - weight).norm())
        about = {"model": candidate.label, "seed": seed, "layer": layer, "module": module}
        rows.append({**about, "rank": rank, "norm": norm, "weight_norm": float(weight.norm())})
    return rows


def _same(session: Session, seed: int, start: Start) -> bool:
    """Whether a control's start is the examined method's own."""
    examined, _ = results.read_start(session.start_file(session.checked.candidates[0], seed))
    return (
        start.factors.keys() == examined.factors.keys()
        and start.matrices.keys() == examined.matrices.keys()
        and all(
            torch.equal(b.float().cpu() @ a.float().cpu(), examined.factors[p][0] @ examined.factors[p][1])
            for p, (b, a) in start.factors.items()
        )
        and all(torch.equal(w.cpu(), examined.matrices[p]) for p, w in start.matrices.items())
    )


def _write_losses(
    session: Session, candidate: Candidate, seed: int, losses: list[float], layers: Sequence[int] = ()
) -> None:
    frame = pd.DataFrame({"step": range(1, len(losses) + 1), "loss": losses})
    frame = frame.assign(layer=list(layers)) if layers else frame
    files.write_table(session.run.path("tune", candidate.label, f"{seed}.parquet"), frame)


def stage_tune(session: Session, progress: Progress) -> None:
    """Fine-tune every start that is to be, write every result into adapters/, reload all of them in a fresh process.

    tune/budgets.parquet says what each model was given: examples, steps, trainable and added parameters, the
    teacher's and the student's compute (FLOPs), and `more`: in which of these it got more than the examined method.
    tune/changes.parquet and tune/checks.parquet: see changes.py.
    """
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
    whole = len(jobs) * (steps + 1)  # and one step for reloading what each model left
    for number, (candidate, seed) in enumerate(jobs):
        if session.adapter(candidate, seed).is_dir():
            _savepoint(session, "tune", candidate, seed, {}).remove()
            continue  # finished before the run was broken off
        report = part(progress, number * steps, whole, f"{candidate.label}, seed {seed}")
        _finish(session, candidate, seed, encoded.items, plain, probe, report)
        report(steps, steps)
    _budgets(session)
    changes.write_changes(session)
    changes.write_checks(session)
    _reload_all(session, probe, part(progress, len(jobs) * steps, whole, "reload check", scale=len(jobs)))


def _finish(
    session: Session,
    candidate: Candidate,
    seed: int,
    items: list[data.Encoded],
    plain: torch.Tensor,
    probe: torch.Tensor,
    report: Progress,
) -> None:
    """One model from its start to its folder in adapters/."""
    student = session.models["student"]
    start, notes = results.read_start(session.start_file(candidate, seed))
    folder = session.adapter(candidate, seed)
    facts: dict[str, Any] = {"method": candidate.method.name, "seed": seed, "settings": candidate.settings.model_dump()}
    facts |= {name: getattr(start, name) for name in ("examples", "steps", "trainable")} | {"added": 0}
    facts |= {name: notes[name] for name in ("teacher_flops", "student_flops")} | {"start": notes["facts"]}
    if start.decoder is not None:
        results.export_decoder(folder, start.decoder, facts)
    elif start.matrices:
        model = results.rebuilt(student, start.matrices)
        facts["added"] = sum(p.numel() for p in model.parameters()) - student.checkpoint.parameters
        logits = inject.probe_logits(model, probe)
        facts |= {"tuned": False, "moved": changes.moved(logits, plain)}
        _remember(session, candidate, seed, logits, plain)
        results.export_checkpoint(student, model, folder, facts)
    else:
        _adapter(session, candidate, seed, start, items, plain, probe, facts, report)


def _remember(session: Session, candidate: Candidate, seed: int, logits: torch.Tensor, plain: torch.Tensor) -> None:
    """Keep the logits (tokens, V) a model gives in memory, for the reload check. Before it is exported: once its
    folder is there the model counts as finished, and must have something to be checked against."""
    if candidate.control_of is None and torch.equal(logits, plain):
        session.warn(f"tune: {candidate.label}, seed {seed}: what is saved is the student itself; nothing was moved.")
    with files.replacing(_logits_file(session, candidate, seed)) as temporary:
        save_file({"logits": logits}, temporary)


def _adapter(
    session: Session,
    candidate: Candidate,
    seed: int,
    start: Start,
    items: list[data.Encoded],
    plain: torch.Tensor,
    probe: torch.Tensor,
    facts: dict[str, Any],
    report: Progress,
) -> None:
    """Tune an adapter where that follows, and export it."""
    student, teacher = session.models["student"], session.models["teacher"]
    with inject.attached(student, start) as wrapped:
        if start.tuned:
            shift = changes.moved(inject.probe_logits(wrapped, probe), plain)
            limit = inject.TOLERANCE[student.model.dtype]
            facts |= {"start_difference": shift, "tolerance": limit}
            if not shift <= limit:
                row = {"model": candidate.label, "seed": seed, "tuned": True, "same": False}
                changes.write_checks(session, row | {"start_difference": shift, "tolerance": limit})
                raise RunError(
                    f"tune: {candidate.label} does not start at the student; its logits differ by {shift:.2g}."
                )
            pad = student.tokenizer.pad_token_id or 0
            with budget.counting(teacher, student) as spent:
                kept = _savepoint(session, "tune", candidate, seed, spent)
                tuned = tune.fine_tune(wrapped, items, session.config.tune, seed, pad, report, savepoint=kept)
            facts["examples"] = max(facts["examples"], len(items))
            facts["steps"] += tuned.steps
            facts["kept_step"] = facts["steps"] - tuned.steps + tuned.kept_step
            if tuned.warning:
                session.warn(f"tune: {candidate.label}, seed {seed}: {tuned.warning}")
            facts["trainable"] = max(facts["trainable"], tuned.trainable)
            facts["student_flops"] += spent["student_flops"]
            _write_losses(session, candidate, seed, tuned.losses)
        logits = inject.probe_logits(wrapped, probe)
        if start.tuned and torch.equal(logits, plain):
            raise RunError(
                f"tune: {candidate.label} is still the student after tuning; a larger tune.learning_rate may help."
            )
        facts |= {"tuned": start.tuned, "moved": changes.moved(logits, plain)}
        _remember(session, candidate, seed, logits, plain)
        inject.export(wrapped, session.adapter(candidate, seed), student.checkpoint.spec, facts)
        if start.tuned:
            kept.remove()


def _budgets(session: Session) -> None:
    """tune/budgets.parquet; locating counts for the methods that work from it."""
    spent = session.run.path("locate", "spent.json")
    located = files.read_json(spent) if spent.is_file() else {}
    rows: list[dict[str, Any]] = []
    for candidate, seed in session.jobs():
        facts = files.read_json(session.adapter(candidate, seed) / "paraknow.json")
        row = {"model": candidate.label, "seed": seed} | {name: facts[name] for name in budget.FIELDS}
        if candidate.method.locates:
            row["teacher_flops"] += located.get("teacher_flops", 0.0)
            row["student_flops"] += located.get("student_flops", 0.0)
        rows.append(row)
    examined = {row["seed"]: row for row in rows if row["model"] == session.checked.candidates[0].label}
    for row in rows:
        row["more"] = budget.more_than(row, examined[row["seed"]])
    files.write_table(session.run.path("tune", "budgets.parquet"), pd.DataFrame(rows))


def _logits_file(session: Session, candidate: Candidate, seed: int) -> Path:
    return session.run.path("tune", candidate.label, f"{seed}.logits.safetensors")


def _reload_all(session: Session, probe: torch.Tensor, progress: Progress) -> None:
    """Every result that has weights, loaded afresh, must give the logits that it gave in memory."""
    expected = {
        session.adapter(c, s): load_file(file)["logits"]
        for c, s in session.jobs()
        if (file := _logits_file(session, c, s)).is_file()
    }
    root = session.run.path("adapters")
    student = session.models["student"]
    differences = inject.reload_check(student, probe, expected, root, progress) if expected else {}
    limits = {str(folder): inject.reload_limit(student.model.dtype, logits) for folder, logits in expected.items()}
    found = {"largest_difference": differences, "limit": limits}
    relative = {
        name: {str(Path(folder).relative_to(root)): value for folder, value in values.items()}
        for name, values in found.items()
    }
    files.write_json(root / "reload.json", relative)
    progress(1, 1)
