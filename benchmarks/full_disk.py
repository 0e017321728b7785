"""A disk that fills in every stage of a run, on a small tmpfs of this process's own (no privileges needed).

`python -m benchmarks.full_disk FOLDER` works inside FOLDER, which must be such a small disk; `rows()` makes one.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.faults import ROOT, outcome, small, unreadable
from paraknow.errors import RunError
from paraknow.runs import store
from paraknow.runs.worker import STAGE_NAMES, execute, quiet

SIZE = "64m"


class NoDisk(Exception):
    """This system lets an ordinary process mount nothing; the text says why."""


def rows() -> list[dict[str, Any]]:
    """One row per stage: what was said when the disk was full, and whether the run went on afterwards.

    Raises NoDisk where no small disk can be made.
    """
    with tempfile.TemporaryDirectory() as folder:
        inside = (
            f"mount -t tmpfs -o size={SIZE} tmpfs {folder} && exec {sys.executable} -m benchmarks.full_disk {folder}"
        )
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", inside]
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=540)
        except FileNotFoundError as error:
            raise NoDisk(str(error)) from None
    if not done.stdout.strip():
        raise NoDisk(done.stderr.strip()[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


class Filler:
    """A file that takes all the space there is."""

    def __init__(self, folder: Path):
        self.path = folder / "filler"

    def fill(self) -> None:
        with self.path.open("ab", buffering=0) as stream:
            for size in (1 << 20, 4096, 1):
                with suppress(OSError):
                    while stream.write(b"\0" * size):
                        pass

    def empty(self) -> None:
        self.path.unlink(missing_ok=True)


def study(disk: Path) -> list[dict[str, Any]]:
    """One run through all stages, the disk full at the beginning of each, against an unbroken one."""
    root, filler, found = disk / "runs", Filler(disk), []
    whole = store.create(small(), root)
    execute(whole)
    expected = outcome(whole)
    run = store.create(small(), root)
    for stage in STAGE_NAMES:

        def show(name: str, at: str = stage) -> Any:
            if name == at:
                filler.fill()
            return lambda *_, **__: None

        said = "nothing"
        try:
            execute(run, until=stage, show=show)
        except RunError as error:
            said = str(error)
        status = run.status()
        about = {"stage": stage, "said": said, "state": status["state"], "unreadable": unreadable(run)}
        half = [str(p.relative_to(run.folder)) for p in run.folder.rglob(".*.*") if p.suffix != ".lock"]
        filler.empty()
        execute(run, until=stage)
        found.append({**about, "half written": half, "resumed": run.status()["state"] == "done"})
    found.append({"stage": "all", "equal": outcome(run) == expected})
    filler.fill()
    before = sorted(p.name for p in root.iterdir() if not p.name.startswith(".index"))
    refused = None
    try:
        store.create(small(), root)
    except OSError as error:
        refused = error.errno
    after = sorted(p.name for p in root.iterdir() if not p.name.startswith(".index"))
    found.append({"stage": "submitting", "refused": refused == errno.ENOSPC, "left behind": len(after) - len(before)})
    filler.empty()
    return found


def main() -> None:
    quiet()
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    made = study(Path(sys.argv[1]))
    print(json.dumps(made), file=answer, flush=True)


if __name__ == "__main__":
    main()
