"""Measurements that are kept, so that an unchanged model is not asked the same items twice.

A measurement of one model on one suite belongs to everything it depends on: the bytes of the model's weights, config
and tokenizer, its number type, the kind of device, the items just as they are asked, the batch size, and the versions
of what computes it. Change one of them, and it is another measurement. Only models that lie in a folder as they are
(teacher, student) are kept; what a run makes of the student is measured once by that run.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from paraknow import data, files
from paraknow.checkpoints import files_hash, files_state
from paraknow.evaluate import harness, items
from paraknow.evaluate import measure as measuring
from paraknow.evaluate.benchmarks import Plan
from paraknow.models import Loaded
from paraknow.progress import Progress, part, silent

FORMAT = 1  # counted up when what is measured, or how it is written, becomes something else
LARGEST = 512 * 2**20  # bytes of measurements that are kept; the longest unused go first
PACKAGES = ("torch", "transformers", "tokenizers", "lm_eval")


def key(loaded: Loaded, asked: Any, batch_size: int | str) -> str:
    """What a measurement of `loaded` on `asked` (anything that JSON can hold) is filed under: a SHA-256.

    Reads the checkpoint's files in full, once per process and state of the files.
    """
    import torch

    device = loaded.device
    about = {
        "format": FORMAT,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "files": files_hash(loaded.checkpoint),
        "dtype": str(loaded.model.dtype),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "batch_size": batch_size,
        "asked": asked,
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def measure(
    loaded: Loaded,
    suites: Mapping[str, Sequence[data.Example]],
    plans: Sequence[Plan],
    batch_size: int | str,
    folder: Path,
    progress: Progress = silent,
) -> pd.DataFrame:
    """What `measuring.measure` would return for `loaded` itself; only what is not in `folder` is measured.

    Every suite and every benchmark is a file of its own there. A damaged file is measured again. A measurement that
    holds NaN or infinity is not kept, nor is a benchmark whose records a hub holds: nobody knows here if they change.
    """
    if loaded.state != files_state(loaded.checkpoint):  # the model in memory is not the one that lies there now
        return measuring.measure(loaded, suites, plans, batch_size, None, progress)
    asked: dict[Any, Any] = {name: (name, harness.documents(e, loaded.tokenizer)) for name, e in suites.items()}
    asked |= {number: plan.hash for number, plan in enumerate(plans) if not plan.from_hub}
    places = {k: folder / f"{key(loaded, what, batch_size)}.parquet" for k, what in asked.items()}
    found = {k: frame for k, path in places.items() if (frame := _read(path)) is not None}
    missing = {name: examples for name, examples in suites.items() if name not in found}
    others = [number for number in range(len(plans)) if number not in found]
    whole = bool(missing) + len(others)
    if missing:
        report = part(progress, 0, 1000 * whole, scale=1000)
        made = measuring.measure(loaded, missing, (), batch_size, None, report)
        found |= {name: made[made.task == name].reset_index(drop=True) for name in missing}
    for place, number in enumerate(others):
        report = part(progress, 1000 * (place + bool(missing)), 1000 * whole, scale=1000)
        found[number] = measuring.measure(loaded, {}, [plans[number]], batch_size, None, report)
    for k in (*missing, *others):
        if k in places:
            keep(places[k], found[k])
    progress(1, 1)
    return measuring.joined([found[k] for k in (*suites, *range(len(plans)))])


def keep(path: Path, frame: pd.DataFrame) -> None:
    """File a measurement, and let the longest unused ones go where there are too many.

    Not kept: NaN and infinity; programs that ran out of time, which a machine with more of it may judge otherwise.
    """
    hurried = frame.note.map(lambda note: isinstance(note, str) and note.startswith(("timeout", "killed")))
    if len(items.broken(frame)) or hurried.any():
        return
    with suppress(OSError):  # a full disk, or another process that tidies too: what was measured is not lost by it
        files.write_table(path, frame)
        _tidy(path.parent)


def _read(path: Path) -> pd.DataFrame | None:
    try:
        frame = pd.read_parquet(path)
        os.utime(path)  # the longest unused go first
    except (OSError, ValueError):  # absent, or damaged (pyarrow's errors are ValueErrors)
        return None
    return frame if set(frame.columns) >= set(harness.COLUMNS) - {"model", "seed"} else None


def _tidy(folder: Path, largest: int = LARGEST) -> None:
    known = sorted(((p.stat().st_mtime, p.stat().st_size, p) for p in folder.glob("*.parquet")), reverse=True)
    total = 0
    for _, size, path in known:
        total += size
        if total > largest:
            path.unlink(missing_ok=True)
