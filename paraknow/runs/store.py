"""Run folders (no torch): create, read, status, events, list. The folder is the truth.

`status.json`: state (queued, running, done, failed, cancelled, lost), stage, step, total, eta (seconds or null),
message, created, started, heartbeat, finished (Unix seconds), error, stages (finished ones); for the queue: number
(the order in which runs were made, whatever the clock says), priority (higher first), device; of the process that
works on it: host, pid, born (when that process began, so that another one of its number is not taken for it).

A run that says running while nobody holds its lock is shown as lost and can be resumed. Locks are not seen from other
machines: a run of another host is lost when its heartbeat is older than LOST_AFTER.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, get_args

from filelock import FileLock, Timeout

from paraknow import access, files, limits, resources, yamls
from paraknow import config as configs
from paraknow.config import RunConfig
from paraknow.errors import InputError
from paraknow.runs import artifacts, index
from paraknow.runs.events import EventsReader

STATES: tuple[str, ...] = get_args(artifacts.State)
STAGE_NAMES = ("load", "locate", "similarity", "align", "tune", "evaluate", "diagnose")
IMPORTED = "imported.json"  # marks a run that came in a bundle
RESERVE = 64 * 1024  # bytes kept aside so that "disk full" can still be written down
OWN_PLACE = ("host", "pid", "born", "number", "priority", "device")  # of status.json: means nothing elsewhere
BEAT = 5.0  # seconds between two heartbeats of a run that is worked on
LOST_AFTER = 15.0  # seconds without one after which a run of another machine is lost, and one of ours does not answer
RESERVED = ("sweeps", "worker.log", "cross.json", "calibration.json")  # what else lies in the runs folder
ID = r"[A-Za-z0-9][A-Za-z0-9._+-]{0,120}"


def runs_folder() -> Path:
    """Where runs are kept: $PARAKNOW_RUNS, else ./runs."""
    return Path(os.environ.get("PARAKNOW_RUNS", "runs")).expanduser()


def measured_folder() -> Path:
    """Where measurements of unchanged models are kept: beside the runs; deleting it loses time alone."""
    return runs_folder() / ".measured"


class Run:
    """One run folder. Reading methods never raise on damaged files: they return what can be shown."""

    def __init__(self, folder: Path, recorded: bool = False):
        self.folder = folder
        self.recorded = recorded  # shipped with the package

    @property
    def id(self) -> str:
        return self.folder.name

    def path(self, *parts: str) -> Path:
        return self.folder.joinpath(*parts)

    @property
    def imported(self) -> bool:
        """Whether it came in a bundle."""
        return self.path(IMPORTED).is_file()

    @property
    def read_only(self) -> bool:
        """Whether it is shown as it came: nothing goes on with it, changes it or takes its results for its own."""
        return self.recorded or self.imported

    def refuse_read_only(self) -> None:
        """Raises InputError for a run that stays as it came."""
        if self.read_only:
            came = "recorded with the package" if self.recorded else "imported, and its models may not be here"
            raise InputError(f"run {self.id} is read-only: it was {came}; start one of your own from its config.")

    # -- config ---------------------------------------------------------------------------------

    def config(self) -> RunConfig:
        """The run's config. Raises InputError if it is missing or damaged."""
        return configs.load(self.path("config.yaml"))

    # -- status ---------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What status.json says, with `lost` in place of `running` where nobody works on the run, and `silent`
        (seconds since the last heartbeat) where somebody holds it but does not answer."""
        status = self._written()
        if status["state"] == "running" and not self.read_only:
            silent = time.time() - (status.get("heartbeat") or 0.0)
            here = status.get("host") in (None, socket.gethostname())
            if here and not self.locked():
                status = self._written()  # it may have ended by itself before its lock was free
                status["state"] = "lost" if status["state"] == "running" else status["state"]
            elif not here and silent > LOST_AFTER:
                status["state"] = "lost"
            elif silent > LOST_AFTER:
                status["silent"] = silent
        return status

    def _read(self) -> dict[str, Any]:
        """status.json as it lies there. Raises OSError or ValueError."""
        status = files.read_json(self.path("status.json"))
        if bad := artifacts.unsound(artifacts.Status, status):
            raise ValueError(bad)
        return status

    def _written(self) -> dict[str, Any]:
        """status.json as it lies there; one that cannot be read is a failure."""
        try:
            return self._read()
        except FileNotFoundError:
            error = "status.json is missing." if self.folder.is_dir() else "its folder is gone."
        except (OSError, ValueError) as reason:
            error = f"status.json cannot be read ({reason})."
        return {"state": "failed", "error": error, "stages": []}

    def update(self, only: Sequence[str] = STATES, /, **values: Any) -> None:
        """Change fields of status.json in one step, whoever else does so at the same time; nothing where its state is
        by now none of `only`.

        On a full disk the bytes kept aside are spent on a new state alone: progress would leave none for how it ended.
        """
        with self._writing():
            try:
                before = self._read()
                if before["state"] not in only:
                    return
            except (FileNotFoundError, ValueError):  # damaged: what it did counts as not done
                before = {"stages": [], "created": time.time()}
            status = {**before, **values, "heartbeat": time.time()}
            try:
                files.write_json(self.path("status.json"), status)
            except OSError as error:
                if error.errno != errno.ENOSPC or "state" not in values:
                    raise
                self.path(".reserve").unlink(missing_ok=True)
                files.write_json(self.path("status.json"), status)

    def beat(self) -> None:
        """Note that somebody is still at work. A full disk is left to whoever has something to say."""
        with suppress(OSError, ValueError), self._writing():
            status = self._read()
            if status["state"] == "running":
                files.write_json(self.path("status.json"), {**status, "heartbeat": time.time()})

    def _writing(self) -> FileLock:
        """Raises FileNotFoundError for a run whose folder is gone: its lock would make the folder anew."""
        self.folder.stat()
        return FileLock(self.path(".status.lock"), timeout=10)

    def reserve(self) -> None:
        """Keep some bytes aside, so that a full disk can still be written down. Raises OSError where there are none."""
        if not self.path(".reserve").is_file():
            self.path(".reserve").write_bytes(os.urandom(RESERVE))

    def event(self, **values: Any) -> None:
        """Append one line to events.jsonl."""
        with self.path("events.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"time": time.time(), **values}) + "\n")

    def events(self) -> list[dict[str, Any]]:
        """All readable events, oldest first; a torn last line is left out."""
        return EventsReader(self.path("events.jsonl")).new()

    # -- locks and cancelling -------------------------------------------------------------------

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run while working on it. Raises InputError if somebody else does."""
        if not self.folder.is_dir():
            raise InputError(f"run {self.id}: its folder is gone.")
        try:
            with FileLock(self.path(".lock"), timeout=1):  # somebody may just be asking whether it is free
                yield
        except Timeout:
            raise InputError(f"run {self.id} is being worked on by another process.") from None

    def locked(self) -> bool:
        """Whether a living process holds the run."""
        if not self.folder.is_dir():
            return False
        try:
            with FileLock(self.path(".lock"), timeout=0):
                return False
        except (Timeout, OSError):
            return True

    def cancel(self) -> None:
        """Ask for the run to stop at its next step; a queued run is cancelled at once."""
        if not self.cancelled():  # its time says since when it is asked for
            self.path("cancel").touch()
        if self.status().get("state") in ("queued", "lost"):
            self.update(("queued", "running", "lost"), state="cancelled", finished=time.time())

    def cancelled(self) -> bool:
        return self.path("cancel").exists()

    def ended(self, why: str) -> None:
        """Write down that the process at work is gone: cancelled where that was asked for, else lost.

        Raises InputError where it is not gone.
        """
        with self.lock():
            if self._written()["state"] == "running":
                state = "cancelled" if self.cancelled() else "lost"
                self.update(state=state, finished=time.time(), error=why)


def create(config: RunConfig, root: Path | None = None, state: str = "queued", priority: int = 0) -> Run:
    """A new run folder, made whole before it gets its name."""
    root = root or runs_folder()
    root.mkdir(parents=True, exist_ok=True)
    last = re.split(r"[\\/:]", config.task[0].rstrip("\\/:"))[-1]  # ids travel with bundles: no places in them
    slug = re.sub(r"[^a-z0-9]+", "-", f"{config.method.name} {last}".lower()).strip("-")[:40]
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{slug}-{secrets.token_hex(2)}"
    with numbered(root) as number, files.replacing_folder(root / name) as folder:
        (folder / "config.yaml").write_text(configs.dump(config), encoding="utf-8")
        now = time.time()
        place = {"number": number, "priority": priority, "device": config.device}
        status: dict[str, Any] = {"state": state, "stages": [], "created": now, "heartbeat": now, **place}
        files.write_json(folder / "status.json", status)
        access.keep(folder)
        Run(folder).reserve()
    return Run(root / name)


@contextmanager
def numbered(root: Path) -> Iterator[int]:
    """The number of the run that the block puts into the folder; meanwhile nobody else puts one there."""
    with FileLock(root / ".queue.lock", timeout=60):
        yield 1 + max((row["number"] for row in listing(root)), default=0)


def find(run_id: str, root: Path | None = None) -> Run:
    """A run by id (or an unambiguous beginning of it), recorded ones included. Raises InputError."""
    runs = all_runs(root)
    exact = [r for r in runs if r.id == run_id]
    near = exact or [r for r in runs if re.fullmatch(ID, run_id) and r.id.startswith(run_id)]
    if len(near) != 1:
        reason = f"{len(near)} ids of runs begin with" if near else "no run named"
        raise InputError(f"{reason} {run_id!r} in {root or runs_folder()}; see `paraknow runs list`.")
    return near[0]


def named(run_id: str, root: Path | None = None) -> Run | None:
    """The run of exactly this id, one's own or recorded; None where there is none."""
    if not re.fullmatch(ID, run_id):
        return None
    own = Run((root or runs_folder()) / run_id)
    return next(
        (run for run in (own, *recorded_runs()) if run.id == run_id and run.path("config.yaml").is_file()), None
    )


def all_runs(root: Path | None = None) -> list[Run]:
    """All runs of one's own, newest first; then the recorded ones, in the order they tell their story."""
    root = root or runs_folder()
    return [Run(root / row["id"]) for row in listing(root)] + recorded_runs()


def listing(root: Path | None = None) -> list[dict[str, Any]]:
    """`summary` of every run of one's own, newest first; only runs that have changed are read again."""
    root = root or runs_folder()
    folders = [p.parent for p in root.glob("*/config.yaml") if re.fullmatch(ID, p.parent.name)]
    found = []
    for name, row in index.rows(root, folders, lambda folder: _summary(Run(folder))).items():
        running = row["state"] == "running" and not row["imported"]  # whether it still is, nothing in its files tells
        found.append({**row, "state": Run(root / name).status().get("state")} if running else row)
    return sorted(found, key=lambda row: (row["number"], row["created"] or 0, row["id"]), reverse=True)


def recorded_runs() -> list[Run]:
    """Runs shipped with the package."""
    folder = resources.assets() / "runs"
    return sorted((Run(p.parent, recorded=True) for p in folder.glob("*/config.yaml")), key=lambda r: r.id)


def delete(run: Run) -> None:
    """Remove a run folder. Raises InputError for a recorded run, one that is being worked on, or on a shared page."""
    limits.refuse("deleting a run")
    if run.recorded:
        raise InputError(f"run {run.id} is recorded with the package and cannot be deleted.")
    doomed = run.folder.with_name(f".deleted-{run.id}")
    with run.lock():
        run.folder.rename(doomed)  # out of every listing at once, then removed
    shutil.rmtree(doomed, ignore_errors=True)


def summary(run: Run) -> dict[str, Any]:
    """One line about a run for lists; what cannot be read is None."""
    found = _summary(run)
    return {**found, "state": run.status().get("state")} if found["state"] == "running" else found


def _summary(run: Run) -> dict[str, Any]:
    """What the files alone say: a run is running where they say so."""
    status = run._written()
    try:
        values = yamls.read(run.path("config.yaml"))
    except InputError:
        values = None
    tasks = values.get("task") if isinstance(values, dict) else None
    return {
        "id": run.id,
        "name": _said(values, "name") or None,
        "state": status.get("state"),
        "stage": status.get("stage"),
        "method": _said(values, "method", "name"),
        "teacher": _said(values, "pair", "teacher"),
        "student": _said(values, "pair", "student"),
        "task": ", ".join(map(str, tasks)) if isinstance(tasks, list) else None,
        "created": status.get("created"),
        "finished": status.get("finished"),
        "error": status.get("error"),
        "recorded": run.recorded,
        "imported": run.imported,
        "number": status.get("number", 0),
        "priority": status.get("priority", 0),
        "device": status.get("device", "auto"),
    }


def _said(values: Any, *keys: str) -> str | None:
    """Text among nested settings; None where there is none."""
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return values if isinstance(values, str) else None
