"""What models are called on axes and in tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def titles(environment: Mapping[str, Any]) -> dict[str, str]:
    """The two models' own names from environment.json, and every method's from the catalogue."""
    from paraknow import methods

    made = {name: method.title for name, method in methods.catalogue().items()}
    models = environment.get("models", {})
    for name in ("teacher", "student"):
        facts = models.get(name)
        made[name] = str(facts["title"]) if isinstance(facts, dict) and facts.get("title") else name
    return made


def model_titles(known: Mapping[str, str], labels: Sequence[str]) -> dict[str, str]:
    """A title per model label of a run, from `titles`; a control's label is METHOD+CONTROL."""
    return {label: known.get(label) or known.get(label.rpartition("+")[2]) or label for label in labels}
