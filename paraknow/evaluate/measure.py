"""One model on everything a run asks: its suites, then its benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from paraknow import data
from paraknow.evaluate import harness, public
from paraknow.evaluate.benchmarks import Plan
from paraknow.models import Loaded
from paraknow.progress import Progress, part, silent


def measure(
    loaded: Loaded,
    suites: Mapping[str, Sequence[data.Example]],
    plans: Sequence[Plan],
    batch_size: int | str,
    model: Any = None,
    progress: Progress = silent,
) -> pd.DataFrame:
    """One row per item, as harness.evaluate and public.evaluate make them. `model` stands in for `loaded.model`."""
    whole = bool(suites) + len(plans)
    frames = []
    if suites:
        frames.append(harness.evaluate(loaded, suites, batch_size, model, part(progress, 0, 1000 * whole, scale=1000)))
    if plans:
        rest = part(progress, 1000 * bool(suites), 1000 * whole, scale=1000 * len(plans))
        frames.append(public.evaluate(loaded, plans, batch_size, model, rest))
    return joined(frames)


def joined(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Frames of the same columns below each other; pd.concat warns of columns that are missing in one of them."""
    rows = [row for frame in frames for row in frame.to_dict("records")]
    return pd.DataFrame(rows, columns=frames[0].columns)
