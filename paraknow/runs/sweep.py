"""Sweeps: one config at several settings, each point an ordinary run (no torch before a point is carried out).

What a sweep file holds: see sweepfile.py. The sweep's folder, runs/sweeps/<name>/, keeps which run belongs to which
point, so that a second call goes on: finished points stay, broken ones are resumed, and a point whose config, models or
data have changed is run anew.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml
from filelock import FileLock, Timeout

from paraknow import files
from paraknow.checks import Checked, check
from paraknow.errors import Cancelled, InputError, ParaKnowError
from paraknow.runs import reuse, store
from paraknow.runs import threads as cpu
from paraknow.runs.compare import flatten
from paraknow.runs.order import Work
from paraknow.runs.store import Run
from paraknow.runs.sweepfile import Plan, Point, read, word

if TYPE_CHECKING:
    from paraknow.runs.cluster import Cluster

FOLDER, FILE, LOCK = "sweeps", "sweep.json", ".lock"
KEPT = tuple("suite group model n accuracy ci delta delta_ci bits share share_ci claim".split())

Execute = Callable[[Run, dict[str, Any]], None]


# -- carrying out ----------------------------------------------------------------------------------------


def run(
    source: Path | str | dict[str, Any],
    root: Path | None = None,
    execute: Execute | None = None,
    note: Callable[[str], None] = lambda text: None,
    resume: bool = False,
    cluster: Cluster | None = None,
    threads: int | None = None,
) -> Path:
    """Carry out every point that is not done, in the foreground, and return the sweep's folder (see `table`).

    Points are carried out on `cluster` (runs/cluster.py), or one after the other by `execute(run, warm)`; `warm` keeps
    models between runs of one pair. Each computes with `threads` CPU threads, the sweep's own number by default (see
    runs/threads.py), so both ways find the same. With `resume` the sweep must have been begun, and `source` may be its
    name. A point that fails is kept as failed and the sweep goes on.

    Raises InputError or ResourceError before anything is written (all points are checked first), and Cancelled where
    a point was cancelled; another call goes on from there.
    """
    root = root or store.runs_folder()
    plan = read(_begun(source, root) if resume else source)
    here = cluster is None or cluster.address is None
    checked = [_check(point, here) for point in plan.points]
    folder = root / FOLDER / plan.name
    before = _state(folder)
    if resume and not before:
        raise InputError(f"--resume: no sweep named {plan.name!r} was begun in {root}.")
    _refuse_other(plan, before)
    with _held(folder):
        state = {
            "name": plan.name,
            "source": str(plan.source) if plan.source and plan.source.parent != folder else before.get("source"),
            "created": before.get("created", time.time()),
            "threads": threads or before.get("threads") or cpu.decide(checked),
            "points": _noted(plan.points, checked),
            "runs": before.get("runs", {}),  # of earlier points too: one that comes back finds its run
        }
        files.write_json(folder / FILE, state)
        whole = {"name": plan.name, "base": plan.base, "list": [p.settings for p in plan.points]}
        files.write_text(folder / "sweep.yaml", yaml.safe_dump(whole, sort_keys=False, allow_unicode=True))
        sweep = _Sweep(plan, checked, root, state, note)
        try:
            if cluster:
                sweep.side_by_side(cluster)
            else:
                sweep.one_by_one(execute or _quietly)
        finally:
            files.write_table(folder / "table.parquet", table(folder))
    return folder


def _quietly(run: Run, warm: dict[str, Any]) -> None:
    from paraknow.runs.worker import execute, quiet

    quiet()
    execute(run, warm=warm)


def _begun(source: Path | str | dict[str, Any], root: Path) -> Path | str | dict[str, Any]:
    """The stored file of a sweep that was given by its name."""
    if isinstance(source, dict) or Path(source).is_file():
        return source
    stored = root / FOLDER / str(source) / "sweep.yaml"
    if not stored.is_file():
        raise InputError(f"--resume {str(source)!r}: no such file, and no sweep of that name was begun in {root}.")
    return stored


def _check(point: Point, here: bool) -> Checked:
    try:
        return check(point.config, here=here)
    except ParaKnowError as error:
        raise type(error)(f"point {point.number} ({point.words}): {error}") from None


def _refuse_other(plan: Plan, before: dict[str, Any]) -> None:
    """Two files of one name would take each other's place."""
    other = before.get("source")
    if not other or plan.source is None or other == str(plan.source) or not Path(other).is_file():
        return
    if plan.source.name == "sweep.yaml" and plan.source.parent.parent.name == FOLDER:
        return  # its own stored copy
    if [p["digest"] for p in before.get("points", [])] != [p.digest for p in plan.points]:
        raise InputError(f"a sweep named {plan.name!r} was begun from {other}; give this one a name: of its own.")


def _noted(points: Sequence[Point], checked: Sequence[Checked]) -> list[dict[str, Any]]:
    """What sweep.json says of every point; `columns` are the varied settings with the values they really have."""
    names = list(dict.fromkeys(name for point in points for name in flatten(point.settings)))
    noted = []
    for point, about in zip(points, checked, strict=True):
        whole = point.config.model_dump(mode="json")
        examined = about.candidates[0].settings.model_dump(mode="json")
        found = flatten({**whole, "method": {**examined, **whole["method"]}})
        columns = {name: found.get(name, _at(whole, name)) for name in names}
        noted.append({"digest": point.digest, "settings": point.settings, "columns": columns})
    return noted


def _at(values: Any, dotted: str) -> Any:
    for key in dotted.split("."):
        values = values.get(key) if isinstance(values, dict) else None
    return values


class _Sweep:
    """A sweep under way: what has to be done for each point, whoever carries it out."""

    def __init__(
        self,
        plan: Plan,
        checked: Sequence[Checked],
        root: Path,
        state: dict[str, Any],
        note: Callable[[str], None],
    ):
        self.plan, self.checked, self.root, self.state, self.note = plan, checked, root, state, note
        self.runs: dict[int, Run] = {}  # by place: runs of this sweep on these models and data

    def one_by_one(self, execute: Execute) -> None:
        warm: dict[str, Any] = {}
        for place in range(len(self.plan.points)):
            if run := self.begin(place):
                try:
                    with cpu.limited(self.state["threads"]):
                        execute(run, warm)
                except Cancelled:
                    raise
                except ParaKnowError as error:
                    warm.clear()
                    self.failed(place, error)

    def side_by_side(self, cluster: Cluster) -> None:
        made = [
            _run_of(self.state, p, about, self.root) for p, about in zip(self.plan.points, self.checked, strict=True)
        ]
        if all(run and _done(run) for run in made):
            return  # nothing that Ray would have to be started for
        titles = [f"point {point.number}" for point in self.plan.points]
        gpu = any(point.config.device != "cpu" for point in self.plan.points)
        work = Work(titles, reuse.donors(self.checked), self.begin)
        cluster.carry_out(work, self.state["threads"], gpu, self.note, self.failed)

    def begin(self, place: int) -> Run | None:
        """A point's run, with what an earlier point located; None where it is done."""
        point, about = self.plan.points[place], self.checked[place]
        run = _run_of(self.state, point, about, self.root)
        if run is None:
            run = store.create(point.config, self.root, state="running")
            self.state["runs"][point.digest] = run.id
            files.write_json(self.root / FOLDER / self.plan.name / FILE, self.state)
        earlier = [self.runs[p] for p in sorted(self.runs) if p < place]
        self.runs[place] = run
        if _done(run):
            return None
        shared = reuse.located(run, about, earlier)
        from_ = f", {' and '.join(shared[1])} from {shared[0].id}" if shared else ""
        self.note(f"point {point.number} of {len(self.plan.points)}: {point.words} (run {run.id}{from_})")
        return run

    def failed(self, place: int, error: ParaKnowError) -> None:
        self.note(f"point {self.plan.points[place].number} failed: {error}")


def _done(run: Run) -> bool:
    status = run.status()
    return status.get("state") == "done" and "evaluate" in status.get("stages", [])


def _run_of(state: dict[str, Any], point: Point, about: Checked, root: Path) -> Run | None:
    """The run this point has had, unless it was deleted (a bundle of it may have come back) or its models or data have
    changed since."""
    run = Run(root / state["runs"].get(point.digest, " "))
    if run.read_only or not run.path("config.yaml").is_file():
        return None
    try:
        facts = files.read_json(run.path("environment.json"))
    except (OSError, ValueError):
        return run  # nothing was computed yet
    return run if reuse.unchanged(facts, point.config, about.teacher, about.student) else None


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=1):
            yield
    except Timeout:
        raise InputError(f"sweep {folder.name} is being carried out by another process.") from None


# -- results ---------------------------------------------------------------------------------------------


def _state(folder: Path) -> dict[str, Any]:
    try:
        return files.read_json(folder / FILE)
    except (OSError, ValueError):
        return {}


def rows(folder: Path) -> list[dict[str, Any]]:
    """One row per point, suite, group and model: point, the varied settings, run, state, error and what deltas.json
    says; a point without results has one row. State `waiting`: not begun; `deleted`: its run is gone."""
    state, made = _state(folder), []
    for number, point in enumerate(state.get("points", []), 1):
        run_id = state.get("runs", {}).get(point["digest"])
        run = Run(folder.parent.parent / run_id) if run_id else None
        status = run.status() if run and run.folder.is_dir() else {"state": "deleted" if run else "waiting"}
        found: list[dict[str, Any]] = [{}]
        if run and status["state"] == "done" and run.path("evaluate", "deltas.json").is_file():
            found = files.read_json(run.path("evaluate", "deltas.json"))["rows"]
        about = {"run": run_id, "state": status["state"], "error": status.get("error")}
        made += [{"point": number, **point["columns"], **about, **{k: row.get(k) for k in KEPT}} for row in found]
    return made


def table(folder: Path) -> pd.DataFrame:
    """`rows` as a frame. Settings that are lists, or of different types, are shown as text."""
    frame = pd.DataFrame(rows(Path(folder)), dtype=object)
    settings = [c for c in frame.columns if c not in ("point", "run", "state", "error", *KEPT)]
    for name in settings:
        kinds = {type(v) for v in frame[name] if v is not None}
        if kinds & {list, dict} or (len(kinds) > 1 and not kinds <= {int, float}):
            frame[name] = [None if v is None else word(v) for v in frame[name]]
        elif kinds == {int}:
            frame[name] = frame[name].astype("Int64")  # else one that is missing makes floats of them
    numbers = {"point": "int64", "n": "Int64"} | dict.fromkeys(("accuracy", "delta", "bits", "share"), "Float64")
    return frame.astype(numbers).infer_objects() if len(frame) else frame


def unfinished(folder: Path) -> list[int]:
    """Numbers of the points that are not done."""
    return sorted({row["point"] for row in rows(folder) if row["state"] != "done"})


def all_sweeps(root: Path | None = None) -> list[dict[str, Any]]:
    """Every sweep, newest first: name, folder, created, running, settings (what it varies), points, states (how many
    points are in each) and runs (of its points). A damaged one has `error`."""
    made = []
    for file in ((root or store.runs_folder()) / FOLDER).glob(f"*/{FILE}"):
        folder = file.parent
        state = _state(folder)
        if not state.get("points"):
            made.append({"name": folder.name, "folder": str(folder), "created": 0.0, "error": f"{FILE} is damaged."})
            continue
        points = {row["point"]: row for row in rows(folder)}
        made.append(
            {
                "name": state["name"],
                "folder": str(folder),
                "created": state["created"],
                "running": _locked(folder),
                "settings": list(state["points"][0]["columns"]),
                "points": len(points),
                "states": dict(Counter(row["state"] for row in points.values())),
                "runs": [row["run"] for row in points.values()],
                "error": None,
            }
        )
    return sorted(made, key=lambda s: s["created"], reverse=True)


def _locked(folder: Path) -> bool:
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except (Timeout, OSError):
        return True
