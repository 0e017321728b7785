"""Run folders (no torch): create, read, status, events, list. The folder is the truth.

`status.json`: state (queued, running, done, failed, cancelled), stage, step, total, eta (seconds or null),
message, created, started, heartbeat, finished (Unix seconds), error, stages (finished ones), pid.
A run that says running while nobody holds its lock is shown as lost and can be resumed.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from paraknow import access, files, limits, resources
from paraknow import config as configs
from paraknow.config import RunConfig
from paraknow.errors import InputError

STATES = ("queued", "running", "done", "failed", "cancelled", "lost")
RESERVE = 64 * 1024  # bytes kept aside so that "disk full" can still be written down
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
        """What status.json says, with `lost` in place of `running` where the lock is free."""
        try:
            status = files.read_json(self.path("status.json"))
        except (OSError, ValueError) as error:
            return {"state": "failed", "error": f"status.json cannot be read ({error}).", "stages": [], "created": 0.0}
        if status.get("state") == "running" and not self.recorded and not self.locked():
            status["state"] = "lost"
        return status

    def update(self, **values: Any) -> None:
        """Change fields of status.json in one step."""
        try:
            before = files.read_json(self.path("status.json"))
        except (OSError, ValueError):
            before = {"stages": [], "created": time.time()}
        status = {**before, **values, "heartbeat": time.time()}
        try:
            files.write_json(self.path("status.json"), status)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            self.path(".reserve").unlink(missing_ok=True)
            files.write_json(self.path("status.json"), status)

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
        self.path("cancel").touch()
        if self.status().get("state") in ("queued", "lost"):
            self.update(state="cancelled", finished=time.time())

    def cancelled(self) -> bool:
        return self.path("cancel").exists()


def create(config: RunConfig, root: Path | None = None, state: str = "queued") -> Run:
    """A new run folder, made whole before it gets its name."""
    root = root or runs_folder()
    slug = re.sub(r"[^a-z0-9]+", "-", f"{config.method.name} {config.task[0].rpartition(':')[2]}".lower()).strip("-")[
        :40
    ]
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{slug}-{secrets.token_hex(2)}"
    with files.replacing_folder(root / name) as folder:
        (folder / "config.yaml").write_text(configs.dump(config), encoding="utf-8")
        now = time.time()
        files.write_json(folder / "status.json", {"state": state, "stages": [], "created": now, "heartbeat": now})
        access.keep(folder)
        (folder / ".reserve").write_bytes(os.urandom(RESERVE))
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
    own = [Run(p.parent) for p in root.glob("*/config.yaml") if not p.parent.name.startswith(".")]
    second = Counter(_second(run) for run in own)
    # Ids tell seconds and end in random letters; pages list often, so a file is read only where seconds are shared.
    order = {run.id: (_second(run), _created(run) if second[_second(run)] > 1 else 0.0, run.id) for run in own}
    return sorted(own, key=lambda run: order[run.id], reverse=True) + recorded_runs()


def _second(run: Run) -> str:
    """The time in a run's id, as it sorts."""
    return run.id[:15]


def _created(run: Run) -> float:
    """When a run was made, to the microsecond; 0 where that cannot be read."""
    try:
        return float(files.read_json(run.path("status.json"))["created"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def recorded_runs() -> list[Run]:
    """Runs shipped with the package."""
    folder = resources.assets() / "runs"
    return sorted((Run(p.parent, recorded=True) for p in folder.glob("*/config.yaml")), key=lambda r: r.id)


def delete(run: Run) -> None:
    """Remove a run folder. Raises InputError for a recorded run, one that is being worked on, or on a shared page."""
    limits.refuse("deleting a run")
    if run.recorded:
        raise InputError(f"run {run.id} is recorded with the package and cannot be deleted.")
    with run.lock():
        pass
    doomed = run.folder.with_name(f".deleted-{run.id}")
    run.folder.rename(doomed)  # out of every listing at once, then removed
    shutil.rmtree(doomed, ignore_errors=True)


def summary(run: Run) -> dict[str, Any]:
    """One line about a run for lists; what cannot be read is None."""
    status = run.status()
    try:
        values = yaml.safe_load(run.path("config.yaml").read_text(encoding="utf-8"))
        pair, method, task = values["pair"], values["method"]["name"], values["task"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        pair, method, task, values = {}, None, None, {}
    return {
        "id": run.id,
        "name": values.get("name") or None,
        "state": status.get("state"),
        "stage": status.get("stage"),
        "method": method,
        "teacher": pair.get("teacher"),
        "student": pair.get("student"),
        "task": ", ".join(task) if task else None,
        "created": status.get("created"),
        "finished": status.get("finished"),
        "error": status.get("error"),
        "recorded": run.recorded,
    }
