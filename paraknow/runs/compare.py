"""Two runs side by side: only the settings that differ, and their results (no torch)."""

from __future__ import annotations

from typing import Any

from paraknow.config import RunConfig


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys."""
    if not isinstance(values, dict):
        return {prefix: values}
    result: dict[str, Any] = {}
    for key, value in values.items():
        result |= flatten(value, f"{prefix}.{key}" if prefix else key)
    return result


def differences(first: RunConfig, second: RunConfig) -> list[dict[str, Any]]:
    """The settings in which two runs differ; one that a run does not have is None."""
    a, b = (flatten(c.model_dump(mode="json")) for c in (first, second))
    keys = list(dict.fromkeys([*a, *b]))
    return [{"setting": k, "first": a.get(k), "second": b.get(k)} for k in keys if a.get(k) != b.get(k)]


def results(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Delta and interval of every row that at least one of the runs has."""
    tables = [{(r["suite"], r["group"], r["model"]): r for r in rows} for rows in (first, second)]
    made = []
    for key in dict.fromkeys([*tables[0], *tables[1]]):
        row: dict[str, Any] = dict(zip(("suite", "group", "model"), key, strict=True))
        for name, table in zip(("first", "second"), tables, strict=True):
            found = table.get(key, {})
            row |= {f"{name}_{field}": found.get(field) for field in ("accuracy", "delta", "delta_ci")}
        made.append(row)
    return made
