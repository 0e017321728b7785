"""Task against task on the Sensitivity page: two maps, their difference, and what the tasks have in common."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import streamlit as st

from pages.parts import artifacts, draw, seeds, shell
from paraknow.errors import InputError
from paraknow.figures import heatmaps, taskmaps
from paraknow.figures.theme import short
from paraknow.runs import artifacts as kinds
from paraknow.runs.store import Run

NEURONS = "locate/neurons.parquet"


@st.cache_data(max_entries=8, show_spinner=False)
def _overlap(cells: pd.DataFrame, path: str, content: str, one: str, other: str) -> pd.DataFrame:
    """The overlap of two tasks, neurons among it where the run has them; their table is large and not kept."""
    neurons = pd.DataFrame()
    if path:
        folder = Path(path).parents[1]
        neurons = kinds.table(folder, NEURONS, "task model layer kind neuron score".split())
        neurons = neurons[neurons.task.isin([one, other])]
    return taskmaps.overlap(cells, neurons, one, other)


def section(run: Run, whole: pd.DataFrame, titles: dict[str, str]) -> None:
    """Everything about two tasks; nothing where the run has one. `whole`: sums over seeds of all tasks."""
    table = artifacts.table(run, "locate/agreement.parquet") if _sound(run) else pd.DataFrame()
    judged = table[table.about == "tasks"] if len(table) else table
    names = list(dict.fromkeys([*whole.task, *(judged.task if len(judged) else ()), *_others(judged)]))
    pairs = [(a, b) for k, a in enumerate(names) for b in names[k + 1 :]]
    if not pairs:
        return
    st.subheader("Task against task")
    chosen = pairs[0]
    if len(pairs) > 1:
        chosen = st.selectbox(
            "Tasks", pairs, key="s.tasks", format_func=lambda p: f"{p[0]} and {p[1]}", persist_state="session"
        )
    one, other = chosen
    both = whole[whole.task.isin(chosen)]
    if both.task.nunique() == 2:
        maps(run, both, one, other, titles)
        in_common(run, both, one, other, titles)
    if len(judged):
        own = judged[(judged.task == one) & (judged.other == other) | (judged.task == other) & (judged.other == one)]
        agreement(own, one, other, titles)


def _sound(run: Run) -> bool:
    """Whether the table of agreement is there and whole; where it is damaged, the section before has said so."""
    try:
        return artifacts.has(run, "locate/agreement.parquet") and len(artifacts.table(run, "locate/agreement.parquet"))
    except artifacts.NotThere:
        return False


def _others(judged: pd.DataFrame) -> list[str]:
    return list(judged.other) if len(judged) else []


def maps(run: Run, both: pd.DataFrame, one: str, other: str, titles: dict[str, str]) -> None:
    """One model's two maps in one colour range, and their difference; the model is chosen, the ranges hold for both."""
    model = st.segmented_control(
        "Model",
        ["teacher", "student"],
        default="teacher",
        key="s.tasks.model",
        format_func=lambda m: f"{m}: {shell.escape(titles[m])}",
        required=True,
        persist_state="session",
    )
    shown = both[both.module.isin(heatmaps.MODULES)]
    span = heatmaps.clip_range(shown["share"].to_numpy())
    if span is None:
        st.info("Every value of these tasks is zero or missing.")
        return
    differences = {m: taskmaps.difference(shown[shown.model == m], one, other) for m in ("teacher", "student")}
    own, places = shown[shown.model == model], st.columns(3)
    for place, task in zip(places, (one, other), strict=False):
        part = own[own.task == task]
        cells = part[["layer", "module", *heatmaps.UNITS]]
        chart = draw.made(
            heatmaps.layer_map,
            cells,
            "share",
            span,
            titles[model],
            None,
            "share of the summed |w · ∇|",
            False,
            short(task, 30),
        )
        alt = f"Share of the summed sensitivity of {titles[model]} for {task}, by layer and matrix."
        draw.chart(chart, alt, f"s.tasks.map.{task}", place)
    apart = differences[model]
    note = f"orange: more in {short(one, 24)}; blue: in {short(other, 24)}"
    limit, sides = taskmaps.bound(*differences.values()), {"one": one, "other": other}
    chart = draw.made(taskmaps.difference_map, apart, sides, limit, titles[model], "Difference of the shares", note)
    most = apart.loc[apart.difference.abs().idxmax()] if apart.difference.notna().any() else None
    alt = f"Share for {one} minus share for {other}."
    if most is not None:
        alt += f" Largest: {most.module} of layer {most.layer}, {most.difference:+.2%}."
    draw.chart(chart, alt, "s.tasks.difference", places[2])
    draw.how_to_read(
        "The first two maps share one logarithmic colour range, for both models. The third is share minus share, in "
        f"points of the whole: orange where {shell.escape(one)} leans on a matrix more, blue where "
        f"{shell.escape(other)} does, pale where the two do not differ."
    )
    made = pd.concat([t.assign(model=m) for m, t in differences.items()])
    draw.csv(made.rename(columns={"one": one, "other": other}), f"{run.id}-tasks-difference", "tasks-difference")


def in_common(run: Run, both: pd.DataFrame, one: str, other: str, titles: dict[str, str]) -> None:
    """The top matrices and neurons of two tasks, and how many are the same ones, beside chance."""
    cells = both[["task", "model", "layer", "module", "share"]].reset_index(drop=True)
    try:
        place = artifacts.fingerprint(run, NEURONS) if artifacts.has(run, NEURONS) else ("", "")
        table = _overlap(cells, *place, one, other)
    except (artifacts.NotThere, InputError) as error:
        st.info(shell.sentence(error), icon=":material/info:")
        return
    said = "; ".join(f"{titles[r.model]}, {r.of}: {r.common} of {r.k}" for r in table.itertuples())
    draw.plot(
        draw.made(taskmaps.overlap_chart, table, titles, one, other), "s.tasks.overlap", f"In both tasks' top: {said}."
    )
    draw.how_to_read(
        "For each task the matrices with the largest share and the neurons with the highest score are taken, the same "
        "number for both. **Where a diamond lies in the grey bar, the two tasks have no more in common than random "
        "choices would.** Bar: 95 % of random choices of as many (hypergeometric); the line in it is their mean."
    )
    draw.csv(table, f"{run.id}-tasks-overlap", "tasks-overlap")


def agreement(own: pd.DataFrame, one: str, other: str, titles: dict[str, str]) -> None:
    """Whether the two tasks would choose the same layers and blocks."""
    title = f"Would {short(one, 26)} and {short(other, 26)} choose the same blocks?"
    n = int(own.n.max()) if own.n.notna().any() else 0
    seeds.both(own, title, f"n = {n} seed examples each; one mark per layer, in order", titles, "s.tasks.chart")
    draw.how_to_read("The same comparison as between halves: near 1, one place serves both; at chance, each its own.")
