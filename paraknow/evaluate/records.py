"""Records of a benchmark from files on this machine, in whatever fields its publishers use (no torch)."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paraknow.errors import InputError

ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
ACCEPTED = "a .jsonl, .jsonl.gz, .json or .parquet file, or a folder of them"


@dataclass(frozen=True)
class Record:
    """One record and where it stands, for sentences about what is wrong with it."""

    where: str
    values: dict[str, Any]

    def need(self, fields: Iterable[str], filled: bool = False) -> None:
        """Raises InputError naming the file, the line and the first field that is missing (`filled`: or empty)."""
        for field in fields:
            value = self.values.get(field)
            if value is None or (filled and value in ("", [])):
                known = ", ".join(sorted(self.values)) or "nothing"
                what = "missing" if value is None else "empty"
                raise InputError(f"{self.where}: the field {field!r} is {what}; the record has {known}.")


def files_of(path: Path) -> list[Path]:
    """The record files that a path stands for. Raises InputError where there is none."""
    if path.is_file():
        if not path.name.endswith(ENDINGS):
            raise InputError(f"{path}: accepted are {ACCEPTED}.")
        return [path]
    if not path.is_dir():
        raise InputError(f"{path} was not found; accepted are {ACCEPTED}.")
    found = sorted(p for p in path.iterdir() if p.is_file() and p.name.endswith(ENDINGS))
    if not found:
        raise InputError(f"{path}: the folder holds no records; accepted are {ACCEPTED}.")
    return found


def of_split(path: Path, names: Sequence[str]) -> list[Path]:
    """Files of a folder whose name begins with one of the split's names; none for a single file."""
    if not path.is_dir():
        return []
    return [p for p in files_of(path) if p.name.lower().startswith(tuple(n.lower() for n in names))]


def read(path: str | Path, split: Sequence[str] = ()) -> list[Record]:
    """All records of a file, or of a folder: of the files named like `split` where there are such, else of all.

    Raises InputError naming the file and the line: not found, not JSON, not an object, no records.
    """
    place = Path(path).expanduser()
    chosen = of_split(place, split) or files_of(place)
    found = [record for file in chosen for record in _read_file(file)]
    if not found:
        raise InputError(f"{place}: holds no records; one JSON object per line is accepted.")
    return found


def _read_file(path: Path) -> list[Record]:
    try:
        if path.name.endswith(".parquet"):
            import pyarrow.parquet

            rows: list[Any] = pyarrow.parquet.read_table(path).to_pylist()
            return [Record(f"{path}, record {i}", row) for i, row in enumerate(rows, start=1)]
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as stream:
            if path.name.endswith((".jsonl", ".jsonl.gz")):
                lines = [(f"{path}, line {n}", line) for n, line in enumerate(stream, start=1) if line.strip()]
            else:
                return _whole(path, stream.read())
    except (OSError, EOFError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())}).") from None
    return [_record(where, _json(where, line)) for where, line in lines]


def _whole(path: Path, text: str) -> list[Record]:
    """A .json file: a list of objects, or one object."""
    values = _json(str(path), text)
    rows = values if isinstance(values, list) else [values]
    return [_record(f"{path}, record {i}" if len(rows) > 1 else str(path), row) for i, row in enumerate(rows, start=1)]


def _json(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON ({error.msg}).") from None


def _record(where: str, values: Any) -> Record:
    if not isinstance(values, dict):
        raise InputError(f"{where}: expected a JSON object, got {type(values).__name__}.")
    return Record(where, values)
