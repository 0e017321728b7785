"""What a config would cost and whether it can be run, worked out while it is being typed."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import streamlit as st
import yaml

from paraknow import config as configs
from paraknow import data
from paraknow.checks import check
from paraknow.config import RunConfig
from paraknow.devices import free_bytes
from paraknow.errors import ParaKnowError


@dataclass
class Estimate:
    """A refusal in one sentence, or what a run of this config needs."""

    refusal: str | None = None
    memory: dict[str, int] = field(default_factory=dict)
    device: str = ""
    free: int = 0
    examples: int = 0
    steps: int = 0
    models: list[str] = field(default_factory=list)


def remote(config: RunConfig) -> list[str]:
    """Models and tasks that a hub would be asked for: never done while somebody types."""
    models = [
        spec
        for spec in (config.pair.teacher, config.pair.student)
        if spec.count("/") == 1 and not spec.startswith((".", "/", "~", "demo:")) and not os.path.isdir(spec)
    ]
    tasks = [t for t in config.all_tasks if t.startswith("hub:")]
    return [*models, *tasks, *(b.title for b in config.evaluate.benchmarks if b.file is None)]


@st.cache_data(max_entries=32, ttl=20, show_spinner=False)
def estimate(text: str) -> Estimate:
    """Check a config given as YAML. Kept for some seconds only: free memory and files change."""
    try:
        config = configs.parse(yaml.safe_load(text))
        checked = check(config)
        device, free = free_bytes(config.device)
        examples = sum(len(data.load_task(name, config.seed).train) for name in config.task)
    except ParaKnowError as error:
        return Estimate(refusal=str(error))
    steps = config.tune.epochs * -(-examples // config.tune.batch_size)
    labels = [c.label for c in checked.candidates for _ in config.run_seeds]
    return Estimate(None, checked.memory, device, free, examples, steps, labels)


def compact(config: RunConfig) -> str:
    """The config as YAML without what is left at its default; parsing it gives the same config."""
    values: dict[str, Any] = config.model_dump(mode="json", exclude_defaults=True)
    values["method"] = config.method.model_dump(mode="json")
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
