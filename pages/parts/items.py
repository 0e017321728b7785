"""Item by item on the Benchmarks page: what a model gained and lost, each item openable with all answers beside it."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from pages.parts import artifacts, draw, shell
from paraknow.evaluate import items as stored
from paraknow.figures import tables
from paraknow.runs.store import Run

PER_PAGE = 8
MARKS = {"gained": "▲ gained", "lost": "▽ lost"}


def section(run: Run, kinds: dict[str, str], titles: dict[str, str]) -> None:
    """Every item with two models' answers: searched, filtered, gained and lost first, each openable."""
    st.subheader("Item by item")
    items = shell.read(artifacts.table, run, "evaluate/items.parquet")
    if items is None:
        return
    movable = [m for m in kinds if m not in ("teacher", "student")] or ["teacher"]
    a, b, c = st.columns(3)
    model = a.selectbox("Model", movable, format_func=titles.get, key="b.model")
    reference = b.selectbox(
        "Against", [m for m in ("student", *kinds) if m != model], format_func=titles.get, key="b.reference"
    )
    search = c.text_input(
        "Search",
        max_chars=500,
        key="b.search",
        placeholder="words of a question or an answer",
        help="Every word must occur.",
    )
    every = artifacts.item_lines(run, model, reference)
    counts = every.change.value_counts()
    present = [name for name in stored.CHANGES if name in counts]
    changes = st.pills(
        "Show",
        present,
        selection_mode="multi",
        default=[name for name in present if name in ("gained", "lost")],
        format_func=lambda name: f"{name} ({counts[name]})",
        key=f"b.change.{model}.{reference}",
        help="Nothing chosen shows all.",
    )
    tasks, groups = ([str(x) for x in dict.fromkeys(every[name])] for name in ("task", "group"))
    d, e = st.columns(2)
    suites = d.multiselect("Suites", tasks, key="b.suites", placeholder="all") if len(tasks) > 1 else []
    chosen = (
        e.multiselect(
            "Groups", groups, key="b.groups", placeholder="all", format_func=lambda g: tables.GROUPS.get(g, g)
        )
        if len(groups) > 1
        else []
    )
    st.markdown(
        f"Of {len(every)} items, {shell.escape(titles[model])} gains **{counts.get('gained', 0)}** and loses "
        f"**{counts.get('lost', 0)}** against {shell.escape(titles[reference])}."
    )
    found = stored.select(every, search, changes, suites, chosen)
    if found.empty:
        st.caption("No item is like that.")
        return
    draw.csv(found, f"{run.id}-items", "items")
    pages = max(1, -(-len(found) // PER_PAGE))
    key = f"b.page.{model}.{reference}.{changes}.{suites}.{chosen}.{search}"
    page = st.number_input(f"Page, of {pages}", 1, pages, 1, key=key) if pages > 1 else 1
    for line in found.iloc[(page - 1) * PER_PAGE : page * PER_PAGE].itertuples():
        mark = MARKS.get(line.change, line.change)
        box = st.expander(
            f"{mark} · {shell.escape(line.task)} · {shell.escape(' '.join(str(line.prompt).split())[:90])}",
            key=f"b.item.{model}.{reference}.{line.task}.{line.group}.{line.doc_id}",
            on_change="rerun",
        )
        if box.open:  # closed ones cost nothing, neither here nor in the browser
            with box:
                item(items, line, [model, reference], titles)


def item(items: pd.DataFrame, line: Any, compared: list[str], titles: dict[str, str]) -> None:
    """One item: prompt, right answer, every model's answer beside the others', and what each gave the candidates."""
    st.caption("Prompt")
    st.text(line.prompt)
    st.caption("Right answer")
    st.text(line.target)
    asked = items[(items.task == line.task) & (items.group == line.group) & (items.doc_id == line.doc_id)]
    order = list(dict.fromkeys(["teacher", "student", *compared[::-1]]))
    shown = asked[asked.model.isin(order)].sort_values("model", key=lambda m: m.map(order.index), kind="stable")
    answers = [(r, _rank(r)) for r in shown.itertuples()]
    first = {r.model: (r, rank) for r, rank in reversed(answers)}
    for place, (r, rank) in zip(st.columns(len(first)), (first[m] for m in order if m in first), strict=True):
        with place.container(border=True, height="stretch"):
            card(r, rank, titles, int((shown.model == r.model).sum()))
    table = pd.DataFrame(
        {
            "model": shown.model.map(titles),
            "seed": shown.seed.where(shown.seed >= 0),
            "answer": shown.answer,
            "correct": shown.correct,
            "log-probability of the right answer (nats)": shown.logprob,
            "its rank": pd.array([rank for _, rank in answers], "Int64"),
        }
    )
    for name, title in (("score", "ROUGE-L"), ("note", "note")):  # older runs have neither
        if name in shown and shown[name].notna().any():
            table[title] = shown[name]
    st.dataframe(table, hide_index=True, placeholder=shell.MISSING)
    for r in shown.itertuples() if "raw" in shown else ():
        if isinstance(r.raw, str):
            st.caption(f"All that {shell.escape(titles[r.model])} wrote")
            st.text(r.raw or "(nothing)")
    candidates(shown, titles)


def _rank(line: Any) -> int | None:
    known = pd.api.types.is_list_like(line.candidates) and pd.api.types.is_list_like(line.candidate_logprobs)
    return stored.rank(line.target, line.candidates, line.candidate_logprobs) if known else None


def card(line: Any, rank: int | None, titles: dict[str, str], seeds: int) -> None:
    """One model's answer; of several seeds the first, which is said."""
    sign = ":material/check_circle: right" if line.correct else ":material/cancel: wrong"
    st.markdown(f"**{shell.escape(titles[line.model])}** · {sign}" + (f" · seed {line.seed}" if seeds > 1 else ""))
    st.text(shell.MISSING if pd.isna(line.answer) else line.answer)
    said = []
    if pd.notna(line.logprob):
        said.append(f"log p of the right answer {round(line.logprob, 2) + 0.0:.2f} nats".replace("-", "−"))
    if rank:
        said.append(f"rank {rank} of {len(line.candidates)}")
    st.caption("; ".join(said) or shell.MISSING)


def candidates(shown: pd.DataFrame, titles: dict[str, str]) -> None:
    """What every model gave the candidates, most probable first for the first model."""
    lists = {
        titles[r.model] + (f", seed {r.seed}" if r.seed > 0 else ""): r
        for r in shown.itertuples()
        if pd.api.types.is_list_like(r.candidates)
    }
    if lists:
        first = next(iter(lists.values()))
        table = pd.DataFrame(
            {"candidate": list(first.candidates), **{n: list(r.candidate_logprobs) for n, r in lists.items()}}
        )
        st.caption("Log-probability of each candidate (nats, summed over its tokens)")
        st.dataframe(table, hide_index=True, height=240)
    elif shown.answer.isna().any() and shown.logprob.notna().all():
        st.caption(
            "The harness scores whether the right answer is the greedy continuation; it keeps no other text, so a "
            "wrong answer is missing."
        )
