"""Whether the files a run has left can still be opened, asked before it goes on.

What a process of ours writes is whole or absent; a disk, a copy or a hand can damage it later. A file that cannot be
opened is removed and made again by its stage. Numbers changed inside a file that still opens are not seen.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from paraknow import files
from paraknow.runs.store import Run
from paraknow.savepoint import ENDING

MADE_BY = {"locate": "locate", "similarity": "similarity", "align": "align", "tune": "tune", "adapters": "tune"}
MADE_BY |= {"evaluate": "evaluate", "diagnose.json": "diagnose"}


def opens(path: Path) -> bool:
    """Whether a table, a file of tensors or a JSON file can be opened and is not cut short; True for other kinds."""
    try:
        if path.suffix == ".parquet":
            pq.read_metadata(path)
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="numpy"):
                pass
        elif path.suffix == ".json":
            files.read_json(path)
    except (OSError, ValueError, RecursionError, pa.ArrowException, SafetensorError):
        return False
    return True


def mend(run: Run) -> tuple[list[str], list[str]]:
    """Remove what cannot be opened. Returns (finished stages that still count, files that were removed).

    A stage that lost a file, and those after it, are gone through again; what they kept whole is taken as it is.
    """
    finished, removed = list(run.status()["stages"]), []
    for folder, stage in MADE_BY.items():
        for path in [run.path(folder), *sorted(run.path(folder).rglob("*"))]:
            name = path.relative_to(run.folder)
            if not path.is_file() or path.name.startswith(".") or path.name.endswith(ENDING) or opens(path):
                continue
            removed.append(str(name))
            path.unlink()
            if stage in ("align", "tune") and len(name.parts) > 2:
                _forget(run, folder, *name.parts[1:3])
            if stage in finished:
                finished = finished[: finished.index(stage)]
    return finished, removed


def _forget(run: Run, folder: str, label: str, file: str) -> None:
    """Take a model for not made yet where one of the files about it is lost: its start, or its result."""
    seed = file.partition(".")[0]
    if folder == "align":
        for path in run.path("align", label).glob(f"{seed}.*"):
            path.unlink()
    else:
        shutil.rmtree(run.path("adapters", label, seed), ignore_errors=True)
