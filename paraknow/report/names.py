"""What models are called on axes and in tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from paraknow.figures.theme import distinct


def titles(environment: Mapping[str, Any]) -> dict[str, str]:
    """The two models' own names from environment.json, and every method's from the catalogue; no two look alike."""
    from paraknow import methods

    made: dict[str, str] = {}
    models = environment.get("models", {})
    for name in ("teacher", "student"):
        facts = models.get(name)
        made[name] = str(facts["title"]) if isinstance(facts, dict) and facts.get("title") else name
    return distinct(made | {name: method.title for name, method in methods.catalogue().items()})


def model_titles(known: Mapping[str, str], labels: Sequence[str]) -> dict[str, str]:
    """A title per model label of a run, from `titles`, no two alike; a control's label is METHOD+CONTROL."""
    return distinct({k: known.get(k) or known.get(k.rpartition("+")[2]) or k for k in labels})
