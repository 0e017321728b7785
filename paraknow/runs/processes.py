"""Processes that work on runs: whether one is still that one, and how it is ended (no torch)."""

from __future__ import annotations

from contextlib import suppress

import psutil

GRACE = 3.0  # seconds between asking a process to end and ending it


def same(pid: int, born: float) -> psutil.Process | None:
    """The living process of that number that began then; None where it is gone or its number is another's now."""
    try:
        process = psutil.Process(pid)
        alive = process.status() != psutil.STATUS_ZOMBIE and abs(_birth(process) - born) < 1.0
        return process if alive else None
    except psutil.Error:
        return None


def born() -> float:
    """When this process began, in seconds since the machine did: what no setting of the clock changes."""
    return _birth(psutil.Process())


def _birth(process: psutil.Process) -> float:
    return process.create_time() - psutil.boot_time()


def end(process: psutil.Process, grace: float = GRACE) -> None:
    """End a process and everything it has started: asked first, then killed."""
    tree = [process]
    with suppress(psutil.Error):
        tree += process.children(recursive=True)
    for one in tree:
        with suppress(psutil.Error):
            one.terminate()
    _, alive = psutil.wait_procs(tree, timeout=grace)
    for one in alive:
        with suppress(psutil.Error):
            one.kill()
    psutil.wait_procs(alive, timeout=grace)
