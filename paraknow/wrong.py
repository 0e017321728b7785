"""What is wrong with settings, in one sentence (no torch)."""

from __future__ import annotations

import difflib
import re
from typing import Any

from pydantic import BaseModel, ValidationError


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first validation error as one sentence: the field, what is wrong, what would be accepted."""
    first = error.errors(include_url=False)[0]
    path = ".".join(_cut(str(p)) for p in first["loc"]) or "the config"
    if first["type"] == "extra_forbidden":
        known = _fields_at(model, first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}."
        return f"unknown key {path!r}; {hint}"
    if first["type"] == "missing":
        return f"{path!r} is missing."
    message = re.sub(r"^Value error, ", "", first["msg"])
    given = first.get("input")
    shown = f" (given: {_cut(given)!r})" if isinstance(given, str | int | float | bool) or given is None else ""
    return f"{path!r}: {message[:1].lower()}{message[1:]}{shown}."


def _cut(value: Any) -> Any:
    """What was given, short enough for a sentence."""
    if isinstance(value, int) and abs(value) >= 10**30:  # Python refuses to write out the largest
        return "a very large number"
    return f"{value[:100]}…" if isinstance(value, str) and len(value) > 100 else value


def _fields_at(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    for part in path:
        field = model.model_fields.get(str(part))
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)
