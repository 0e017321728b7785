"""The calibration ladder: chosen methods on pairs from a known answer to none at all (METHODS 4.3; no torch).

Every method runs on every pair with its controls, as an ordinary run; a run that is there already, done and of the same
models and data, is not repeated, and a broken one goes on. What is read off: the share of the teacher's never-shown
knowledge that arrived.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit
from scipy.stats import spearmanr

from paraknow import checkpoints, files, resources, yamls
from paraknow import config as configs
from paraknow.config import RunConfig
from paraknow.demo.rungs import RUNGS
from paraknow.errors import InputError
from paraknow.runs import artifacts, store
from paraknow.runs.reuse import unchanged
from paraknow.runs.store import Run

FILE = "calibration.json"  # in the runs folder: the last one; in the assets: the shipped ladder's
STUDY = "study.json"  # in the assets: pairs from five seeds (docs/results.md)
NEAR_ZERO = 0.05  # a control whose interval reaches down to this much moved nothing worth the name
ENOUGH = 0.95  # what the known answer must score
# Every matrix of the layers, matched and paired by weights alone: what crosses at best without training.
KIN = "transport:label=transport-kin,maps=vocabulary,attention=true,pairing=kin"
PREDICTORS = ("kinship", "cka", "r2", "fit_turned")
# As the demo: 675 examples give few steps an epoch, so that the paper's three epochs would teach nothing.
TUNE = {"epochs": 10, "learning_rate": 1e-3, "max_length": 64}


@dataclass(frozen=True)
class Job:
    """One run of the ladder: a method with its controls on one pair."""

    world: str
    rung: str
    method: str
    config: RunConfig


@dataclass
class Calibration:
    """rows: one per world, rung and model; pooled: one per rung and model, over worlds; words: the verdicts.

    `predictors`: Spearman correlation, over pairs, of what a method moved with how alike the two models are.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    pooled: list[dict[str, Any]] = field(default_factory=list)
    predictors: list[dict[str, Any]] = field(default_factory=list)
    passed: bool | None = None
    words: list[str] = field(default_factory=list)


def choice(text: str) -> dict[str, Any]:
    """A method from the command line: `name` or `name:setting=value,setting=value` (values are YAML).

    A method with settings is called by them too (transport:mode=widen,neurons=64 is transport-widen-64), or by a
    `label` among them.
    Raises InputError where a setting has no value.
    """
    name, _, rest = text.partition(":")
    values: dict[str, Any] = {"name": name}
    for entry in filter(None, rest.split(",")):
        key, separator, value = entry.partition("=")
        if not separator:
            raise InputError(f"--method {text!r}: expected name:setting=value, such as transport:maps=ridge.")
        values[key.strip()] = yamls.parse(value, f"--method {text!r}: the value of {key.strip()}")
    if rest and "label" not in values:
        said = [k if v is True else str(v).lower() for k, v in values.items() if k != "name"]
        values["label"] = re.sub(r"[^a-z0-9_.]+", "-", "-".join([name, *said]).lower()).strip("-._")[:40]
    return values


def plan(
    folders: Sequence[Path],
    rungs: Sequence[str],
    methods: Sequence[str],
    beside: Sequence[str] = (),
    seed: int = 0,
    evaluate: dict[str, Any] | None = None,
) -> list[Job]:
    """The runs of a calibration. `folders` hold models/ and suites/ as `paraknow demo build` writes them.

    `beside` are further methods that run beside the first one, without controls of their own. On the clone rung the
    known answer is measured too. Raises InputError: a rung that is none or is not built, a method that is none.
    """
    names = [folder.name for folder in folders]
    if twice := [n for n in names if names.count(n) > 1]:
        raise InputError(f"two folders are named {twice[0]!r}, and tables know a world by that; rename one.")
    jobs = []
    for folder in folders:
        for rung in rungs:
            if rung not in RUNGS:
                raise InputError(f"--rung {rung!r}: choose one of {', '.join(RUNGS)}.")
            pair = {"teacher": _spec(folder, RUNGS[rung].teacher), "student": _spec(folder, RUNGS[rung].student)}
            own = folder.resolve() == resources.assets().resolve()
            layers = [checkpoints.find(spec).architecture.layers for spec in pair.values()]
            chosen = [choice(m) for m in methods]
            for values in ([choice("oracle")] if rung == "clone" else []) + chosen:
                first, oracle = values is chosen[0], values["name"] == "oracle"
                others = [choice(b) for b in beside] if first else []
                config = {
                    "name": f"Ladder: {values.get('label', values['name'])} on {rung} ({folder.name})",
                    "pair": pair,
                    "task": "demo:people" if own else str(folder / "suites" / "people"),
                    "method": values,
                    "baselines": [b for b in others if _possible(b, pair)],
                    "controls": ["zero", "noise"] if oracle else ["zero", "noise", "shuffled_teacher"],
                    "locate": {
                        "neurons": "none",
                        "max_length": 64,
                        "layers": "sensitivity" if layers[0] == layers[1] else "matched",
                    },
                    # how alike the pair is, once a pair
                    "similarity": {"parts": ["cka", "stitching"] if first else [], "split": "align", "max_length": 64},
                    "tune": TUNE,
                    "evaluate": {"batch_size": 256, **(evaluate or {})},
                    "seed": seed,
                }
                jobs.append(
                    Job(folder.name, rung, values.get("label", values["name"]), configs.parse(config, "calibrate"))
                )
    return jobs


def _spec(folder: Path, name: str) -> str:
    if folder.resolve() == resources.assets().resolve() and name in resources.DEMO_MODELS:
        return f"demo:{name}"
    path = folder / "models" / name
    if not (path / "config.json").is_file():
        raise InputError(
            f"{path} is not built: run `paraknow demo build --ladder --out {folder}` (with --study for pairs between "
            "sibling and stranger)."
        )
    return str(path)


def _possible(values: dict[str, Any], pair: dict[str, str]) -> bool:
    """The identity maps no space to another size: that one is left out where it cannot be."""
    sides = {checkpoints.find(spec).architecture.hidden for spec in pair.values()}
    return values.get("maps") != "identity" or len(sides) == 1


def existing(config: RunConfig) -> Run | None:
    """The newest run of exactly this config on models and data that have not changed since, whatever its state.

    Never a read-only one: an imported run has no adapters and blocks to go on with, and its numbers are those of
    another machine's device and versions.
    """
    for run in store.all_runs():
        if run.read_only or _config_of(run.path("config.yaml").resolve()) != config:
            continue
        facts = run.path("environment.json")
        if not facts.is_file():
            return run
        pair = (checkpoints.find(spec) for spec in (config.pair.teacher, config.pair.student))
        with suppress(InputError):  # damaged: nobody knows what it was run on
            if unchanged(artifacts.json_file(run.folder, facts.name), config, *pair):
                return run
    return None


@lru_cache(maxsize=4096)
def _config_of(path: Path) -> RunConfig | None:
    """A run's config, which never changes, with today's defaults for what it does not name; None where damaged."""
    try:
        return configs.load(path)
    except InputError:
        return None


def carry_out(jobs: Sequence[Job], execute: Callable[[Run], None], note: Callable[[str], None]) -> list[Run]:
    """Every job's run: the one that is there, gone on with, or a new one; `execute(run)` carries it out.

    All configs are checked first. Raises InputError or ResourceError before anything is written.
    """
    from paraknow.checks import check

    for job in jobs:
        check(job.config)
    runs = []
    for number, job in enumerate(jobs):
        run = existing(job.config)
        evaluated = run is not None and run.path("evaluate", "deltas.json").is_file()
        if run is None or run.status().get("state") != "done" or not evaluated:
            run = run or store.create(job.config, state="running")
            note(f"{number + 1} of {len(jobs)}: {job.config.name} (run {run.id})")
            execute(run)
        runs.append(run)
    return runs


def read(jobs: Sequence[Job], runs: Sequence[Run]) -> Calibration:
    """What the runs came to. Models that several runs of a pair share (teacher, student, zero) are taken once."""
    found = Calibration()
    seen: set[tuple[str, str, str]] = set()
    alike: dict[tuple[str, str], dict[str, float]] = {}
    for job, run in zip(jobs, runs, strict=True):
        alike.setdefault((job.world, job.rung), {}).update(likeness(run, job.config))
        rows = artifacts.json_file(run.folder, "evaluate/deltas.json")["rows"]
        known = {r["model"]: r["accuracy"] for r in rows if r["group"] == "known"}
        for row in rows:
            key = (job.world, job.rung, row["model"])
            if row["group"] == "never_shown" and key not in seen:
                seen.add(key)
                kept = ("model", "n", "accuracy", "ci", "delta", "delta_ci", "bits", "share", "share_ci", "claim")
                about = {"world": job.world, "rung": job.rung, "known": known.get(row["model"]), "run": run.id}
                found.rows.append({**about, **{k: row[k] for k in kept}, "missing": row["share_missing"]})
    for row in found.rows:
        row.update(dict.fromkeys(PREDICTORS), **alike[(row["world"], row["rung"])])
    found.pooled = pool(found.rows)
    methods = list(dict.fromkeys(job.method for job in jobs))
    found.predictors = predictors(found.rows, [m for m in methods if m != "oracle"])
    found.passed, found.words = verdict(found.pooled, methods, [job.rung for job in jobs])
    return found


def likeness(run: Run, config: RunConfig) -> dict[str, float]:
    """How alike the pair is: mean CKA and R² of the layers that predict each other best, what a fitted rotation of the
    teacher's streams explains of the student's (fit_turned), and the kinship of layers that transport paired.

    What a run did not measure is left out. Raises InputError for a damaged table."""
    made: dict[str, float] = {}
    stitching, cka = "similarity/stitching.parquet", "similarity/cka.parquet"
    if run.path(stitching).is_file() and run.path(cka).is_file():
        r2 = artifacts.table(run.folder, stitching, ["teacher_layer", "student_layer", "r2", "paired"])
        alike = artifacts.table(run.folder, cka, ["task", "module", "teacher_layer", "student_layer", "cka"])
        pairs = r2[r2.paired]
        made["r2"] = float(pairs.r2.mean())
        own = alike[(alike.module == "residual") & (alike.task == alike.task.iloc[0])] if len(alike) else alike
        both = own.merge(pairs[["teacher_layer", "student_layer"]], on=["teacher_layer", "student_layer"])
        made["cka"] = float(both.cka.mean())
    for entry in (config.method, *config.baselines):
        name = f"align/{entry.title}/{config.seed}.parquet"
        if entry.name == "transport" and run.path(name).is_file():
            settings = entry.settings()
            if settings.get("pairing") == "kin":
                made["kinship"] = float(artifacts.table(run.folder, name, ["kinship"]).kinship.mean())
            if settings.get("maps", "procrustes") == "procrustes" and not settings.get("refit"):
                made["fit_turned"] = float(artifacts.table(run.folder, name, ["fit_out"]).fit_out.mean())
    return {name: value for name, value in made.items() if np.isfinite(value)}


def pool(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per rung and model. With several worlds, each of them is one observation: Student's interval over their
    shares; with one, that run's own interval (over items). What the pairs' likeness is, is averaged over worlds."""
    made = []
    frame = pd.DataFrame(rows)
    for (rung, model), part in frame.groupby(["rung", "model"], sort=False):
        shares = part.share.dropna().to_numpy(dtype=float)
        value = float(shares.mean()) if len(shares) else None
        interval = part.share_ci.iloc[0] if len(part) == 1 else _student(shares)
        beside = frame[(frame.rung == rung) & (frame.model.str.startswith(f"{model}+") | (frame.model == "zero"))]
        made.append(
            {
                "rung": rung,
                "model": model,
                "worlds": len(part),
                "measured": len(shares),
                "share": value,
                "share_ci": None if interval is None else [float(x) for x in interval],
                "crossed": _crossed(part, interval, beside),
                "accuracy": float(part.accuracy.mean()),
                "known": float(part.known.mean()),
                "above_controls": int(part.claim.eq(True).sum()),
                **{name: _mean(part[name]) for name in PREDICTORS},
            }
        )
    order = {rung: k for k, rung in enumerate(RUNGS)}
    return sorted(made, key=lambda r: order[r["rung"]])


def _student(values: np.ndarray) -> list[float] | None:
    """Student's 95 % interval of a mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    half = stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / np.sqrt(len(values))
    return [float(values.mean() - half), float(values.mean() + half)]


def _crossed(part: pd.DataFrame, interval: Sequence[float] | None, controls: pd.DataFrame) -> bool | None:
    """Whether knowledge crossed: the share's interval lies above 0, and so does the paired difference to every control
    (METHODS 2.5). One world: that run's own claim, item by item; several: the worlds' differences. None where the share
    or a control could not be measured."""
    if interval is None:
        return None
    if interval[0] <= 0:
        return False
    if len(part) == 1:
        claim = part.claim.iloc[0]
        return None if claim is None else bool(claim)
    own, found = part.set_index("world").share.astype(float), True
    for _, control in controls.groupby("model"):
        difference = _student((own - control.set_index("world").share.astype(float)).dropna().to_numpy())
        if difference is None:
            return None
        found &= difference[0] > 0
    return found


def _mean(column: pd.Series) -> float | None:
    values = column.astype(float).dropna()
    return float(values.mean()) if len(values) else None


def predictors(rows: Sequence[dict[str, Any]], methods: Sequence[str]) -> list[dict[str, Any]]:
    """Spearman correlation of each method's share with each measure of likeness, over pairs (n of them)."""
    frame, made = pd.DataFrame(rows), []
    for method in methods:
        for name in PREDICTORS:
            both = frame[frame.model == method][["share", name]].astype(float).dropna()
            spread = len(both) > 3 and both.nunique().min() > 1
            rho = float(spearmanr(both.share, both[name]).statistic) if spread else None
            made.append({"method": method, "predictor": name, "correlation": rho, "n": len(both)})
    return made


def verdict(
    pooled: Sequence[dict[str, Any]], methods: Sequence[str], rungs: Sequence[str]
) -> tuple[bool | None, list[str]]:
    """Whether the instrument can be believed (None where the clone rung was not run), and each method in words."""
    at = {(r["rung"], r["model"]): r for r in pooled}
    words, passed = [], None

    def nothing(row: dict[str, Any]) -> bool:
        return row["share_ci"] is not None and row["share_ci"][0] <= NEAR_ZERO

    if oracle := at.get(("clone", "oracle")):
        idle = [r for r in pooled if r["model"] == "zero" or r["model"].endswith("+shuffled_teacher")]
        measured = [r for r in idle if r["share_ci"] is not None]  # one share of several worlds has no interval
        loud = [r for r in measured if not nothing(r)]
        passed = oracle["share"] is not None and oracle["share"] >= ENOUGH and not loud and bool(measured)
        words.append(
            f"Instrument: the known answer on the clone pair scores {share_words(oracle)}; "
            + (
                f"but {loud[0]['model']} on {loud[0]['rung']} scores {share_words(loud[0])}: it FAILED its check."
                if loud
                else "nothing moved and shuffled teachers score about 0: it can be believed."
                if passed
                else "it FAILED its check."
            )
        )
    for method in (m for m in methods if m != "oracle"):
        parts = []
        for rung in dict.fromkeys(rungs):
            row = at.get((rung, method))
            if row is None or row["share"] is None or row["share_ci"] is None:
                parts.append(f"on {rung} it could not be measured")
                continue
            said = {True: "crossed", False: "nothing crossed that a control does not bring"}.get(
                row["crossed"], "but a control could not be measured"
            )
            parts.append(f"on {rung} {share_words(row)}, {said}")
        words.append(f"{method}: " + "; ".join(parts) + ".")
    return passed, words


def share_words(row: dict[str, Any]) -> str:
    """A share with its interval, or that it is missing."""
    if row["share"] is None:
        return "no share that can be measured"
    if row["share_ci"] is None:
        return f"{round(row['share'], 2) + 0.0:.2f}"
    value, low, high = (round(x, 2) + 0.0 for x in (row["share"], *row["share_ci"]))  # + 0.0: never "-0.00"
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def save(found: Calibration, path: Path, command: str) -> None:
    """Keep a calibration as one JSON file, for pages and for docs."""
    files.write_json(path, {"command": command, **vars(found)})
