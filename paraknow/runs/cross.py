"""Knowledge located on one task, measured on another: the cross matrix (no torch before a run is carried out).

A column is a task that is tuned and measured on; a row is the task whose seeds located. Every column is a sweep of its
own over `locate.task` (sweep.py), so its cells read the same data with the same seeds, and a second call goes on.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from paraknow import files, methods
from paraknow.checks import check
from paraknow.config import RunConfig
from paraknow.errors import InputError, ParaKnowError, RunError
from paraknow.evaluate import statistics
from paraknow.runs import sweep
from paraknow.runs.store import Run, runs_folder
from paraknow.runs.sweepfile import Plan, read

if TYPE_CHECKING:
    from paraknow.runs.cluster import Cluster

FILE = "cross.json"  # in the runs folder: the last one
NOISE, RANDOM = "noise", "random_window"
EVERYTHING = "all"  # the scope of a cell that counts every test item; the others are groups
MOST = 12  # tasks: a matrix of them is that many runs squared


@dataclass
class Cross:
    """cells: one per located (None: the noise control, nothing located), measured and scope (all items or a group):
    n, seeds, accuracy, delta and delta_ci to the student, against (control → delta, delta_ci), own (located on
    the task itself), run, state, error. own: per column and scope, the diagonal minus the mean of the other rows, item
    by item: n, difference, ci, others. words: the verdicts.
    """

    name: str
    method: str
    title: str
    pair: dict[str, str]
    tasks: list[str]
    cells: list[dict[str, Any]] = field(default_factory=list)
    own: list[dict[str, Any]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)


# -- carrying out ----------------------------------------------------------------------------------------


def plan(config: RunConfig, tasks: Sequence[str], name: str) -> list[Plan]:
    """One sweep per measured task, over the tasks that locate. Baselines are left out: nothing of theirs is located.

    Raises InputError: fewer than two tasks, more than 12, one named twice, a method that does not work from what is
    located, other suites, benchmarks or locate.task set in the config.
    """
    if not 2 <= len(tasks) <= MOST:
        raise InputError(f"--task: a cross matrix needs 2 to {MOST} tasks; got {len(tasks)} ({', '.join(tasks)}).")
    if twice := [t for t in tasks if list(tasks).count(t) > 1]:
        raise InputError(f"--task names {twice[0]!r} twice.")
    for setting, given in (
        ("locate.task", config.locate.task),
        ("evaluate.suites", config.evaluate.suites),
        ("evaluate.benchmarks", config.evaluate.benchmarks),
    ):
        if given:
            raise InputError(f"{setting}: a cross matrix sets it itself; leave it out of the config.")
    if not methods.candidates(config)[0].method.locates:
        raise InputError(f"method {config.method.name!r} does not work from what is located; choose seeking, say.")
    base = config.model_dump(mode="json", exclude={"name", "task", "baselines"})
    base["controls"] = list(dict.fromkeys((*config.controls, NOISE, RANDOM)))
    base["similarity"]["parts"] = []  # how alike the pair is says nothing about a cell
    names = _slugs(tasks)
    plans = []
    for task, slug in zip(tasks, names, strict=True):
        values = {**copy.deepcopy(base), "task": [task]}
        whole = {"name": f"{name[:30]}-{slug}", "base": values, "grid": {"locate.task": [[t] for t in tasks]}}
        plans.append(read(whole))
    return plans


def _slugs(tasks: Sequence[str]) -> list[str]:
    """A short name per task that can be a folder's, no two the same."""
    made: list[str] = []
    for number, task in enumerate(tasks, 1):
        plain = re.sub(r"[^A-Za-z0-9]+", "-", task.rstrip("/").rpartition("/")[2].rpartition(":")[2]).strip("-")[:20]
        made.append(plain if plain and plain not in made else f"{plain or 'task'}-{number}")
    return made


def run(
    config: RunConfig,
    tasks: Sequence[str],
    name: str = "cross",
    root: Path | None = None,
    execute: Callable[[Run], None] | None = None,
    note: Callable[[str], None] = lambda text: None,
    cluster: Cluster | None = None,
) -> Cross:
    """Carry out every cell that is not done and read all of them, side by side on `cluster` or one after the other by
    `execute(run)`.

    All cells are checked first. Raises InputError or ResourceError before anything is written, Cancelled where a run
    was cancelled. A run that fails is a missing cell.
    """
    root = root or runs_folder()
    plans = plan(config, tasks, name)
    for made in plans:
        for point in made.points:
            try:
                check(point.config, cluster is None or cluster.address is None)
            except ParaKnowError as error:
                raise type(error)(f"{made.name}, {point.words}: {error}") from None
    folders = []
    for number, made in enumerate(plans, 1):
        note(f"measured on {tasks[number - 1]} ({number} of {len(plans)})")
        values = {"name": made.name, "base": made.base, "list": [p.settings for p in made.points]}
        carry = None if execute is None else (lambda run, _, own=execute: own(run))
        folders.append(sweep.run(values, root, carry, note, cluster=cluster))
    return results(config, tasks, name, folders)


# -- reading ---------------------------------------------------------------------------------------------


def results(config: RunConfig, tasks: Sequence[str], name: str, folders: Sequence[Path]) -> Cross:
    """What the columns' sweeps came to. Raises RunError where two runs of a column measured different items."""
    examined = methods.candidates(config)[0]
    found = Cross(name, examined.label, examined.method.title, config.pair.model_dump(), list(tasks))
    settings = config.evaluate.resamples, config.seed
    for measured, folder in zip(tasks, folders, strict=True):
        runs = dict(zip(tasks, _states(folder), strict=True))
        items = {task: _items(about) for task, about in runs.items()}
        done = {task: frame for task, frame in items.items() if frame is not None}
        _join(done, measured)
        scopes = _scopes(done)
        for task in tasks:
            about = {"located": task, "measured": measured, "own": task == measured, **runs[task]}
            for scope in scopes:
                frame = done.get(task)
                numbers = _cell(_of(frame, scope), found.method, settings) if frame is not None else {}
                found.cells.append({**about, "scope": scope, **(numbers or _MISSING)})
        source = measured if measured in done else next(iter(done), None)
        for scope in scopes:
            if source is not None:  # noise as large as what was located on the task itself
                part = _of(done[source], scope)
                numbers = _cell(part, f"{found.method}+{NOISE}", settings, versus=())
                about = {"located": None, "measured": measured, "own": False, **runs[source]}
                found.cells.append({**about, "scope": scope, **(numbers or _MISSING)})
            found.own += _own(done, measured, scope, found.method, settings)
    found.words = words(found)
    return found


_MISSING: dict[str, Any] = {**dict.fromkeys(("n", "seeds", "accuracy", "delta", "delta_ci")), "against": {}}


def _states(folder: Path) -> list[dict[str, Any]]:
    """run, state and error of every point of a sweep, in order."""
    first: dict[int, dict[str, Any]] = {}
    for row in sweep.rows(folder):
        kept = {"run": row["run"], "state": row["state"], "error": row["error"]}
        first.setdefault(row["point"], {**kept, "folder": str(folder.parent.parent)})
    return [first[number] for number in sorted(first)]


def _items(about: dict[str, Any]) -> pd.DataFrame | None:
    file = Path(about.pop("folder")) / str(about["run"]) / "evaluate" / "items.parquet"
    if about["state"] != "done" or not file.is_file():
        return None
    return pd.read_parquet(file, columns=["task", "group", "doc_id", "doc_hash", "model", "seed", "correct"])


def _join(done: dict[str, pd.DataFrame], measured: str) -> None:
    """Cells of a column are compared item by item, so they must be the same items."""
    asked = {
        task: frame[frame.model == "student"].sort_values("doc_id")[["doc_id", "doc_hash"]].to_numpy().tolist()
        for task, frame in done.items()
    }
    for task, items in asked.items():
        if items != next(iter(asked.values())):
            raise RunError(
                f"cross: on {measured}, the run located on {task} was measured on other items than the rest."
            )


def _scopes(done: dict[str, pd.DataFrame]) -> list[str]:
    frame = next(iter(done.values()), None)
    groups = [] if frame is None else [g for g in dict.fromkeys(map(str, frame.group)) if g != "all"]
    return [EVERYTHING, *groups]


def _of(frame: pd.DataFrame, scope: str) -> pd.DataFrame:
    return frame if scope == EVERYTHING else frame[frame.group == scope]


def _right(frame: pd.DataFrame, model: str) -> np.ndarray | None:
    """(seeds, items) whether a model was right, items in one order; None where it was not measured."""
    own = frame[frame.model == model].sort_values(["seed", "doc_id"])
    return own.correct.to_numpy().astype(bool).reshape(own.seed.nunique(), -1) if len(own) else None


def _cell(
    frame: pd.DataFrame, model: str, settings: tuple[int, int], versus: Sequence[str] = (NOISE, RANDOM)
) -> dict[str, Any] | None:
    """A model against the student and its controls on the items of one scope; None where it was not measured."""
    own, student = _right(frame, model), _right(frame, "student")
    if own is None or student is None:
        return None
    row: dict[str, Any] = {"n": own.shape[1], "seeds": len(own), "accuracy": float(own.mean())}
    row |= _difference(own, student, settings)
    held = {control: _right(frame, f"{model}+{control}") for control in versus}
    row["against"] = {name: _difference(own, it, settings) for name, it in held.items() if it is not None}
    return row


def _difference(own: np.ndarray, other: np.ndarray, settings: tuple[int, int]) -> dict[str, Any]:
    found = statistics.compare(own, other, seed=settings[1], resamples=settings[0])
    return {"delta": found.delta, "delta_ci": [found.lo, found.hi]}


def _own(
    done: dict[str, pd.DataFrame], measured: str, scope: str, model: str, settings: tuple[int, int]
) -> list[dict[str, Any]]:
    """The diagonal minus the mean of the other rows on the same items and seeds; nothing where one of both lacks."""
    right = {task: _right(_of(frame, scope), model) for task, frame in done.items()}
    others = [values for task, values in right.items() if task != measured and values is not None]
    diagonal = right.get(measured)
    if diagonal is None or not others:
        return []
    gaps = diagonal.astype(float) - np.mean([o.astype(float) for o in others], axis=0)  # (seeds, items)
    if len(others) == 1:
        found = _difference(diagonal, others[0], settings)
        value, ci = found["delta"], found["delta_ci"]
    else:
        value, ci = (
            float(gaps.mean()),
            list(statistics.paired_bootstrap(gaps, settings[1], settings[0], bounds=(-1, 1))),
        )
    about = {"measured": measured, "scope": scope, "n": gaps.shape[1], "others": len(others)}
    return [{**about, "difference": value, "ci": ci}]


def words(found: Cross) -> list[str]:
    """Whether locating on a task itself brings more than locating on another one, and than noise, per column."""
    made = []
    for task in found.tasks:
        row = next((r for r in found.own if r["measured"] == task and r["scope"] == EVERYTHING), None)
        if row is None:
            made.append(f"{task}: not measured, since runs of this column are missing.")
            continue
        low, high = row["ci"]
        said = "more than" if low > 0 else "less than" if high < 0 else "no more, as far as this can tell, than"
        cell = next(c for c in found.cells if c["own"] and c["measured"] == task and c["scope"] == EVERYTHING)
        noise = cell["against"].get(NOISE)
        beside = ""
        if noise:
            above = noise["delta_ci"][0] > 0
            beside = f"; {'above' if above else 'not above'} noise of the same size ({_signed(noise)})"
        made.append(
            f"{task}: locating on it brings {said} locating on {'the other task' if row['others'] == 1 else 'others'} "
            f"({_signed({'delta': row['difference'], 'delta_ci': row['ci']})} in accuracy, {row['n']} items){beside}."
        )
    return made


def _signed(found: dict[str, Any]) -> str:
    value, low, high = (f"{round(x, 2) + 0.0:+.2f}" for x in (found["delta"], *found["delta_ci"]))
    return f"{value}, {low} to {high}"


def missing(found: Cross) -> list[dict[str, Any]]:
    """Cells that have no number."""
    return [c for c in found.cells if c["scope"] == EVERYTHING and c["delta"] is None]


def save(found: Cross, path: Path, command: str) -> None:
    """Keep a cross matrix as one JSON file, for the page."""
    files.write_json(path, {"command": command, **vars(found)})
