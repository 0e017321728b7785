"""One prompt against its task: where its answer depends on other weights than the task's answers do."""

from __future__ import annotations

import altair as alt
import pandas as pd

from paraknow.config import MODULES
from paraknow.figures.heatmaps import layer_map

NOTE = "n = 1 question and its answer"
WHAT = "share of this prompt − share of the task"


def share_map(table: pd.DataFrame, span: tuple[float, float], model: str) -> alt.Chart:
    """One model's layer × module map for a prompt; columns as in `heatmaps.layer_map`, `span` shared by both models."""
    return layer_map(table, "share", span, model, clickable=False, note=NOTE)


def differences(prompt: pd.DataFrame, task: pd.DataFrame) -> pd.DataFrame:
    """A prompt's share of the sensitivity less its task's, per cell: model, layer, module, prompt, task, difference.

    Both tables have the columns model, layer, module and share, one row a cell. Cells that one of them lacks are left
    out.
    """
    keys = ["model", "layer", "module"]
    both = prompt[[*keys, "share"]].merge(task[[*keys, "share"]], on=keys, suffixes=("_prompt", "_task"))
    both = both.rename(columns={"share_prompt": "prompt", "share_task": "task"})
    both["difference"] = both.prompt - both.task
    return both[both.module.isin(MODULES)].reset_index(drop=True)
