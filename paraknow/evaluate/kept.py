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
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from paraknow import data, files
from paraknow.checkpoints import files_hash
from paraknow.evaluate import harness
from paraknow.models import Loaded
from paraknow.progress import Progress, silent

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
        "versions": {name: version(name) for name in PACKAGES},
        "files": files_hash(loaded.checkpoint),
        "dtype": str(loaded.model.dtype),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "batch_size": batch_size,
        "asked": asked,
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def evaluate(
    loaded: Loaded,
    suites: Mapping[str, Sequence[data.Example]],
    batch_size: int,
    folder: Path,
    progress: Progress = silent,
) -> pd.DataFrame:
    """What `harness.evaluate` would return for `loaded` itself; only suites that are not in `folder` are measured.

    Every suite is a file of its own there. A damaged file is measured again. A measurement that holds NaN or infinity
    is not kept.
    """
    asked = {name: harness.documents(examples, loaded.tokenizer) for name, examples in suites.items()}
    places = {name: folder / f"{key(loaded, (name, docs), batch_size)}.parquet" for name, docs in asked.items()}
    found = {name: frame for name, path in places.items() if (frame := _read(path)) is not None}
    missing = {name: examples for name, examples in suites.items() if name not in found}
    if missing:
        made = harness.evaluate(loaded, missing, batch_size, None, progress)
        for name in missing:
            found[name] = made[made.task == name].reset_index(drop=True)
            keep(places[name], found[name])
    else:
        progress(1, 1)
    return pd.concat([found[name] for name in suites], ignore_index=True)


def keep(path: Path, frame: pd.DataFrame) -> None:
    """File a measurement, and let the longest unused ones go where there are too many."""
    if not frame.logprob.map(lambda x: x == x and abs(x) != float("inf")).all():
        return
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
