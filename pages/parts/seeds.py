"""Sections of the Sensitivity page: do the seeds agree, and which neurons carry the answer."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from pages.parts import artifacts, draw, shell
from paraknow.figures import neurons
from paraknow.figures.theme import short
from paraknow.runs.store import Run

WHAT = {
    "layer_scores": "layer scores (rank correlation)",
    "chosen_layers": "chosen layers (overlap)",
    "block": "chosen blocks (overlap, mean)",
    "map": "maps (rank correlation, mean)",
}


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """One line per model and kind of agreement: value, range over splits, what chance would give."""
    lines = []
    for (model, what), own in table.groupby(["model", "what"], sort=False):
        row = {"model": model, "agreement of": WHAT.get(what, what), "value": own.value.mean()}
        lines.append(row | {"from": own.lo.mean(), "to": own.hi.mean(), "by chance": own.chance.mean()})
    return pd.DataFrame(lines)


def _section(run: Run, name: str, title: str = "") -> pd.DataFrame | None:
    """A table under its heading; None, without a word, where the run has none, and with one where it is damaged."""
    if not artifacts.has(run, name):
        return None
    if title:
        st.subheader(title)
    return shell.read(artifacts.table, run, name)


def agreement(run: Run, task: str, titles: dict[str, str]) -> None:
    """Halves of the seeds against each other."""
    table = _section(run, "locate/agreement.parquet", "Do the seeds agree?")
    if table is None:
        return
    halves = table[(table.about == "split_half") & (table.task == task)]
    if halves.value.notna().any():
        n = int(halves.n.max())
        note = f"{short(titles['teacher'], 22)}; halves of n = {n} seeds; a mark per layer, in order"
        both(halves, "Would the other half choose the same?", note, titles, "s.halves")
        draw.how_to_read(
            "The seeds are halved, and each half chooses for itself. **A block at the line of chance was placed by the "
            "draw of the seeds, not by the task.** Layer scores: mean correlation between random halves, with the "
            "range over 200 of them."
        )
    else:
        st.info("Two seed examples at least are needed to see whether seeds agree.")
    draw.csv(table, f"{run.id}-agreement", "agreement")


def both(table: pd.DataFrame, title: str, note: str, titles: dict[str, str], key: str) -> None:
    """Overlaps of blocks and maps as a figure, everything that was held against each other as a table."""
    if table.what.isin(["block", "map"]).any():
        means = table.groupby("what").value.mean()
        alt = f"{title} " + "; ".join(f"{WHAT.get(k, k)} {v:.2f}" for k, v in means.items())
        draw.plot(draw.made(neurons.overlaps, table, title, note), key, alt)
    shown = summary(table).assign(model=lambda t: t.model.map(titles))
    two = st.column_config.NumberColumn(format="%.2f")
    formats = {name: two for name in ("value", "from", "to", "by chance")}
    st.dataframe(shown, hide_index=True, placeholder=shell.MISSING, column_config=formats)


def scores(run: Run, task: str, titles: dict[str, str]) -> None:
    """Attention and FFN of every layer, and the best neurons with the tokens they promote."""
    table = _section(run, "locate/attribution.parquet", "Neurons")
    if table is None:
        return
    sides = [m for m in ("teacher", "student") if ((table.model == m) & (table.task == task)).any()]
    if not sides:
        st.info("No seed of this task has an answer with a letter or digit in it, so no neuron was scored.")
        return
    many = table.layer.nunique() > neurons.MANY
    places = [st.container() for _ in sides] if many else st.columns(2)
    for column, model in zip(places, sides, strict=False):
        own = table[(table.model == model) & (table.task == task)]
        summed = own[(own.seed == -1) & own.score.notna()]
        if summed.empty:
            column.info(f"No score of {shell.escape(titles[model])} is known.", icon=":material/info:")
            continue
        best = summed.loc[summed.score.idxmax()]
        with column:
            draw.plot(
                draw.made(neurons.sublayers, own, titles[model]),
                f"s.sublayers.{model}",
                f"Gain in log p by layer of {titles[model]}; largest: {best.kind} of layer {best.layer}, "
                f"{best.score:.3g} nats.",
            )
    draw.how_to_read(
        "At the last position before the answer's last word: how much attention and FFN of each layer add to the "
        f"word's log-probability, read through the output head.{_first_order(run, task, titles)} The dashes are the "
        "sums over single neurons; where they are far from the bar, neurons share the effect or work against each "
        "other."
    )
    draw.csv(table, f"{run.id}-attribution", "attribution")
    promoted(run, task, titles)


def _first_order(run: Run, task: str, titles: dict[str, str]) -> str:
    """A sentence on how well the fast way ranks neurons, where both ways were computed."""
    try:
        table = artifacts.table(run, "locate/agreement.parquet")
    except artifacts.NotThere:
        return ""
    own = table[(table.about == "first_order") & (table.task == task) & (table.module != "value")]
    means = own.groupby("model").value.agg(["mean", "min"])
    if means.empty:
        return ""
    said = "; ".join(f"{shell.escape(titles[m])} {r['mean']:.3f} (least {r['min']:.3f})" for m, r in means.iterrows())
    return f" Exact and first-order scores rank neurons alike: mean rank correlation {said}."


def promoted(run: Run, task: str, titles: dict[str, str]) -> None:
    """The best neurons of one model with what they promote."""
    table = _section(run, "locate/promoted.parquet")
    if table is None:
        return
    table = table[table.task == task]
    a, b = st.columns(2)
    sides = [m for m in ("teacher", "student") if (table.model == m).any()]
    model = a.selectbox(
        "Neurons of", sides, key="s.promoted", format_func=lambda m: f"{m}: {titles[m]}", persist_state="session"
    )
    kind = b.segmented_control(
        "Kind", ["ffn", "attention"], default="ffn", key="s.kind", required=True, persist_state="session"
    )
    own = table[(table.model == model) & (table.kind == kind)].sort_values("place")
    shown = pd.DataFrame(
        {
            "layer": own.layer,
            "neuron": own.neuron,
            "score (nats)": own.score,
            "tokens it promotes": [
                " · ".join(repr(str(t))[1:-1].replace(" ", "␣") for t in tokens) for tokens in own.tokens
            ],
        }
    )
    st.dataframe(
        shown,
        hide_index=True,
        placeholder=shell.MISSING,
        column_config={"score (nats)": st.column_config.NumberColumn(format="%.3g")},
    )
    draw.how_to_read(
        "The neurons that add most to the answers' last words, summed over the seeds, and the tokens whose logits they "
        "raise most at their mean activation (logit lens of the value vector; ␣ is a space)."
    )
    draw.csv(
        table.assign(tokens=table.tokens.map(list), logits=table.logits.map(list)), f"{run.id}-promoted", "promoted"
    )
