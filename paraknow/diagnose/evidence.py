"""What rules read: tables and JSON of a run, any of them missing; and the few sums that several rules share."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from paraknow.config import RunConfig
from paraknow.diagnose.finding import NotChecked, Remedy

SLOWER = 1 / 3  # a step of about half a decade, as learning rates are usually searched
KEYS = ("seed", "doc_id", "teacher_layer")  # of a row that is about something; an embedding has no layer
TARGETS = ("shown", "never_shown", "all")  # groups that a transfer is to improve; `known` shows what it costs


@dataclass(frozen=True)
class Evidence:
    """A run as its folder holds it; columns and fields: runs/artifacts.py.

    config, status, environment: config.yaml, status.json, environment.json. warnings: the sentences of events.jsonl.
    rows: evaluate/deltas.json. losses: label, seed, step, loss (nats per answer token), and layer where a method trains
    layer after layer. aligned: model, seed, layer, kinship, what transport kept of its pairing. reload:
    adapters/reload.json. Tables: named as their files. settings: every model's method settings, its defaults too.
    ranks: the rank that each model was to have. layerwise: models that are trained layer after layer. moves_blocks:
    whether the examined method moves the located blocks.
    missing: why something is None, by its field.
    """

    config: RunConfig | None = None
    status: dict[str, Any] | None = None
    environment: dict[str, Any] | None = None
    warnings: Sequence[str] | None = None
    rows: Sequence[dict[str, Any]] | None = None
    items: pd.DataFrame | None = None
    starts: pd.DataFrame | None = None
    aligned: pd.DataFrame | None = None
    changes: pd.DataFrame | None = None
    checks: pd.DataFrame | None = None
    budgets: pd.DataFrame | None = None
    losses: pd.DataFrame | None = None
    reload: dict[str, Any] | None = None
    blocks: pd.DataFrame | None = None
    agreement: pd.DataFrame | None = None
    cka: pd.DataFrame | None = None
    stitching: pd.DataFrame | None = None
    weights: pd.DataFrame | None = None
    settings: Mapping[str, Mapping[str, Any]] | None = None
    ranks: Mapping[str, int] | None = None
    layerwise: Collection[str] | None = None
    moves_blocks: bool | None = None
    missing: Mapping[str, str] = field(default_factory=dict)

    def table(self, name: str) -> pd.DataFrame | None:
        """A table without the rows that do not say what they are about; None where none is left."""
        held = getattr(self, name)
        if held is None:
            return None
        whole = held.dropna(subset=[key for key in KEYS if key in held])
        return whole if len(whole) else None

    def need(self, name: str) -> Any:
        """A field that a rule cannot do without. Raises NotChecked saying why it is not there."""
        value = getattr(self, name)
        value = self.table(name) if isinstance(value, pd.DataFrame) else value
        if value is None:
            raise NotChecked(self.missing.get(name) or f"this run holds no {name}.")
        return value

    @property
    def examined(self) -> str:
        """The examined method's name in tables. Raises NotChecked where nothing names it."""
        if self.config is not None:
            return self.config.method.title
        raise NotChecked(self.missing.get("config") or "this run holds no config.")

    def own(self, groups: Sequence[str] = TARGETS) -> list[dict[str, Any]]:
        """The examined method's rows on the run's own tasks (on all suites, where none of them was measured), that
        have a difference with its interval. Raises NotChecked where there are none."""
        every = [r for r in self.need("rows") if r.get("model") == self.examined and r.get("group") in groups]
        tasks = set(self.config.task) if self.config else set()
        mine = [r for r in every if r.get("suite") in tasks] or every
        if not (measured := [r for r in mine if r.get("delta") is not None and r.get("delta_ci")]):
            raise NotChecked(
                f"no row of {self.examined} on {' or '.join(groups)} items has a difference to the student."
            )
        return measured

    def row_of(self, model: str, like: Mapping[str, Any]) -> dict[str, Any] | None:
        """Another model's row on the same suite and group."""
        place = like.get("suite"), like.get("group")
        return next(
            (r for r in self.need("rows") if r.get("model") == model and (r.get("suite"), r.get("group")) == place),
            None,
        )


def lines(table: pd.DataFrame) -> Iterator[Any]:
    """The rows of a table, columns as attributes."""
    return table.itertuples()


def interval(values: Any) -> tuple[float, float, float]:
    """Mean of independent values with Student's 95 % interval over them; its ends NaN under two values."""
    kept = np.asarray(values, dtype=float)
    kept = kept[np.isfinite(kept)]
    mean = float(kept.mean()) if len(kept) else math.nan
    if len(kept) < 2:
        return mean, math.nan, math.nan
    half = float(stdtrit(len(kept) - 1, 0.975) * kept.std(ddof=1) / math.sqrt(len(kept)))
    return mean, mean - half, mean + half


def points(value: float) -> str:
    """A share in hundredths, with sign and a real minus."""
    return f"{round(100 * value, 1) + 0.0:+.1f}".replace("-", "−")


def number(value: float | None, digits: int = 2) -> str:
    """A number with a real minus; – where it is missing."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def place(row: Mapping[str, Any]) -> str:
    """Suite and group of a row, in words."""
    return str(row.get("suite")) + ("" if row.get("group") == "all" else f", {str(row.get('group')).replace('_', ' ')}")


def line(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row's difference to the student as a line of a finding's numbers."""
    low, high = row["delta_ci"]
    return {
        "on": place(row),
        "model": row.get("model"),
        "n": row.get("n"),
        "difference (points)": round(100 * row["delta"], 1),
        "from": round(100 * low, 1),
        "to": round(100 * high, 1),
    }


def tuned(evidence: Evidence) -> bool:
    """Whether the examined method has a loss curve: whether anything is trained in it at all."""
    return evidence.losses is not None and evidence.examined in set(evidence.losses.label)


def schedule(evidence: Evidence, name: str) -> tuple[str, Any] | None:
    """Where `name` of the examined method's training is set, and to what: under method where it trains itself by a
    setting of its own, else under tune. None where the run's settings are not known."""
    if evidence.config is None:
        return None
    own = (evidence.settings or {}).get(evidence.examined, {}).get(name)
    checks = evidence.table("checks")
    after = checks is not None and bool((checks.model.eq(evidence.examined) & checks.tuned.eq(True)).any())
    if isinstance(own, int | float) and not after:  # else `tune` comes last, and its curve is the one that was kept
        return f"method.{name}", own
    return f"tune.{name}", getattr(evidence.config.tune, name)


def smaller_steps(evidence: Evidence) -> list[Remedy]:
    """A smaller learning rate than the run's; nothing where its settings are not known."""
    found = schedule(evidence, "learning_rate")
    return [Remedy("A smaller learning rate.", {found[0]: float(f"{found[1] * SLOWER:.1g}")})] if found else []


def larger_steps(evidence: Evidence) -> list[Remedy]:
    """A larger learning rate than the run's; nothing where its settings are not known."""
    found = schedule(evidence, "learning_rate")
    return [Remedy("Larger steps.", {found[0]: min(1.0, 3 * found[1])})] if found else []


def longer(evidence: Evidence) -> list[Remedy]:
    """Twice the run's passes over the examples; nothing where its settings are not known."""
    found = schedule(evidence, "epochs")
    return [Remedy("Tune longer.", {found[0]: min(10000, 2 * found[1])})] if found else []
