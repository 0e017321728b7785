"""The catalogue of methods in words, what a run's methods were given, and what they kept of their own work."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from pages.parts import artifacts, draw, shell
from paraknow import access, methods, pairing, passes
from paraknow.config import RunConfig
from paraknow.errors import ParaKnowError
from paraknow.figures import steps
from paraknow.figures.tables import GIVEN, by_model
from paraknow.methods.base import Method
from paraknow.runs.store import Run

PARADIGMS = {
    "pre-align": "knowledge is translated before it is put in (pre-align)",
    "post-align": "weights are put in first and fine-tuned afterwards (post-align)",
    "language-based": "the student learns from text or from the teacher's outputs (language-based)",
    "control": "a control: what a method must beat",
}


def known_answer(method: Method) -> bool:
    """Whether it stands among methods although it is no transfer: the oracle of a cloned pair."""
    return method.paradigm == "control" and method.needs_clone


def names(controls: bool = False) -> list[str]:
    """Methods (or controls) in the order of the picker: by paradigm, then by title."""
    order = list(PARADIGMS)
    found = [m for m in methods.catalogue().values() if (m.paradigm == "control" and not known_answer(m)) == controls]
    return [m.name for m in sorted(found, key=lambda m: (order.index(m.paradigm), m.title.lower()))]


def option(name: str) -> str:
    """A method as the picker lists it: title and paradigm."""
    method = methods.catalogue().get(name)
    if method is None:
        return name
    if method.paradigm == "control":
        return f"{method.title} · known answer" if known_answer(method) else method.title
    return f"{method.title} · {method.paradigm}"


def about(method: Method) -> None:
    """What a method is, needs and costs, in words."""
    what = "the known answer of a cloned pair" if known_answer(method) else PARADIGMS[method.paradigm]
    needs = ", ".join(method.needs) or "nothing but the pair and the task"
    st.caption(
        f"**{shell.escape(method.title)}**: {shell.escape(what)}. **Needs** {shell.escape(needs)}. "
        f"**Costs** {shell.escape(method.cost)}. **Source** {shell.escape(method.reference)}."
    )


@st.cache_data(max_entries=16, ttl=20, show_spinner=False)
def refusals(teacher: str, student: str) -> dict[str, str]:
    """Every method that cannot work on this pair, with its sentence; settings at their defaults.

    Empty where the pair itself cannot be read (which is said elsewhere). Nothing is asked of a hub.
    """
    try:
        found = pairing.refusals(teacher, student)
    except ParaKnowError:
        return {}
    return {name: access.said(why) for name, why in found.items() if name in methods.catalogue()}


def table(refused: dict[str, str] | None) -> pd.DataFrame:
    """The catalogue, one line per method; `refused` is None where the pair is not known here."""
    catalogue = methods.catalogue()
    lines = []
    for name in (*names(), *names(controls=True)):
        m = catalogue[name]
        line = {"name": name, "title": m.title, "paradigm": "known answer" if known_answer(m) else m.paradigm}
        if refused is not None:
            line["this pair"] = refused.get(name, "possible")
        lines.append(line | {"needs": ", ".join(m.needs) or None, "cost": m.cost, "reference": m.reference})
    return pd.DataFrame(lines)


def expander(refused: dict[str, str] | None) -> None:
    """All methods as a table."""
    with st.expander("All methods"):
        shown = table(refused)
        st.dataframe(shown, hide_index=True, placeholder=shell.MISSING, alt="All methods of the catalogue.")
        draw.how_to_read(
            "Paradigm: pre-align translates knowledge before it is put in, post-align afterwards, language-based goes "
            "through text or outputs. “this pair” says whether a method can work on the chosen models with its default "
            "settings, as far as their headers tell."
        )
        draw.csv(shown, "methods", "methods")


def tuned(config: RunConfig) -> int:
    """How many of a config's models are fine-tuned, over its seeds."""
    found = methods.candidates(config)
    return len(config.run_seeds) * sum(passes.is_tuned(c, found[0]) for c in found)


# -- in the form ------------------------------------------------------------------------------------


def key(method: str, setting: str) -> str:
    """The place of a setting in the form. The rank is one for all methods; other settings are each method's own."""
    return f"method.{setting}" if setting == "rank" else f"method.{method}.{setting}"


def left_out(config: RunConfig) -> str | None:
    """A sentence where a config holds what the form cannot: labels, and baselines with settings of their own."""
    lost = [f"the label {config.method.label}"] if config.method.label else []
    names_ = [m.name for m in config.baselines]
    for choice in config.baselines:
        if choice.settings() or choice.label or names_.count(choice.name) > 1 or choice.name == config.method.name:
            lost.append(f"the baseline {choice.title}")
    if not lost:
        return None
    return (
        f"The form cannot hold {', '.join(lost)}; for all of it, run the config of the Runs page with `paraknow run`."
    )


def plain_baselines(config: RunConfig) -> list[str]:
    """Baselines that the form can hold: each method once, with its default settings."""
    return list(
        dict.fromkeys(
            m.name for m in config.baselines if not m.settings() and not m.label and m.name != config.method.name
        )
    )


# -- what methods were given ------------------------------------------------------------------------


def budgets(run: Run, titles: dict[str, str]) -> None:
    """What every model of a run was given, and where one got more than the examined method."""
    name = "tune/budgets.parquet"
    if not artifacts.has(run, name):
        st.info("Missing: this run was made before budgets were kept.", icon=":material/info:")
        return
    found = shell.read(artifacts.table, run, name)
    if found is None:
        return
    if found.empty:
        st.info(f"{name} of this run holds no rows.", icon=":material/info:")
        return
    shown = by_model(found).assign(title=lambda t: [titles.get(m, m) for m in t.model])
    for line in shown[shown.more != ""].itertuples():
        st.markdown(
            f"▲ **{shell.escape(line.title)}** was given more than the examined method: {shell.escape(line.more)}."
        )
    if not (shown.more != "").any():
        st.markdown("No model was given more than the examined method.")
    counts = {
        c: st.column_config.NumberColumn(GIVEN[c], format="%.0f") for c in ("examples", "steps", "trainable", "added")
    }
    compute = {
        f"{m}_flops": st.column_config.NumberColumn(f"{m}, 10⁹ FLOPs", format="%.3g", help=f"the {m}'s compute")
        for m in ("teacher", "student")
    }
    st.dataframe(
        shown.assign(**{c: shown[c] / 1e9 for c in compute}, more=shown.more.where(shown.more != "")),
        hide_index=True,
        column_order=["title", *counts, *compute, "more"],
        column_config={"title": "model", "more": "▲ given more", **counts, **compute},
        placeholder=shell.MISSING,
        alt="What every model was given, one line per model.",
    )
    draw.how_to_read(
        "Counted while the models were made, means over seeds: examples whose answers were learned from, optimiser "
        "steps, parameters trained and added, and floating-point operations of both models (locating included for "
        "methods that work from it). ▲ marks more than 5 % above the examined method, so a lead over it may have "
        "been bought."
    )
    draw.csv(found.assign(more=[", ".join(m) for m in found.more]), f"{run.id}-budgets", "budgets")


# -- what methods kept ------------------------------------------------------------------------------


def kept(run: Run) -> dict[str, list[str]]:
    """Seeds by model of align/<model>/<seed>.parquet, in the order of names."""
    found: dict[str, list[str]] = {}
    for path in sorted(run.path("align").glob("*/*.parquet")):
        if path.stem.lstrip("-").isdecimal():  # 0.parquet, and not 0.sizes.parquet
            found.setdefault(path.parent.name, []).append(path.stem)
    return found


def own_rows(run: Run) -> None:
    """What a method kept of its own work: rows as they are, steps as a line with the chosen one marked."""
    there = kept(run)
    if not there:
        return
    with st.expander("What the methods kept of their own work"):
        titles = artifacts.model_titles(run, list(there))
        shown = lambda m: titles[m] if titles[m] == m else f"{titles[m]} ({m})"  # noqa: E731
        model = st.selectbox("Of", list(there), format_func=shown, key="t.kept", persist_state="session")
        parts = [(seed, shell.read(artifacts.table, run, f"align/{model}/{seed}.parquet")) for seed in there[model]]
        read = [t.assign(seed=int(seed)) for seed, t in parts if t is not None and len(t)]
        if not read:
            st.info("These tables hold no rows.", icon=":material/info:")
            return
        rows = pd.concat(read, ignore_index=True)
        if set(rows.columns) >= steps.COLUMNS:
            chosen = rows[rows.chosen.eq(True)]
            said = "; ".join(f"seed {r.seed}: step {r.step}" for r in chosen.itertuples()) or "none"
            draw.plot(draw.made(steps.scores, rows, titles[model]), "t.kept.steps", f"Scores by step; chosen: {said}.")
            draw.how_to_read(
                "After every step the change is scored on examples held aside (cross-entropy per answer token), and "
                "the best trained step (ring) is kept. Step 0 is the student before training, for comparison. A gap is "
                "a score that was not finite."
            )
        order = ["seed", *(c for c in rows.columns if c != "seed")]
        st.dataframe(rows, hide_index=True, column_order=order, placeholder=shell.MISSING, alt="Rows that it kept.")
        draw.how_to_read("One line per step, layer or matrix, as the method wrote it while it made its start.")
        draw.csv(rows, f"{run.id}-{model}-rows", "kept")
