"""The form's part on public benchmarks: which, on which records, how they are asked, and the switch for code."""

from __future__ import annotations

from typing import Any

import streamlit as st

from pages.parts import forms, shell
from paraknow.config import Benchmark, Evaluate
from paraknow.evaluate import catalogue

NAMES = "t.evaluate.benchmarks"
SHOWN = ("file", "shots", "shots_file", "limit", "max_tokens")
CHAT = {"as the model has one": None, "yes": True, "no": False}


def key(title: str, name: str) -> str:
    return forms.PREFIX + f"evaluate.benchmark.{title}.{name}"


def fill(evaluate: Evaluate) -> None:
    """Put a config's benchmarks into the form; call it before the widgets or from a callback."""
    st.session_state[NAMES] = [b.title for b in evaluate.benchmarks]
    for benchmark in evaluate.benchmarks:
        for name in SHOWN:
            value = getattr(benchmark, name)
            st.session_state[key(benchmark.title, name)] = "" if value is None and "file" in name else value
        words = {v: k for k, v in CHAT.items()}
        st.session_state[key(benchmark.title, "chat")] = words[benchmark.chat]
        st.session_state[key(benchmark.title, "name")] = benchmark.name


def fields() -> dict[str, Any]:
    """The widgets, and what they say as `evaluate` takes it: benchmarks, run_code."""
    known = list(catalogue.COMMON)
    titles = st.multiselect(
        "Benchmarks",
        known + [n for n in st.session_state.get(NAMES, []) if n not in known],
        accept_new_options=True,
        placeholder="none",
        key=NAMES,
        help="Names of lm-eval's tasks and groups, or humaneval, mbpp, super_ni. `paraknow benchmarks` searches them.",
        persist_state="session",
    )
    forms.slot("evaluate.benchmarks")
    return {
        "benchmarks": [_one(title) for title in titles],
        "run_code": _switch([st.session_state.get(key(t, "name"), t) for t in titles]),
    }


def _one(title: str) -> dict[str, Any]:
    name = st.session_state.get(key(title, "name"), title)
    values: dict[str, Any] = {"name": name, "label": title if name != title else None}
    st.caption(f"**{shell.escape(title)}**")
    columns = st.columns([3, 1, 3, 1, 1, 2])
    for place, field in zip(columns, SHOWN, strict=False):
        with place:
            if "file" in field:
                values[field] = _path(title, field)
            else:
                values[field] = forms.field(Benchmark, field, f"evaluate.benchmark.{title}.{field}")
    with columns[-1]:
        words = st.selectbox(
            "Chat template",
            list(CHAT),
            key=key(title, "chat"),
            help=Benchmark.model_fields["chat"].description,
            persist_state="session",
        )
        values["chat"] = CHAT[words]
    return values


def _path(title: str, field: str) -> str | None:
    text = st.text_input(
        forms.label(field),
        max_chars=1000,
        key=key(title, field),
        placeholder="from a hub" if field == "file" else "none",
        help=Benchmark.model_fields[field].description,
        persist_state="session",
    )
    return text.strip() or None


def _switch(names: list[str]) -> bool:
    """The switch for code, with what it means; shown where a benchmark needs it."""
    if not set(names) & set(catalogue.RUN_CODE):
        return False
    allowed = forms.field(Evaluate, "run_code", "evaluate.run_code")
    st.warning(
        "HumanEval and MBPP are scored by running the code that the models write. It runs in a sandbox on this "
        "machine (no network, no files of yours, limits on time and memory), and only while this is on."
    )
    return allowed
