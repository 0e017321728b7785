"""Try it: one prompt, and what every model of the run answers."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from pages.parts import artifacts, asking, draw, shell
from paraknow import data
from paraknow.errors import InputError
from paraknow.runs import questions
from paraknow.runs.store import Run

ACROSS = 3
TOKENS = 32


def section(run: Run, titles: dict[str, str]) -> None:
    """A prompt's form, and the answers side by side. titles: by model label, as far as they are known."""
    st.subheader("Try it")
    st.markdown(
        "Ask every model of this run the same question. Each writes its likeliest next token, one after another."
    )
    try:
        seeds = list(run.config().run_seeds)
    except InputError as error:
        st.info(shell.sentence(error))
        return
    _fill(run)
    with st.form("b.try", border=True):
        st.text_area("Prompt", key="b.try.prompt", max_chars=questions.PROMPT, height=100, persist_state="session")
        a, b, c = st.columns([3, 1, 1], vertical_alignment="bottom")
        a.text_input(
            "Expected answer (may be empty)", key="b.try.answer", max_chars=questions.ANSWER, persist_state="session"
        )
        b.number_input("Tokens at most", 1, questions.TOKENS, TOKENS, key="b.try.tokens", persist_state="session")
        if len(seeds) > 1:
            c.selectbox("Seed", seeds, key=f"b.try.seed.{run.id}", help="Of the transferred students.")
        st.checkbox(
            "The prompt is complete as it stands",
            key="b.try.raw",
            persist_state="session",
            help="Otherwise it is put into the model's chat template, or between “Question:” and “Answer:”.",
        )
        st.form_submit_button(
            "Ask all models",
            icon=":material/forum:",
            key="b.try.ask",
            on_click=asking.put,
            args=("try", run, "answers", lambda: _typed(run)),
        )
    found = asking.answered("try", run)
    if found is not None and isinstance(found.state.answer, questions.AnswersAnswer):
        st.caption("Prompt")
        question: Any = found.question
        st.text(question.prompt)
        _drawn(run, found.state.answer, titles)


def _typed(run: Run) -> dict[str, Any]:
    state = st.session_state
    return {
        "prompt": state["b.try.prompt"],
        "answer": state["b.try.answer"].rstrip(),
        "max_tokens": state["b.try.tokens"],
        "raw": state["b.try.raw"],
        "seed": state.get(f"b.try.seed.{run.id}"),
    }


def _fill(run: Run) -> None:
    """Buttons that fill in an item of the run: the first one its method gains, the first one it loses."""
    if not artifacts.has(run, "evaluate/items.parquet"):
        return
    try:
        lines = artifacts.item_lines(run, run.config().method.title, "student")
    except (artifacts.NotThere, InputError):
        return
    with st.container(horizontal=True):
        for change in ("gained", "lost", "both wrong"):
            first = lines[lines.change == change].head(1)
            for line in first.itertuples():
                st.button(
                    f"Fill in an item: {change}",
                    key=f"b.try.fill.{change}",
                    type="tertiary",
                    icon=":material/input:",
                    on_click=_filled,
                    args=(str(line.prompt), str(line.target)),
                )


def _filled(prompt: str, target: str) -> None:
    question = data.unrendered(prompt)
    space = " " if question is None and prompt.endswith(":") else ""
    st.session_state.update(
        {"b.try.prompt": question or prompt, "b.try.answer": space + target, "b.try.raw": question is None}
    )


def _drawn(run: Run, answer: questions.AnswersAnswer, titles: dict[str, str]) -> None:
    names = {one.label: titles.get(one.label) or one.label for one in answer.models}
    names |= {k: v for k, v in artifacts.model_titles(run, list(names)).items() if k not in titles}
    said = [one for one in answer.models if one.missing is None]
    for start in range(0, len(said), ACROSS):
        for column, one in zip(st.columns(ACROSS), said[start : start + ACROSS], strict=False):
            with column.container(border=True):
                seed = f", seed {one.seed}" if one.seed is not None else ""
                st.markdown(f"**{shell.escape(names[one.label])}**{seed}")
                st.text(one.text.strip() or "(nothing)")
                st.caption(_sure(one))
    for one in answer.models:
        if one.missing is not None:
            st.caption(f"Not available: {shell.escape(names[one.label])}. {shell.sentence(one.missing)}")
    rows = [{"model": names[one.label], **one.model_dump(exclude={"label", "missing"})} for one in said]
    table = pd.DataFrame(rows)
    columns = {
        "mean_logprob": "mean log-probability of what it said (nats per token)",
        "expected": "log-probability of the expected answer (nats)",
        "expected_tokens": "its tokens",
        "rank": "rank of its first token",
    }
    st.dataframe(table.rename(columns=columns), hide_index=True, placeholder=shell.MISSING)
    draw.how_to_read(
        "Near 0 a model is sure of what it says, far below it guesses. The expected answer's log-probability is summed "
        "over its tokens, the end token included; rank 1 means that its first token is the likeliest of all. One "
        "prompt is an example and no measurement: what holds over many items is above."
    )
    draw.csv(table, f"{run.id}-tried", "tried")


def _sure(one: questions.Said) -> str:
    how = "ended by itself" if one.ended else "stopped at the limit"
    text = f"{one.tokens} tokens, {how} · log-probability {_nats(one.mean_logprob)} per token"
    if one.rank is not None:
        text += f" · expected answer {_nats(one.expected)}, its first token at rank {one.rank}"
    return text


def _nats(value: float | None) -> str:
    if value is None:
        return shell.MISSING
    text = f"{value:.2f}"
    return "0.00" if text == "-0.00" else text.replace("-", "−")
