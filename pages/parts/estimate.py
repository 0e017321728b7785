"""What a config would cost and whether it can be run, worked out while it is being typed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import streamlit as st
import yaml

from pages.parts import shell
from paraknow import checkpoints, data
from paraknow import config as configs
from paraknow.checks import check, prepare
from paraknow.config import RunConfig
from paraknow.errors import ParaKnowError, ResourceError
from paraknow.fitting import PARTS, changed
from paraknow.runs import timing
from paraknow.runs.timing import Times, duration


@dataclass
class Estimate:
    """A refusal in one sentence, or what a run of this config needs."""

    refusal: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)  # the nearest ones that fit, where memory is the reason
    memory: dict[str, int] = field(default_factory=dict)
    parts: dict[str, dict[str, int]] = field(default_factory=dict)
    device: str = ""
    free: int = 0
    examples: int = 0
    steps: int = 0
    models: list[str] = field(default_factory=list)
    times: Times | None = None


def remote(config: RunConfig) -> list[str]:
    """Models and tasks that a hub would be asked for: never done while somebody types."""
    models = [spec for spec in (config.pair.teacher, config.pair.student) if checkpoints.is_remote(spec)]
    tasks = [t for t in config.all_tasks if t.startswith("hub:")]
    return [*models, *tasks, *(b.title for b in config.evaluate.benchmarks if b.file is None)]


@st.cache_data(max_entries=32, ttl=20, show_spinner=False)
def estimate(text: str) -> Estimate:
    """Check a config given as YAML. Kept for some seconds only: free memory and files change."""
    try:
        config = configs.parse(yaml.safe_load(text))
        checked = check(config)
        examples = sum(len(data.load_task(name, config.seed).train) for name in config.task)
    except ResourceError as error:
        try:
            needed = prepare(config)
        except ParaKnowError:  # no such device: there is nothing to say about memory
            return Estimate(str(error), error.settings)
        parts = {stage: p.named() for stage, p in needed.parts.items()}
        return Estimate(str(error), error.settings, needed.memory, parts)
    except ParaKnowError as error:
        return Estimate(str(error))
    steps = config.tune.epochs * -(-examples // config.tune.batch_size)
    labels = [c.label for c in checked.candidates for _ in config.run_seeds]
    parts = {stage: p.named() for stage, p in checked.parts.items()}
    free = checked.free
    times = timing.estimate(config, timing.of_checked(checked))
    return Estimate(None, {}, checked.memory, parts, free.device, free.bytes, examples, steps, labels, times)


def fitting(config: RunConfig, settings: dict[str, Any], fill: Callable[[RunConfig], None]) -> None:
    """A button that puts the nearest settings that fit into the form; `fill` does that with a config."""
    if settings:
        words = ", ".join(f"{name}: {value}" for name, value in settings.items())
        st.button(
            "Use this setting" if len(settings) == 1 else "Use these settings",
            icon=":material/check:",
            on_click=lambda: fill(changed(config, settings)),
            key="t.fitting",
            help=f"Put into the form what fits: {shell.escape(words)}.",
        )


def where_it_goes(found: Estimate) -> None:
    """What the memory of each stage is for, as a table."""
    with st.expander("Where the memory goes"):
        named = {name: PARTS[name].capitalize() for name in PARTS if any(p[name] for p in found.parts.values())}
        rows = [
            {"Stage": stage, "At the peak": found.memory[stage] / 2**20}
            | {title: parts[name] / 2**20 for name, title in named.items()}
            for stage, parts in found.parts.items()
        ]
        numbers = {c: st.column_config.NumberColumn(format="%.0f") for c in rows[0] if c != "Stage"}
        st.dataframe(rows, hide_index=True, column_config=numbers, width="stretch")
        st.caption(
            "How to read: each row is a stage at its peak, in MiB, estimated from sizes and settings before anything "
            "is loaded; the columns behind the second add up to it. Only the largest row must fit."
        )


def time(place: Any, found: Estimate) -> None:
    """How long it would take, in a column, with what that rests on under the row."""
    if found.times is None:
        return
    whole = found.times.whole
    value = (
        "not known"
        if whole.low is None
        else f"over {duration(whole.low)}"
        if whole.likely is None
        else f"about {duration(whole.likely)}"
    )
    range_ = f"{duration(whole.low)} to {duration(whole.high)}" if whole.high is not None else None
    place.metric("Time", value, range_, delta_color="off", delta_arrow="off")
    st.caption(shell.sentence(found.times.words))


def where_time_goes(found: Estimate) -> None:
    """Seconds of every stage, as a table."""
    if found.times is None or not found.times.stages:
        return
    with st.expander("Where the time goes"):
        rows = [
            {"stage": t.stage, "at least": t.low, "likely": t.likely, "at most": t.high, "runs": t.runs}
            for t in found.times.stages
        ]
        numbers = {
            n: st.column_config.NumberColumn(f"{n}, s", format="%.1f") for n in ("at least", "likely", "at most")
        }
        st.dataframe(rows, hide_index=True, column_config=numbers, placeholder=shell.MISSING, width="stretch")
        st.caption(
            "How to read: seconds of each stage, by what earlier runs on this kind of device took for how much work "
            "(examples × tokens × parameters, steps, pairs of layers). The range is what those runs leave open: wide "
            "where they were much smaller than this one, or where the machine was busy with something else."
        )


def compact(config: RunConfig) -> str:
    """The config as YAML without what is left at its default; parsing it gives the same config."""
    values: dict[str, Any] = config.model_dump(mode="json", exclude_defaults=True)
    values["method"] = config.method.model_dump(mode="json")
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
