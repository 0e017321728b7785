"""What lists say of every run, kept in SQLite so that only runs that have changed are read again (no torch).

The run folders are the truth. The index (`.index.sqlite` in the runs folder) can be deleted at any time, and where it
is damaged, of another version, locked or cannot be written, it is done without or made anew.
"""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

FILE = ".index.sqlite"
VERSION = 1
READ_FROM = ("status.json", "config.yaml")  # a row holds as long as these two are as they were
# Somebody else is writing, or nobody may: no fault of the file's.
_PASSING = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
}

Read = Callable[[Path], dict[str, Any]]


def rows(root: Path, folders: Iterable[Path], read: Read) -> dict[str, dict[str, Any]]:
    """`read(folder)` of every folder, by folder name, taken from the index where its files have not changed."""
    seen = {folder.name: (folder, _signature(folder)) for folder in folders}
    kept: dict[str, tuple[str, dict[str, Any]]] = {}
    try:
        with closing(_open(root)) as database:
            kept = {name: (signature, row) for name, signature, row in _stored(database)}
            made = {n: kept[n][1] if n in kept and kept[n][0] == s else read(f) for n, (f, s) in seen.items()}
            fresh = [n for n, (_, s) in seen.items() if n not in kept or kept[n][0] != s]
            _store(database, [(n, seen[n][1], made[n]) for n in fresh], kept.keys() - seen.keys())
            return made
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF not in _PASSING:
            forget(root)
    return {n: kept[n][1] if n in kept and kept[n][0] == s else read(f) for n, (f, s) in seen.items()}


def forget(root: Path) -> None:
    """Delete the index; the next listing makes it anew."""
    for name in (FILE, f"{FILE}-journal"):
        with suppress(OSError):
            (root / name).unlink()


def _open(root: Path) -> sqlite3.Connection:
    if not root.is_dir():
        raise sqlite3.OperationalError("no runs folder")
    database = sqlite3.connect(root / FILE, timeout=1.0, isolation_level=None)
    try:
        database.execute("PRAGMA synchronous=OFF")  # lost with the machine's power: then it is made anew
        if database.execute("PRAGMA user_version").fetchone()[0] != VERSION:
            database.execute("BEGIN IMMEDIATE")
            database.execute("DROP TABLE IF EXISTS runs")
            database.execute("CREATE TABLE runs (name TEXT PRIMARY KEY, signature TEXT, row TEXT, crc INTEGER)")
            database.execute(f"PRAGMA user_version={VERSION}")
            database.execute("COMMIT")
    except BaseException:
        database.close()
        raise
    return database


def _stored(database: sqlite3.Connection) -> list[tuple[str, str, dict[str, Any]]]:
    """All rows that are as they were written."""
    found = []
    for name, signature, text, crc in database.execute("SELECT name, signature, row, crc FROM runs"):
        if isinstance(text, str) and zlib.crc32(f"{name}{signature}{text}".encode(errors="replace")) == crc:
            found.append((name, signature, json.loads(text)))
    return found


def _store(database: sqlite3.Connection, fresh: list[tuple[str, str, dict[str, Any]]], gone: Iterable[str]) -> None:
    gone = list(gone)
    if not fresh and not gone:
        return
    lines = []
    for name, signature, row in fresh:
        text = json.dumps(row)
        lines.append((name, signature, text, zlib.crc32(f"{name}{signature}{text}".encode(errors="replace"))))
    database.execute("BEGIN IMMEDIATE")
    database.executemany("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?)", lines)
    database.executemany("DELETE FROM runs WHERE name = ?", [(name,) for name in gone])
    database.execute("COMMIT")


def _signature(folder: Path) -> str:
    """Another one wherever a file was replaced or rewritten: size, inode, modification and change time."""
    parts = []
    for name in READ_FROM:
        try:
            stat = os.stat(folder / name)
            parts.append(f"{stat.st_size},{stat.st_ino},{stat.st_mtime_ns},{stat.st_ctime_ns}")
        except OSError:
            parts.append("-")
    return ";".join(parts)
