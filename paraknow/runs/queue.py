"""The queue is the run folders in state `queued`: higher priority first, then in the order they were made (no torch).

One worker (supervisor.py) serves one device of one runs folder; it holds that device's lock as long as it lives.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from paraknow import access, devices, limits
from paraknow.checks import Checked, check
from paraknow.config import RunConfig
from paraknow.errors import InputError
from paraknow.runs import asks, processes, store
from paraknow.runs.asks import Ask
from paraknow.runs.questions import Question
from paraknow.runs.store import Run

IDLE = 600.0  # seconds without a run after which a worker leaves: only its end surely gives a GPU's memory back
HARD = 10.0  # seconds a cancelled run has to stop by itself


# -- submitting ------------------------------------------------------------------------------------------


def submit(config: RunConfig, root: Path | None = None, priority: int = 0) -> Run:
    """Check a config, queue it as a new run folder and see to it that a worker lives.

    Raises InputError or ResourceError before anything is written.
    """
    _check_room(root)
    check(config)
    run = store.create(config, root, priority=priority)
    ensure_workers(root)
    return run


def resume(run: Run, root: Path | None = None) -> Checked:
    """Queue a failed, cancelled or lost run again; finished stages are kept. Raises InputError for a read-only one."""
    run.refuse_read_only()
    if (state := run.status()["state"]) not in ("failed", "cancelled", "lost"):
        raise InputError(f"run {run.id} is {state}; only one that failed, was cancelled or is lost is resumed.")
    _check_room(root)
    checked = check(run.config())
    with run.lock():  # a process that is about to end writes its last word first
        run.path("cancel").unlink(missing_ok=True)
        access.keep(run.folder)
        run.update(("failed", "cancelled", "lost", "running"), state="queued", error=None)
    ensure_workers(root)
    return checked


def _check_room(root: Path | None) -> None:
    if limits.shared():  # nobody else's runs are counted for nothing
        limits.check_queue(len(waiting(root)), len(store.listing(root)), root or store.runs_folder())


def prioritise(run: Run, priority: int) -> None:
    """Higher goes first. Raises InputError for a run that does not wait."""
    run.refuse_read_only()
    if run.status().get("state") != "queued":
        raise InputError(f"run {run.id} does not wait in the queue.")
    run.update(priority=priority)


def first(run: Run, root: Path | None = None) -> None:
    """Let a queued run be the next one. Raises InputError for a run that does not wait."""
    prioritise(run, 1 + max((row["priority"] for row in waiting(root) if row["id"] != run.id), default=0))


def waiting(root: Path | None = None) -> list[dict[str, Any]]:
    """What is under way, then what is queued, in the order it is taken: rows of `store.listing`."""
    rows = [row for row in store.listing(root) if row["state"] in ("queued", "running") and not row["imported"]]
    return sorted(
        rows, key=lambda row: (row["state"] == "queued", -row["priority"], row["number"], row["created"] or 0)
    )


def next_queued(root: Path, device: str | None = None, skip: Collection[str] = ()) -> Run | None:
    """The queued run that is to be taken next: by a worker of `device` (cpu, cuda:0 …), or by any."""
    for row in waiting(root):
        if row["state"] == "queued" and serves(device, row["device"]) and row["id"] not in skip:
            return Run(root / row["id"])
    return None


def serves(device: str | None, wanted: str) -> bool:
    """Whether a worker of `device` (cpu, cuda:0 …; None: any) carries out what is set to `wanted` (auto, cpu, cuda)."""
    return device is None or _kind(wanted) == device.partition(":")[0]


def ask(question: Question, root: Path | None = None) -> Ask:
    """Put a question to the worker and see to it that one lives. Raises InputError; ResourceError where the device of
    its run is not here, so that nobody waits for a worker that cannot be."""
    root = root or store.runs_folder()
    run = store.named(question.run, root)
    if run is None:
        raise InputError(f"run {question.run} is not here.")
    device = run.config().device
    devices.free_bytes(device)
    asked = asks.put(question, root, device)
    ensure_workers(root)
    return asked


def _kind(device: str) -> str:
    """cpu or cuda: where a run of this setting is carried out here."""
    return "cpu" if device == "cpu" or (device == "auto" and not devices.gpus()) else "cuda"


# -- cancelling ------------------------------------------------------------------------------------------


def enforce_cancel(run: Run, after: float = HARD) -> bool:
    """End the process of a run that was cancelled `after` seconds ago and still runs; whether that was done.

    A run of another machine is left to the worker there.
    """
    try:
        asked = time.time() - run.path("cancel").stat().st_mtime
    except OSError:
        return False
    status = run.status()
    mine = status.get("state") == "running" and status.get("host") == socket.gethostname()
    if not mine or 0 <= asked < after or "born" not in status:  # below 0: the clock was set back
        return False
    process = processes.same(status.get("pid", 0), status["born"])
    if process is None or process.pid == os.getpid():
        return False
    processes.end(process)
    with suppress(InputError):  # somebody else has taken it up already
        run.ended(f"it did not stop within {after:.0f} s of being cancelled, so its process was ended.")
    return True


# -- workers ---------------------------------------------------------------------------------------------


def worker_lock(root: Path, device: str) -> Path:
    return root / f".worker-{device.replace(':', '-')}.lock"


def worker_alive(root: Path | None = None, device: str | None = None) -> bool:
    """Whether a worker of this device (of any, by default) serves this folder."""
    root = root or store.runs_folder()
    found = root.glob(".worker-*.lock") if device is None else [worker_lock(root, device)]
    return any(_held(path) for path in found)


def _held(path: Path) -> bool:
    if not path.parent.is_dir():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except (Timeout, OSError):
        return True


def ensure_workers(root: Path | None = None, idle: float = IDLE) -> None:
    """Start a worker for every device that is needed and has none: one for the CPU, one a GPU as long as runs or
    questions wait."""
    root = root or store.runs_folder()
    rows, asked = waiting(root), asks.waiting(root)
    if not asked and not any(row["state"] == "queued" for row in rows):
        return
    kinds = [_kind(device) for device in (*(row["device"] for row in rows), *(ask.device for ask in asked))]
    wanted = ["cpu"] if "cpu" in kinds else []
    wanted += [f"cuda:{gpu.index}" for gpu in devices.gpus()[: kinds.count("cuda")]]
    for device in wanted:
        if not worker_alive(root, device):
            start_worker(root, device, idle)


def start_worker(root: Path, device: str, idle: float = IDLE) -> subprocess.Popen[bytes]:
    """A worker as a process of its own session. Its output goes to runs/worker.log."""
    root.mkdir(parents=True, exist_ok=True)
    about = ["--runs", str(root.resolve()), "--device", device, "--idle", str(idle)]
    command = [sys.executable, "-m", "paraknow.runs.supervisor", *about]
    environment = {k: v for k, v in os.environ.items() if k != access.VARIABLE}  # every run brings its own limits
    with (root / "worker.log").open("ab") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment
        )


# -- one run at a time on a device -----------------------------------------------------------------------


@contextmanager
def device_held(run: Run, config: RunConfig, queued: bool, wait: Callable[[str], None]) -> Iterator[None]:
    """Hold the device a run is carried out on, so that two do not share one GPU's memory; all GPUs where its layers
    may wait on any of them.

    A GPU is held among all runs of this user on this machine; the CPU only among the queued runs of one folder, since
    whoever starts runs there by hand has decided so. `wait(sentence)` is called every second until it is free, and may
    raise Cancelled.
    """
    with ExitStack() as held:
        for path, name in _device_locks(run, config, queued):
            lock = FileLock(path, timeout=1)
            while not lock.is_locked:
                try:
                    held.enter_context(lock)
                except Timeout:
                    wait(f"waiting for {name}, which another run uses")
        yield


def _device_locks(run: Run, config: RunConfig, queued: bool) -> list[tuple[Path, str]]:
    """Always in one order, so that two runs never hold what the other waits for."""
    if _kind(config.device) == "cpu":
        return [(run.folder.parent / ".device-cpu.lock", "the CPU")] if queued else []
    folder = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "paraknow" / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    spread = "auto" in (config.placement.teacher, config.placement.student)
    gpus = [gpu for gpu in devices.gpus() if spread or gpu.index == devices.current()]
    return [(folder / f"{gpu.uuid}.lock", f"GPU {gpu.index}") for gpu in gpus]
