"""The Sensitivity page's own questions: a prompt of one's own, and single weights of a pooled matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import streamlit as st

from pages.parts import asking, draw, shell
from paraknow.figures import heatmaps, prompts, taskmaps
from paraknow.figures.theme import short
from paraknow.runs import questions
from paraknow.runs.store import Run

SIDES = ("teacher", "student")


# -- a prompt of one's own -------------------------------------------------------------------------------


def section(run: Run, task: str, whole: pd.DataFrame, titles: dict[str, str]) -> None:
    """Ask for the sensitivity of one prompt and hold it against the task's (`whole`: its cells over all seeds)."""
    st.subheader("A prompt of your own")
    st.markdown(
        "Which weights does the answer to *this* question depend on? The worker computes |w · ∇| for one question and "
        "its answer, in the models of this run."
    )
    with st.form("s.own", border=True):
        st.text_area("Question", key="s.own.prompt", max_chars=questions.PROMPT, height=68, persist_state="session")
        left, right = st.columns([3, 2], vertical_alignment="bottom")
        left.text_input("Answer", key="s.own.answer", max_chars=questions.ANSWER, persist_state="session")
        right.segmented_control(
            "Models",
            SIDES,
            selection_mode="multi",
            default=SIDES,
            format_func=lambda m: shell.escape(titles[m]),
            key="s.own.models",
            persist_state="session",
        )
        st.form_submit_button(
            "Show what it depends on",
            icon=":material/troubleshoot:",
            key="s.own.ask",
            on_click=asking.put,
            args=("own", run, "sensitivity", _typed),
        )
    found = asking.answered("own", run)
    if found is not None and isinstance(found.state.answer, questions.SensitivityAnswer):
        _drawn(run, found.question, found.state.answer, task, whole, titles)


def _typed() -> dict[str, Any]:
    state = st.session_state
    chosen = [m for m in SIDES if m in (state.get("s.own.models") or ())]
    return {"prompt": state["s.own.prompt"], "answer": state["s.own.answer"], "models": chosen or SIDES}


def _drawn(
    run: Run, question: Any, answer: questions.SensitivityAnswer, task: str, whole: pd.DataFrame, titles: dict[str, str]
) -> None:
    st.caption("Question and answer")
    st.text(f"{question.prompt}\n{question.answer}")
    _surprise(answer, titles)
    cells = pd.DataFrame([cell.model_dump() for cell in answer.cells])
    shown = cells[cells.module.isin(heatmaps.MODULES)]
    span = heatmaps.clip_range(shown.share.to_numpy())
    sides = [m for m in SIDES if m in set(cells.model)]
    if span is None:
        st.info("Every value is zero.")
        return
    for column, model in zip(st.columns(2), sides, strict=False):
        own = shown[shown.model == model]
        top = own.loc[own.share.idxmax()]
        chart = prompts.share_map(own, span, titles[model])
        where = f"{top.module} of layer {top.layer}: {top.share:.1%}"
        alt = f"Heat map of {titles[model]} for this prompt; largest in {where}."
        draw.chart(chart, alt, f"s.own.map.{model}", column)
    draw.how_to_read(
        "One cell is one matrix: its share of the model's summed |w · ∇| for this one question and answer (n = 1, so "
        "there is no interval). Both maps share one logarithmic colour range."
    )
    table = prompts.differences(cells, whole)
    shares = {"prompt": "this prompt", "task": task}
    for column, model in zip(st.columns(2), sides, strict=False):
        own = table[table.model == model]
        if own.empty:
            continue
        top = own.loc[own.difference.abs().idxmax()]
        alt = (
            f"{titles[model]}: {prompts.WHAT}; most apart in {top.module} of layer {top.layer}: {top.difference:+.1%}."
        )
        title = f"{short(titles[model], 34)}: {prompts.WHAT}"
        note = f"{prompts.NOTE}, against {short(task, 24)}"
        chart = taskmaps.difference_map(own, shares, taskmaps.bound(table), titles[model], title, note, True)
        draw.chart(chart, alt, f"s.own.difference.{model}", column)
    draw.how_to_read(
        f"Orange: the answer to this prompt depends more on the matrix than those of {shell.escape(task)} do "
        "(its seed examples, together); blue: less; white: as much. One prompt always differs a little from many."
    )
    draw.csv(cells.merge(table, on=["model", "layer", "module"], how="left"), f"{run.id}-own-prompt", "own")


def _surprise(answer: questions.SensitivityAnswer, titles: dict[str, str]) -> None:
    """How likely each model holds the answer, whole and token by token."""
    told = pd.DataFrame([questions.likelihood(one) | {"model": titles[one.model]} for one in answer.models])
    st.dataframe(
        told[["model", "loss", "probability"]],
        hide_index=True,
        column_config={
            "loss": st.column_config.NumberColumn("loss per answer token (nats)", format="%.3g"),
            "probability": st.column_config.NumberColumn("probability of the whole answer", format="%.3g"),
        },
    )
    with st.expander("Token by token"):
        rows = [
            {"model": titles[one.model], "token": token.text, "log-probability (nats)": token.logprob}
            for one in answer.models
            for token in one.tokens
        ]
        st.dataframe(pd.DataFrame(rows), hide_index=True)


# -- single weights --------------------------------------------------------------------------------------


def single_weights(
    run: Run,
    place: tuple[str, int, str],
    values: Any,
    shape: Sequence[int],
    region: heatmaps.Region | None,
    block: heatmaps.Rectangle | None,
    titles: dict[str, str],
) -> None:
    """Where a map is pooled: the region that is looked at, weight by weight, computed when it is asked for.

    place: model, layer and module; values: the pooled map of the matrix of `shape`.
    """
    if list(values.shape) == list(shape):
        return
    small = region is not None and max(region.row_end - region.row, region.col_end - region.col) <= questions.SIDE
    model, layer, module = place
    st.button(
        "Show single weights",
        key="s.single",
        icon=":material/grain:",
        disabled=not small,
        help=f"For a box of at most {questions.SIDE} × {questions.SIDE} weights: draw one on the map first.",
        on_click=asking.put,
        args=("single", run, "region", lambda: _asked(place, region)),
    )
    asked = asking.held("single", run)
    if not small or asked is None or (asked.question is not None and not _about(asked.question, place, region)):
        return
    found = asking.answered("single", run)
    if found is None or not isinstance(found.state.answer, questions.RegionAnswer) or found.state.values is None:
        return
    exact, n = found.state.values, found.state.answer.examples
    title = f"{titles[model]}: |w · ∇| of single weights of {module} in layer {layer}"
    span = heatmaps.clip_range(exact, (5.0, 99.9))
    figure = heatmaps.matrix_map(exact, shape, title, block, None, span, covers=region)
    size = f"{exact.shape[0]} × {exact.shape[1]}"
    draw.plot(figure, "s.single.map", f"{title}, {size} weights; the largest is {exact.max():.3g} nats.")
    draw.how_to_read(
        f"Each pixel is one weight; computed now, summed over the run's {n} seed examples of all tasks, in nats. "
        "Logarithmic colours, clipped at percentiles 5 and 99.9 of what is shown."
    )
    draw.csv(pd.DataFrame(exact), f"{run.id}-{model}-{layer}-{module}-weights", "single", "Single weights (CSV)")


def _asked(place: tuple[str, int, str], region: heatmaps.Region | None) -> dict[str, Any]:
    assert region is not None  # else the button is disabled
    rows, cols = (region.row, region.row_end), (region.col, region.col_end)
    return {"model": place[0], "layer": place[1], "module": place[2], "rows": rows, "cols": cols}


def _about(question: Any, place: tuple[str, int, str], region: heatmaps.Region | None) -> bool:
    return all(getattr(question, name) == value for name, value in _asked(place, region).items())
