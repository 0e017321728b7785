"""Bundles of older versions, brought to today's form step by step (no torch).

Schema 0 has no `bundle.json`: a run folder that somebody packed with a tool of their own, or one recorded before there
were bundles. Numbers that were measured are never changed: only what today's form adds is put beside them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paraknow import files
from paraknow.evaluate import words

# What a run folder holds that no bundle does: passed over when a packed run folder is read.
PASSED_OVER = re.compile(
    r"(?:\.status)?\.lock|\.reserve|cancel|worker\.log|align/.*\.safetensors|align/.*\.sizes\.parquet|tune/.*\.safetensors"
    r"|locate/blocks\.safetensors|evaluate/parts/.*|adapters/[^/]+/[^/]+/.*"
)


def from_0(folder: Path) -> None:
    """JSON files say their schema; rows of deltas.json have `detectable`, `bits_ci` and `reading`, which runs of the
    first versions lack (detectable is computed from the counts kept, bits_ci is missing); a run that was under way
    where it was packed is lost here."""
    for path in sorted(folder.rglob("*.json")):
        values = files.read_json(path)
        if path.name == "status.json" and values.get("state") in ("queued", "running"):
            values["state"] = "lost"
        if path.relative_to(folder).as_posix() == "evaluate/deltas.json":
            values["rows"] = [_row(row) for row in values["rows"]]
        files.write_json(path, {"schema_version": 1, **values})


def _row(row: dict[str, Any]) -> dict[str, Any]:
    added = {"detectable": words.hidden_below(row) if row["model"] != "student" else None, "bits_ci": None, **row}
    return {**added, "reading": row.get("reading") or words.reading(added)}


UPGRADES: dict[int, Callable[[Path], None]] = {0: from_0}
