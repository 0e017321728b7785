"""What tests that start processes of their own need."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil

from paraknow.runs import processes


def serving(root: Path) -> list[psutil.Process]:
    """The supervisors and the processes they have started that serve this runs folder."""
    modules, found = {"paraknow.runs.supervisor", "paraknow.runs.worker"}, []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if str(root.resolve()) in words and modules & set(words):
            found.append(process)
    return found


def end_serving(root: Path) -> None:
    """End all of them."""
    for process in serving(root):
        processes.end(process)


def until(true: Callable[[], object], seconds: float = 120) -> None:
    """Wait for something to be true. Raises AssertionError where it takes longer."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"still not after {seconds} s"
        time.sleep(0.1)
