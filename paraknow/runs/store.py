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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from paraknow import config as configs
from paraknow import files, resources
from paraknow.config import RunConfig
from paraknow.errors import InputError
from paraknow.runs import index

STATES = ("queued", "running", "done", "failed", "cancelled", "lost")
RESERVE = 64 * 1024  # bytes kept aside so that "disk full" can still be written down
BEAT = 5.0  # seconds between two heartbeats of a run that is worked on
LOST_AFTER = 15.0  # seconds without one after which a run of another machine is lost, and one of ours does not answer
_KINDS: dict[str, Any] = dict.fromkeys("stage message device host".split(), str) | {"error": str | None}
_KINDS |= dict.fromkeys(
    "step total eta created started heartbeat finished number priority pid born".split(), int | float
)
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,120}")


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
        self.recorded = recorded  # shipped with the package: read-only

    @property
    def id(self) -> str:
        return self.folder.name

    def path(self, *parts: str) -> Path:
        return self.folder.joinpath(*parts)

    # -- config ---------------------------------------------------------------------------------

    def config(self) -> RunConfig:
        """The run's config. Raises InputError if it is missing or damaged."""
        return configs.load(self.path("config.yaml"))

    # -- status ---------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What status.json says, with `lost` in place of `running` where nobody works on the run, and `silent`
        (seconds since the last heartbeat) where somebody holds it but does not answer."""
        status = self._written()
        if status["state"] == "running" and not self.recorded:
            silent = time.time() - (status.get("heartbeat") or 0.0)
            here = status.get("host") in (None, socket.gethostname())
            if (here and not self.locked()) or (not here and silent > LOST_AFTER):
                status["state"] = "lost"
            elif silent > LOST_AFTER:
                status["silent"] = silent
        return status

    def _written(self) -> dict[str, Any]:
        """status.json as it lies there, fields of a wrong kind left out."""
        try:
            status = files.read_json(self.path("status.json"))
            if status.get("state") not in STATES:
                raise ValueError("it names no known state")
        except FileNotFoundError:
            gone = "status.json is missing." if self.folder.is_dir() else "its folder is gone."
            return {"state": "failed", "error": gone, "stages": []}
        except (OSError, ValueError) as error:
            return {"state": "failed", "error": f"status.json cannot be read ({error}).", "stages": []}
        kept = {name: value for name, value in status.items() if isinstance(value, _KINDS.get(name, object))}
        stages = kept.get("stages")
        return {**kept, "stages": [s for s in stages if isinstance(s, str)] if isinstance(stages, list) else []}

    def update(self, **values: Any) -> None:
        """Change fields of status.json in one step, whoever else does so at the same time.

        On a full disk the bytes kept aside are spent on a new state alone: progress would leave none for how it ended.
        """
        with self._writing():
            try:
                before = files.read_json(self.path("status.json"))
            except (OSError, ValueError):
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
            status = files.read_json(self.path("status.json"))
            if status.get("state") == "running":
                files.write_json(self.path("status.json"), {**status, "heartbeat": time.time()})

    def _writing(self) -> FileLock:
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
        result = []
        with suppress(OSError), self.path("events.jsonl").open(encoding="utf-8", errors="replace") as stream:
            for line in stream:
                with suppress(ValueError):
                    event = json.loads(line)
                    if isinstance(event, dict):
                        result.append(event)
        return result

    # -- locks and cancelling -------------------------------------------------------------------

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run while working on it. Raises InputError if somebody else does."""
        try:
            with FileLock(self.path(".lock"), timeout=1):  # somebody may just be asking whether it is free
                yield
        except Timeout:
            raise InputError(f"run {self.id} is being worked on by another process.") from None

    def locked(self) -> bool:
        """Whether a living process holds the run."""
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
            self.update(state="cancelled", finished=time.time())

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
    slug = re.sub(r"[^a-z0-9]+", "-", f"{config.method.name} {config.task[0].rpartition(':')[2]}".lower()).strip("-")[
        :40
    ]
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{slug}-{secrets.token_hex(2)}"
    with FileLock(root / ".queue.lock", timeout=60), files.replacing_folder(root / name) as folder:
        (folder / "config.yaml").write_text(configs.dump(config), encoding="utf-8")
        now = time.time()
        number = 1 + max((row["number"] for row in listing(root)), default=0)
        place = {"number": number, "priority": priority, "device": config.device}
        status: dict[str, Any] = {"state": state, "stages": [], "created": now, "heartbeat": now, **place}
        files.write_json(folder / "status.json", status)
        Run(folder).reserve()
    return Run(root / name)


def find(run_id: str, root: Path | None = None) -> Run:
    """A run by id (or an unambiguous beginning of it), recorded ones included. Raises InputError."""
    runs = all_runs(root)
    exact = [r for r in runs if r.id == run_id]
    near = exact or [r for r in runs if _ID.fullmatch(run_id) and r.id.startswith(run_id)]
    if len(near) != 1:
        reason = "no run" if not near else f"{len(near)} runs"
        raise InputError(f"{reason} named {run_id!r} in {root or runs_folder()}; see `paraknow runs list`.")
    return near[0]


def all_runs(root: Path | None = None) -> list[Run]:
    """All runs of one's own, newest first; then the recorded ones, in the order they tell their story."""
    root = root or runs_folder()
    return [Run(root / row["id"]) for row in listing(root)] + recorded_runs()


def listing(root: Path | None = None) -> list[dict[str, Any]]:
    """`summary` of every run of one's own, newest first; only runs that have changed are read again."""
    root = root or runs_folder()
    folders = [p.parent for p in root.glob("*/config.yaml") if _ID.fullmatch(p.parent.name)]
    found = []
    for name, row in index.rows(root, folders, lambda folder: _summary(Run(folder))).items():
        running = row["state"] == "running"  # whether it still is, nothing in its files tells
        found.append({**row, "state": Run(root / name).status().get("state")} if running else row)
    return sorted(found, key=lambda row: (row["number"], row["created"] or 0, row["id"]), reverse=True)


def recorded_runs() -> list[Run]:
    """Runs shipped with the package."""
    folder = resources.assets() / "runs"
    return sorted((Run(p.parent, recorded=True) for p in folder.glob("*/config.yaml")), key=lambda r: r.id)


def delete(run: Run) -> None:
    """Remove a run folder. Raises InputError for a recorded run or one that is being worked on."""
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
        values = yaml.safe_load(run.path("config.yaml").read_text(encoding="utf-8"))
        pair, method, task = values["pair"], values["method"]["name"], values["task"]
        title, teacher, student = values.get("name") or None, pair.get("teacher"), pair.get("student")
        tasks = ", ".join(map(str, task)) if task else None
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        title = method = teacher = student = tasks = None
    return {
        "id": run.id,
        "name": title,
        "state": status.get("state"),
        "stage": status.get("stage"),
        "method": method,
        "teacher": teacher,
        "student": student,
        "task": tasks,
        "created": status.get("created"),
        "finished": status.get("finished"),
        "error": status.get("error"),
        "recorded": run.recorded,
        "number": status.get("number", 0),
        "priority": status.get("priority", 0),
        "device": status.get("device", "auto"),
    }
