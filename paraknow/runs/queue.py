"""The queue is the run folders in state `queued`, oldest first (no torch)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from filelock import FileLock, Timeout

from paraknow import access, limits
from paraknow.checks import Checked, check
from paraknow.config import RunConfig
from paraknow.runs import store
from paraknow.runs.store import Run

WORKER_LOCK = ".worker.lock"


def submit(config: RunConfig, root: Path | None = None) -> Run:
    """Check a config, queue it as a new run folder and see to it that a worker lives.

    Raises InputError or ResourceError before anything is written.
    """
    _check_room(root)
    check(config)
    run = store.create(config, root)
    ensure_worker(root)
    return run


def resume(run: Run, root: Path | None = None) -> Checked:
    """Queue a failed, cancelled or lost run again; finished stages are kept."""
    _check_room(root)
    checked = check(run.config())
    run.path("cancel").unlink(missing_ok=True)
    access.keep(run.folder)
    run.update(state="queued", error=None)
    ensure_worker(root)
    return checked


def _check_room(root: Path | None) -> None:
    runs = [run for run in store.all_runs(root) if not run.recorded]
    waiting = sum(run.status().get("state") in ("queued", "running") for run in runs)
    limits.check_queue(waiting, len(runs), root or store.runs_folder())


def next_queued(root: Path) -> Run | None:
    """The oldest queued run."""
    for run in reversed(store.all_runs(root)):
        if not run.recorded and run.status().get("state") == "queued":
            return run
    return None


def worker_alive(root: Path | None = None) -> bool:
    """Whether a worker holds this folder's lock."""
    root = root or store.runs_folder()
    if not root.is_dir():
        return False
    try:
        with FileLock(root / WORKER_LOCK, timeout=0):
            return False
    except Timeout:
        return True


def ensure_worker(root: Path | None = None, idle: float = 600.0) -> None:
    """Start a worker process of its own session if none lives. Its output goes to runs/worker.log."""
    root = root or store.runs_folder()
    if worker_alive(root):
        return
    root.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "paraknow.runs.worker", "--runs", str(root.resolve()), "--idle", str(idle)]
    environment = {k: v for k, v in os.environ.items() if k != access.VARIABLE}  # every run brings its own limits
    with (root / "worker.log").open("ab") as log:
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment
        )
