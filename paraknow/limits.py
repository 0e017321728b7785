"""How much a visitor of a shared dashboard may ask for: sizes, counts, time (no torch).

Nothing here binds who sits at the machine: neither the command line nor a page server that nobody else reaches.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paraknow import access
from paraknow.errors import InputError, ResourceError, RunError

if TYPE_CHECKING:
    from paraknow.config import RunConfig

MIB, GIB = 2**20, 2**30
TASKS, BENCHMARKS, BASELINES, SEEDS = 8, 8, 16, 16  # of one run
DATA = 256 * MIB  # a file or folder of records
DOWNLOAD = 40 * GIB  # one checkpoint or dataset from a hub
FREE = 10 * GIB  # disk that must be left to queue a run, or to fetch something
WAITING = 10  # runs queued or under way
KEPT = 1000  # run folders
STAGE_HOURS = 24  # of one stage of a run
ASKS, ASK_SECONDS = 10, 300  # questions that wait; time that one may take


def shared() -> bool:
    return access.current().shared


def check(config: RunConfig) -> None:
    """Refuse a config that asks for too much, or for code to be run, on a shared page. Raises InputError."""
    if not shared():
        return
    counts: tuple[tuple[str, Sequence[Any], int], ...] = (
        ("task, locate.task and evaluate.suites", config.all_tasks, TASKS),
        ("evaluate.benchmarks", config.evaluate.benchmarks, BENCHMARKS),
        ("baselines", config.baselines, BASELINES),
        ("seeds", config.run_seeds, SEEDS),
    )
    for field, given, most in counts:
        if len(given) > most:
            raise InputError(f"{field}: {len(given)} are too many on a shared page; at most {most} are accepted.")
    if config.evaluate.run_code:
        raise InputError(
            "evaluate.run_code: a shared page runs no code that models write; the machine's owner can start such a run "
            "with `paraknow run`."
        )


def check_queue(waiting: int, kept: int, root: Path) -> None:
    """Refuse one more run where too many wait, too many are kept or the disk is nearly full.

    Raises InputError or ResourceError.
    """
    if not shared():
        return
    if waiting >= WAITING:
        raise InputError(f"queue: {waiting} runs wait or are under way, the most for a shared page; try again later.")
    if kept >= KEPT:
        raise InputError(
            f"runs: {kept} are kept here, the most for a shared page; the machine's owner can delete some."
        )
    check_disk("queue", root)


def check_data(path: Path, what: str) -> None:
    """Refuse records that are too large to be read for a visitor. Raises InputError."""
    if not shared() or not path.exists():
        return
    total = sum(entry.stat().st_size for entry in os.scandir(path)) if path.is_dir() else path.stat().st_size
    if total > DATA:
        raise InputError(f"{what}: {total / MIB:.0f} MiB of records; a shared page reads at most {DATA // MIB}.")


def check_download(what: str, size: int, into: Path) -> None:
    """Refuse to fetch what is too large. Raises InputError or ResourceError."""
    if not shared():
        return
    if size > DOWNLOAD:
        raise InputError(f"{what}: {size / GIB:.1f} GiB; a shared page fetches at most {DOWNLOAD // GIB}.")
    check_disk(what, into, size)


def check_time(seconds: float, stage: str) -> None:
    """End a stage of a visitor's run that takes too long. Raises RunError."""
    if shared() and seconds > STAGE_HOURS * 3600:
        raise RunError(f"{stage}: a run from a shared page may spend at most {STAGE_HOURS} hours in one stage.")


def check_asks(waiting: int) -> None:
    """Refuse one more question where too many wait. Raises InputError."""
    if shared() and waiting >= ASKS:
        raise InputError(f"asks: {waiting} questions wait, the most for a shared page; try again later.")


def ask_is_late(seconds: float) -> bool:
    """Whether a visitor's question takes too long."""
    return shared() and seconds > ASK_SECONDS


def check_ask_time(seconds: float) -> None:
    """End a visitor's question that takes too long. Raises RunError."""
    if ask_is_late(seconds):
        raise RunError(f"it took longer than {ASK_SECONDS} s, the most for a question from a shared page.")


def refuse(what: str) -> None:
    """What no visitor may do. Raises InputError."""
    if shared():
        raise InputError(f"{what} is left to the machine's owner, because this page is shared.")


def check_disk(what: str, folder: Path, more: int = 0) -> None:
    """Refuse what would leave too little of the disk for others. Raises ResourceError."""
    if not shared():
        return
    if free(folder) - more < FREE:
        raise ResourceError(f"{what}: less than {FREE // GIB} GiB of disk would be left, too little on a shared page.")


def free(folder: Path) -> int:
    """Bytes free on the disk of a folder, which need not exist yet."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
