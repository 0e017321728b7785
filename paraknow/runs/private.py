"""What a run folder tells about its machine, shortened before it is given to others (no torch).

Names of models and data that are places on this machine (absolute, under the home folder, or leading upwards) become
their last part; the hashes beside them still say which files they were. Names that mean the same everywhere (demo:…,
hub ids, paths relative to the folder that one works in) stay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PRIVATE = re.compile(r"[/~\\]|[A-Za-z]:[\\/]|(?:.*[\\/])?\.\.(?:[\\/]|$)")
# A path inside a sentence: from its root to its last part, which is kept.
_IN_TEXT = re.compile(r"(?<![\w.:/\\<])(?:[A-Za-z]:[\\/]|~?[\\/])(?:[^\s/\\'\"<>|:,;()]+[\\/])+([^\s/\\'\"<>|,;()]*)")
NAMED = ("task", "other")  # columns of tables that hold names of data


def is_private(name: str) -> bool:
    """Whether a name is a place on this machine."""
    return bool(_PRIVATE.match(name))


def names(values: Any) -> dict[str, str]:
    """Short names for all private ones among nested values; two places never get one name."""
    found = list(dict.fromkeys(_strings(values)))
    taken = {name for name in found if not is_private(name)}
    made: dict[str, str] = {}
    for name in filter(is_private, found):
        last = re.split(r"[\\/]", name.rstrip("\\/"))[-1].replace(":", "-")
        base = short = last if last.strip(".~") else "folder"
        number = 1
        while short in taken:
            number += 1
            short = f"{base}-{number}"
        taken.add(short)
        made[name] = short
    return made


def _strings(values: Any) -> list[str]:
    if isinstance(values, Mapping):
        values = list(values.values())
    if isinstance(values, list | tuple):
        return [text for value in values for text in _strings(value)]
    return [values] if isinstance(values, str) else []


def renamed(values: Any, short: Mapping[str, str]) -> Any:
    """Nested values, keys too, with names put short, and paths inside of text shortened to their last part."""
    if isinstance(values, Mapping):
        return {short.get(key, key): renamed(value, short) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [renamed(value, short) for value in values]
    if not isinstance(values, str):
        return values
    if values in short:
        return short[values]
    for name in sorted((n for n in short if len(n) > 3), key=len, reverse=True):  # and not "/" or "~"
        values = values.replace(name, short[name])
    return _IN_TEXT.sub(lambda found: found[1] or "folder", values)


def write_table(source: Path, target: Path, short: Mapping[str, str]) -> bool:
    """A parquet table with its names of data put short, a part at a time. False, and nothing written, where it has
    none to shorten."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(source) as table:
        columns = [c for c in NAMED if c in table.schema_arrow.names]
        if not columns or not _has(table, columns, short):
            return False
        with pq.ParquetWriter(target, table.schema_arrow) as writer:
            for batch in table.iter_batches(16384):
                for column in columns:
                    place, old = batch.schema.get_field_index(column), batch.column(column)
                    new = pa.array([short.get(name, name) for name in old.to_pylist()], old.type)
                    batch = batch.set_column(place, batch.schema.field(place), new)
                writer.write_batch(batch)
    return True


def _has(table: Any, columns: list[str], short: Mapping[str, str]) -> bool:
    return any(
        not short.keys().isdisjoint(batch.column(c).unique().to_pylist())
        for batch in table.iter_batches(65536, columns=columns)
        for c in columns
    )
