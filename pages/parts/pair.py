"""The Models page's choices and tables: which two models, their facts side by side."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd
import streamlit as st
import yaml

from pages.parts import draw, shell
from paraknow import methods, pairing, recipes, resources
from paraknow.config import Pair, Placement, RunConfig
from paraknow.demo.rungs import LADDER
from paraknow.errors import ParaKnowError
from paraknow.pairing import EMBEDDINGS, Facts, Looked
from paraknow.runs.store import Run

SIDES = ("teacher", "student")
LONGEST = 500  # characters of a model's name
NAMES = {
    "spec": "name",
    "source": "facts from",
    "ffn": "FFN size",
    "hidden": "hidden size",
    "kv_heads": "key/value heads",
    "head_dim": "head size",
    "context": "context (tokens)",
    "tied": "tied embeddings",
    "dtype": "type on disk",
    "bytes": "weights on disk",
    "tokens": "tokens of the tokenizer",
    "chat_template": "chat template",
}
SOURCES = {"files": "its files", "config.json": "its config.json", "models.json": "the shipped table"}


@st.cache_data(max_entries=32, ttl=20, show_spinner=False)
def facts(spec: str) -> Facts:
    """One model's facts, kept for some seconds: files change."""
    return pairing.facts(spec)


@st.cache_data(max_entries=16, ttl=20, show_spinner=False)
def look(teacher: str, student: str, dtype: str, device: str, place_teacher: str, place_student: str) -> Looked:
    """Both models, kept for some seconds: free memory and files change."""
    placement = Placement.model_validate({"teacher": place_teacher, "student": place_student})
    return pairing.look(teacher, student, dtype, device, placement)


def titled(name: str) -> str:
    """What a refusal is about."""
    known = methods.catalogue().get(name)
    return known.title if known else {EMBEDDINGS: "Moving embeddings"}.get(name, name)


# -- what is chosen ---------------------------------------------------------------------------------


def begin(run: Run | None) -> None:
    """What the page starts from: a link's pair, else the one chosen before, else the form's, the run's, the demo's."""
    state = st.session_state
    linked = {side: st.query_params[side] for side in SIDES if st.query_params.get(side)}
    for side in SIDES:
        new = linked.get(side)
        if new and new != state.get("m.address", {}).get(side):  # a link was followed
            state[f"m.{side}"] = new[:LONGEST]
            state["m.linked"] = {**state.get("m.linked", {}), side: new[:LONGEST]}
        if f"m.{side}" not in state:
            state[f"m.{side}"] = state.get(f"t.pair.{side}") or _of_run(run, side) or f"demo:{side}"
        if f"m.placement.{side}" not in state:
            state[f"m.placement.{side}"] = state.get(f"t.placement.{side}", "device")
    for name in ("dtype", "device"):
        if f"m.{name}" not in state:
            state[f"m.{name}"] = state.get(f"t.{name}") or RunConfig.model_fields[name].default


def _of_run(run: Run | None, side: str) -> str | None:
    try:
        return getattr(run.config().pair, side) if run else None
    except ParaKnowError:
        return None


def known_pairs() -> dict[str, tuple[str, str]]:
    """Pairs by a name in words: the demo's rungs, and public ones by the shipped recipes."""
    found = {
        f"demo, {rung.words}": (f"demo:{rung.teacher}", f"demo:{rung.student}")
        for rung in LADDER.values()
        if {rung.teacher, rung.student} <= set(resources.DEMO_MODELS)
    }
    for recipe in recipes.catalogue().values():
        names = [n.rpartition("/")[2] for n in (recipe.pair.teacher, recipe.pair.student)]
        found[f"{names[0]} → {names[1]}: {recipe.pair.about}"] = (recipe.pair.teacher, recipe.pair.student)
    return found


def _take() -> None:
    """Put a known pair into both fields."""
    if pair := known_pairs().get(st.session_state.get("m.known") or ""):
        for side, spec in zip(SIDES, pair, strict=True):
            st.session_state[f"m.{side}"] = spec
    st.session_state["m.known"] = None


def pick() -> None:
    """The widgets; the pair is put into the address, so that a link shows the same."""
    state = st.session_state
    st.selectbox(
        "A known pair",
        list(known_pairs()),
        index=None,
        placeholder="Pick a pair whose kinship is known, or name two models below",
        key="m.known",
        on_change=_take,
        help="Pairs that come with the package, and public ones; who comes from whom is what their model cards say.",
    )
    offered = [*(f"demo:{n}" for n in resources.DEMO_MODELS), *recipes.model_configs()]
    columns = st.columns([3, 3, 2, 2])
    for column, side in zip(columns, SIDES, strict=False):
        spec = state[f"m.{side}"]
        column.selectbox(
            side.capitalize(),
            [*offered, *([spec] if spec and spec not in offered else [])],
            key=f"m.{side}",
            accept_new_options=True,
            persist_state="session",
            help=f"{Pair.model_fields[side].description} A demo model, a local folder, or a hub id org/name@revision: "
            "type it and press Enter.",
        )
        state[f"m.{side}"] or shell.stop()
    choices = {"dtype": ("float32", "bfloat16", "float16"), "device": ("auto", "cpu", "cuda")}
    for column, (name, options) in zip(columns[2:], choices.items(), strict=True):
        about = RunConfig.model_fields[name].description
        column.selectbox(name.capitalize(), options, key=f"m.{name}", help=about, persist_state="session")
    with st.expander("Where layers wait that do not fit"):
        for column, side in zip(st.columns(2), SIDES, strict=True):
            column.selectbox(
                side.capitalize(),
                ("device", "auto", "offload"),
                key=f"m.placement.{side}",
                help=Placement.model_fields["teacher"].description,
                persist_state="session",
            )
    state["m.address"] = {side: state[f"m.{side}"] for side in SIDES}
    for side in SIDES:
        st.query_params[side] = state[f"m.{side}"]


# -- what is shown ----------------------------------------------------------------------------------


def _shown(name: str, value: Any) -> str:
    if value is None:
        return shell.MISSING
    if name == "bytes":
        return shell.size(value)
    if name == "source":
        return SOURCES[value]
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def table(known: Mapping[str, Facts], differing: Collection[str], tokenizer: Mapping[str, Any] | None = None) -> None:
    """Facts line by line, one column per model, with a mark where they differ."""
    names = [n for n in vars(next(iter(known.values()))) if n != "title"]
    rows: list[dict[str, str]] = []
    for name in names:
        values = {side: _shown(name, getattr(facts_, name)) for side, facts_ in known.items()}
        rows.append({"": NAMES.get(name, name), **values, "differs": "≠" if name in differing else ""})
    if tokenizer:
        rows.append({"": "one tokenizer", **_tokenizer(tokenizer)})
    frame = pd.DataFrame(rows)
    st.dataframe(
        frame,
        hide_index=True,
        height=38 + 35 * len(frame),
        column_config={
            "": st.column_config.TextColumn("fact", width=165),
            "differs": st.column_config.TextColumn(width=60),
            **{side: st.column_config.TextColumn(width=150) for side in known},
        },
        alt="Facts of the two models, one line each, with a sign where they differ.",
    )
    draw.how_to_read(
        "One fact a line; ≠ marks where the two differ. – is not known without the model's files. Differing layers and "
        "sizes are what a transfer has to bridge; a differing tokenizer rules some methods out."
    )
    draw.csv(frame.rename(columns={"": "fact"}), "models", "m.facts")


def _tokenizer(found: Mapping[str, Any]) -> dict[str, str]:
    same = found["same"]
    words = shell.MISSING if same is None else "yes" if same else "no"
    if found["shared"] is not None and not same:
        words += f": {found['shared']:,} tokens in both, {found['same_ids']:,} of them with one id"
    return {"teacher": words, "student": words, "differs": "≠" if same is False else ""}


def yaml_of(pair: Mapping[str, str], dtype: str) -> str:
    """A config of the pair for `paraknow similarity`."""
    values: dict[str, Any] = {"pair": dict(pair), "task": "demo:people"}
    if dtype != "float32":
        values["dtype"] = dtype
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def command(pair: list[str]) -> str:
    """The line that prints what the page shows."""
    return f"paraknow models {shlex.join(pair)}"
