"""What the form can start from: quick, thorough, the demo's, the chosen run's settings, the papers' recipes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

from pages.parts import estimate as costs
from pages.parts import shell
from paraknow import config as configs
from paraknow import methods, recipes
from paraknow.config import RunConfig
from paraknow.demo import story
from paraknow.errors import ParaKnowError
from paraknow.runs import store
from paraknow.runs.store import Run
from paraknow.runs.timing import duration

Fill = Callable[[RunConfig], None]
QUICK: dict[str, Any] = {
    "name": "Quick look",
    "pair": {"teacher": "demo:teacher", "student": "demo:student"},
    "task": "demo:people",
    "method": {"name": "seeking", "rank": 8},
    "baselines": ["gaussian"],
    "controls": ["noise"],
    "locate": {"seeds": 8, "max_length": 64},
    "similarity": {"examples": 64, "tokens": 2},
    "tune": {"epochs": 2, "learning_rate": 1e-3, "max_length": 64},
    "evaluate": {"limit": 20},
}
THOROUGH = {"controls": ["zero", "noise", "random_window", "shuffled_teacher"], "seeds": [0, 1, 2]}
KEPT = ("pair", "task", "device", "dtype", "placement")  # what `keep` leaves as it is in the form


def quick() -> RunConfig:
    """A look in a minute or two."""
    return configs.parse(QUICK)


def thorough() -> RunConfig:
    """The demo's settings with three seeds and every control of the method's start."""
    values = story.demo_config().model_dump(mode="json")
    return configs.parse({**values, **THOROUGH, "name": "Thorough: three seeds, all controls"})


def in_short(config: RunConfig) -> str:
    """What a config makes and reads, in a line."""
    made, seeds = len(methods.candidates(config)), len(config.run_seeds)
    each = f" × {seeds} seeds" if seeds > 1 else ""
    limit = config.evaluate.limit
    asked = "all test items" if limit is None else f"{limit} test items a group"
    epochs = config.tune.epochs
    passes = f"{epochs} pass{'es' * (epochs != 1)} of training"
    return f"{made} models{each}, {passes}, {config.locate.seeds} seed examples, {asked}"


def cost(config: RunConfig) -> str:
    """The line under a preset: what it makes, and its time and memory where they can be told without a hub."""
    line = in_short(config)
    if costs.remote(config):
        return f"{line}; models or data from a hub"
    found = costs.estimate(configs.dump(config))
    if found.refusal:
        return f"{line}; cannot be started here as it is"
    whole = found.times.whole if found.times else None
    if whole and whole.likely is not None:
        line += f"; about {duration(whole.likely)}"
    elif whole and whole.low is not None:
        line += f"; at least {duration(whole.low)}"
    return f"{line}; {shell.size(max(found.memory.values()))}"


def kept(config: RunConfig) -> RunConfig:
    """The config with the form's own pair, task, device and type where the visitor keeps them."""
    state = st.session_state
    if not state.get("t.keep") or "t.pair.teacher" not in state:
        return config
    mine = {
        "pair": {side: state[f"t.pair.{side}"] for side in ("teacher", "student")},
        "task": list(state["t.task"]) or list(config.task),
        "device": state["t.device"],
        "dtype": state["t.dtype"],
        "placement": {side: state[f"t.placement.{side}"] for side in ("teacher", "student")},
    }
    values = config.model_dump(mode="json")
    if mine["task"] != values["task"]:  # suites and benchmarks were those of the other task
        values["evaluate"] |= {"suites": None, "benchmarks": []}
    return configs.parse({**values, **mine})


def take(make: Callable[[], RunConfig], fill: Fill) -> None:
    """Fill the form; for callbacks, so a refusal is left for the page to show."""
    try:
        fill(kept(make()))
    except ParaKnowError as error:
        st.session_state["refused"] = str(error)


def of_run(run_id: str) -> RunConfig:
    """A run's settings. Raises InputError where there is no such run or its config is damaged."""
    return store.find(run_id).config()


def row(run: Run | None, fill: Fill) -> None:
    """The presets, each with what it costs; under them the papers' recipes."""
    shown: list[tuple[str, str, Callable[[], RunConfig] | None]] = [
        ("quick", "Quick look", quick),
        ("thorough", "Thorough", thorough),
        ("demo", "The demo's settings", story.demo_config),
        ("run", "As the chosen run", (lambda: of_run(run.id)) if run else None),
    ]
    for column, (key, title, make) in zip(st.columns(len(shown)), shown, strict=True):
        column.button(
            title,
            on_click=take,
            args=(make, fill),
            disabled=make is None,
            key=f"t.preset.{key}",
            width="stretch",
            help="Fill the form with the settings of the run in the sidebar, to run it again with changes."
            if key == "run"
            else None,
        )
        try:
            line = cost(make()) if make else "no run is chosen"
        except ParaKnowError as error:
            line = str(error)
        column.caption(shell.sentence(line))
    papers(fill)


def papers(fill: Fill) -> None:
    """The papers' own settings, by the name of their recipe."""
    a, b, c = st.columns([5, 2, 3], vertical_alignment="bottom")
    names = sorted(recipes.catalogue())
    picked = a.selectbox(
        "The papers' settings",
        names,
        index=None,
        placeholder="A recipe: pair, task, method",
        key="t.recipe",
        persist_state="session",
        help="As `paraknow recipes` lists them: Seeking's and LaTen's own pairs, tasks and settings.",
    )
    b.button(
        "Fill in",
        on_click=take,
        args=(lambda: recipes.find(picked or "").parsed(), fill),
        disabled=picked is None,
        key="t.preset.recipe",
        width="stretch",
    )
    c.toggle(
        "Keep my pair and task",
        key="t.keep",
        persist_state="session",
        help="All of these presets then leave models, task, device, type and placement in the form as they are.",
    )
    if picked:
        recipe = recipes.find(picked)
        needs = "".join(f" Needs {need}." for need in recipe.task.needs)
        st.caption(shell.escape(f"{recipe.title} ({recipe.source}): {cost(recipe.parsed())}.{needs}"))
