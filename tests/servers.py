"""`paraknow app` as a process, for tests that talk to it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]


def free_port(family: socket.AddressFamily = socket.AF_INET) -> int:
    with socket.socket(family) as probe:
        probe.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        return probe.getsockname()[1]


@contextmanager
def app(folder: Path, *options: str) -> Iterator[tuple[psutil.Process, int]]:
    """The server started in a folder that is home, working folder and the place of runs/; its process and port."""
    port = free_port()
    command = [sys.executable, "-m", "paraknow.cli", "app", "--port", str(port), "--headless", *options]
    environment = {**os.environ, "HOME": str(folder), "PYTHONPATH": str(ROOT), "PARAKNOW_RUNS": str(folder / "runs")}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        until = time.time() + 60
        while time.time() < until and process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.2)
        yield psutil.Process(process.pid), port
    finally:
        process.kill()
        process.wait()
