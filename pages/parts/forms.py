"""Form widgets made from the config's own schema: descriptions as help, defaults, limits."""

from __future__ import annotations

import math
import re
import types
from typing import Any, Literal, Union, get_args, get_origin

import streamlit as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pages.parts import shell

PREFIX = "t."
SLOTS = "form_slots"  # in the session: the places under the fields, for what refuses one
NOT_HERE = {  # fields of the config that the form deliberately leaves out, in words
    "method.label": "labels, for one method several times with other settings",
    "baselines": "settings of baselines",
    "evaluate.benchmarks.label": "labels of benchmarks",
}
PARTS = {
    "locate": "Locate",
    "similarity": "Similarity",
    "tune": "Tune",
    "evaluate": "Evaluate",
    "evaluate.benchmarks": "Benchmarks",
    "placement": "Name, seeds, device",
    "seeds": "Name, seeds, device",
    "seed": "Name, seeds, device",
    "device": "Name, seeds, device",
}
_NAMED = re.compile(r"^(?:settings: )?'?([a-z_]+(?:\.[\w-]+)*)'?:")
_MODEL = re.compile(r"^model ['\"](.+?)['\"]")


def begin() -> None:
    """A new drawing of the form: no field has a place under it yet."""
    st.session_state[SLOTS] = {}


def slot(path: str) -> None:
    """A place under the field just drawn, empty unless something refuses it."""
    st.session_state.setdefault(SLOTS, {})[path] = st.empty()


def point_at(sentence: str, method: str, pair: dict[str, str]) -> str | None:
    """Put a refusal under the field that it names at its beginning; returns the part of the form to look under.

    None where it names no field. `method` is the chosen one's name; `pair` says which field holds which model.
    """
    slots = st.session_state.get(SLOTS, {})
    path = ""
    if model := _MODEL.match(sentence):
        path = next((f"pair.{side}" for side, spec in pair.items() if spec == model[1]), "")
    elif named := _NAMED.match(sentence):
        path = named[1]
    parts = path.split(".")
    tried = [".".join(parts[:k]) for k in range(len(parts), 0, -1)] if path else []
    tried += [f"method.{method}.{'.'.join(parts[1:])}"] if parts[0] == "method" else []
    tried += ["pair.teacher"] if path == "pair" else []
    found = next((p for p in tried if p in slots), None)
    if found is None:
        return None
    slots[found].error(shell.sentence(sentence), icon=":material/error:")
    return next((PARTS[p] for p in (".".join(found.split(".")[:2]), found.split(".")[0]) if p in PARTS), None)


def label(name: str) -> str:
    """A field's name as a label."""
    return name.replace("_", " ").capitalize()


def _bounds(info: FieldInfo) -> tuple[Any, Any]:
    low = high = None
    for limit in info.metadata:
        low = getattr(limit, "ge", None) if getattr(limit, "ge", None) is not None else low
        low = getattr(limit, "gt", None) if getattr(limit, "gt", None) is not None else low
        high = getattr(limit, "le", None) if getattr(limit, "le", None) is not None else high
        high = getattr(limit, "lt", None) if getattr(limit, "lt", None) is not None else high
    return low, high


def _step(default: Any, high: Any) -> float:
    """What the buttons of a number add: 1, or 0.01 below 1, and never more than the default's first digit."""
    step = 0.01 if isinstance(high, int | float) and high <= 1 else 1.0
    return min(step, 10.0 ** math.floor(math.log10(abs(default)))) if default else step


def _words(annotation: Any) -> tuple[str, ...]:
    """The words of a field that takes a whole number or one of some words; none for other fields."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else ()
    return tuple(w for kind in kinds if get_origin(kind) is Literal for w in get_args(kind))


def _bare(annotation: Any) -> tuple[Any, bool]:
    """A field's type without `| None`, and whether None is allowed."""
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [a for a in get_args(annotation) if a is not type(None)]
        return kinds[0], len(kinds) < len(get_args(annotation))
    return annotation, False


def field(model: type[BaseModel], name: str, path: str, options: list[str] | None = None) -> Any:
    """The widget of one field with a place for refusals under it, and its value as the config takes it.

    `path` is its dotted place there.
    """
    value = _widget(model, name, path, options)
    slot(path)
    return value


def _widget(model: type[BaseModel], name: str, path: str, options: list[str] | None) -> Any:
    info = model.model_fields[name]
    kind, optional = _bare(info.annotation)
    words = _words(info.annotation) if get_origin(kind) is not Literal else ()
    key = PREFIX + path
    common: dict[str, Any] = {"key": key, "help": info.description, "persist_state": "session"}
    if key not in st.session_state:
        st.session_state[key] = as_widget(info.get_default(call_default_factory=True))
    title = label(name)
    if words:
        st.session_state[key] = str(st.session_state[key])
        known = list(dict.fromkeys([*words, str(info.default), st.session_state[key]]))
        picked = st.selectbox(title, known, accept_new_options=True, **common)
        number = str(picked).isdecimal() and len(str(picked)) < 20
        return int(picked) if number and picked not in words else picked
    if get_origin(kind) is Literal:
        return st.selectbox(title, get_args(kind), **common)
    if get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        choices = list(get_args(inner)) if get_origin(inner) is Literal else list(options or ())
        choices += [v for v in st.session_state[key] if v not in choices]
        picked = st.multiselect(
            title,
            choices,
            accept_new_options=get_origin(inner) is not Literal,
            placeholder="the default" if optional else "none",
            **common,
        )
        return picked or (None if optional else [])
    if kind is bool:
        return st.toggle(title, **common)
    low, high = _bounds(info)
    if kind is int:
        return st.number_input(title, min_value=low, max_value=high, step=1, placeholder="no limit", **common)
    if kind is float:
        if isinstance(st.session_state[key], int):
            st.session_state[key] = float(st.session_state[key])  # all numbers of a widget must be of one type
        lowest, highest = (None if x is None else float(x) for x in (low, high))
        step = _step(info.get_default(call_default_factory=True), high)
        return st.number_input(
            title, min_value=lowest, max_value=highest, step=step, format="%.4g", placeholder="none", **common
        )
    return st.text_input(title, max_chars=500, **common)


def as_widget(value: Any) -> Any:
    """A config value as widgets keep it."""
    if isinstance(value, tuple):
        return list(value)
    return value


def fields(model: type[BaseModel], part: str, columns: int = 3, options: list[str] | None = None) -> dict[str, Any]:
    """All fields of one part of the config, in columns."""
    return placed(model, {name: f"{part}.{name}" for name in model.model_fields}, columns, options)


def placed(
    model: type[BaseModel], paths: dict[str, str], columns: int, options: list[str] | None = None
) -> dict[str, Any]:
    """Fields of a part by name, each at its own dotted place, in rows of `columns`."""
    values, names = {}, list(paths)
    for start in range(0, len(names), columns):
        for place, name in zip(st.columns(columns), names[start : start + columns], strict=False):
            with place:
                values[name] = field(model, name, paths[name], options)
    return values
