"""Ladder: how far knowledge travels, on pairs from a known answer to none at all."""

import hashlib
import json
import re
from pathlib import Path

import pandas as pd
import streamlit as st

from pages.parts import draw, shell
from paraknow import methods, resources
from paraknow.figures import ladder, likeness
from paraknow.runs import calibrate, store

COMMAND = "paraknow calibrate"
MANY = 6  # methods drawn at first: more stand too close
NEEDED = {"rows": {"world", "rung", "model", "share", "share_ci"}, "pooled": {"rung", "model", "share", "share_ci"}}

shell.heading(
    "Ladder",
    "How far does knowledge travel? The same methods on pairs of models from nearest kin, where the answer is known, "
    "to strangers, where nobody knows one. This page does not depend on the chosen run.",
    None,
)


@st.cache_data(max_entries=4, show_spinner=False)
def parsed(path: str, content: str) -> dict | None:
    """A calibration as `paraknow calibrate` writes it, or None. `content` is the file's hash."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        for name, keys in NEEDED.items():
            if not found[name] or not all(isinstance(r, dict) and keys <= set(r) for r in found[name]):
                return None
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return found


def readable() -> dict[str, tuple[dict, Path]]:
    """Calibrations by what the page calls them: the last one of the runs folder, then those that were shipped."""
    places = {
        "The last one of the runs folder": store.runs_folder() / calibrate.FILE,
        "Five seeds, nine kinds of pairs (came with the package)": resources.assets() / calibrate.STUDY,
        "The demo's own pairs, one seed (came with the package)": resources.assets() / calibrate.FILE,
    }
    made = {}
    for name, path in places.items():
        if not path.is_file():
            continue
        try:
            found = parsed(str(path), hashlib.sha256(path.read_bytes()).hexdigest())
        except OSError:
            found = None
        if found is not None:
            made[name] = found, path
        else:
            shipped = path.parent == resources.assets()
            st.warning(
                f"{shell.escape(path.name)} {'that came with the package' if shipped else 'in the runs folder'} is "
                "damaged, or was written by another version; it is passed over."
            )
    return made


def sentence(text: object) -> str:
    """A sentence of the verdict as Markdown, with real minus signs."""
    return shell.escape(re.sub(r"(?<![\w−-])-(?=\d)", "−", re.sub(r"-(0\.0+)(?!\d)", r"\1", str(text))))


def of_method(text: object) -> str:
    """A method's sentence, its name in bold."""
    name, colon, rest = str(text).partition(": ")
    return f"- **{shell.escape(name)}**: {sentence(rest)}" if colon else f"- {sentence(text)}"


def verdict(found: dict) -> None:
    """What came out, in words, before any figure."""
    said, passed = list(found.get("words") or []), found.get("passed")
    if passed is None:
        st.info(
            "Without the clone pair, whose answer is known, nobody has checked that this measurement sees what is "
            "there.",
            icon=":material/info:",
        )
    else:
        first = said.pop(0) if said else f"Instrument: it {'passed' if passed else 'FAILED'} its check."
        icon = ":material/check_circle:" if passed else ":material/error:"
        (st.success if passed else st.error)(sentence(first), icon=icon)
    st.markdown("\n".join(of_method(s) for s in said))


def journey(rows: pd.DataFrame, pooled: pd.DataFrame) -> None:
    """Shares on every rung with their controls."""
    st.subheader("How far it travels")
    titles = {name: method.title for name, method in methods.catalogue().items()}
    every = ladder.methods([str(m) for m in pooled.model])
    a, b = st.columns([3, 1], vertical_alignment="bottom")
    shown = every
    if len(every) > 1:
        picked = a.multiselect(
            "Methods",
            every,
            default=every[:MANY],
            key="l.methods",
            placeholder="all",
            help="What is drawn in the figure below; the table holds all of them.",
            persist_state="session",
        )
        shown = picked or every
    beyond = pooled[["share"]].lt(ladder.FLOOR) | pooled[["share"]].gt(ladder.CEILING)
    whole = bool(beyond.any().any()) and b.toggle(
        "Whole range", key="l.whole", help="Draw also what lies far below 0 at its true height."
    )
    figure = draw.made(ladder.shares, rows, pooled, titles, whole, shown)
    draw.plot(figure, "l.shares", ladder.describe(pooled[pooled.part.ne("method") | pooled.model.isin(shown)]))
    rungs = ladder.ordered([str(r) for r in pooled.rung])
    guess = ladder.guessing(rows)
    guesses = ", ".join(f"{shell.escape(r)} {ladder.number(guess[r])}" for r in rungs if r in guess)
    arrows = "" if whole or not beyond.any().any() else " Arrows at the edge: far outside, with the number."
    draw.how_to_read(
        "Of what the teacher knows of the facts nobody showed the student and the student does not: how much is there "
        "afterwards, in bits beyond guessing. 0: the student as it was; 1: all of it. A method (filled) has carried "
        "something only where its whole bar lies above 0 and above its own controls (muted, to its right). Below 0, "
        "it destroyed what the student knew. Faint "
        f"dots: single worlds, which differ in their random seed.{arrows}"
        + (f" A student that only guesses would score: {guesses} (dashed)." if guesses else "")
    )
    st.caption("\n".join(f"- **{shell.escape(r)}**: {shell.escape(ladder.words(r))}" for r in rungs))
    draw.csv(rows, "ladder-worlds", "ladder-rows", "One line per world (CSV)")


def predictors(found: dict, rows: pd.DataFrame) -> None:
    """Share against every measure of likeness."""
    st.subheader("What predicts it?")
    known = {(p.get("method"), p.get("predictor")): p for p in found.get("predictors") or [] if isinstance(p, dict)}
    every = [m for m in ladder.methods([str(m) for m in rows.model]) if any(m == method for method, _ in known)]
    names = [n for n in likeness.PREDICTORS if any(n == name for _, name in known)]
    if not every or not names:
        st.info("This calibration did not compare how alike the models of a pair are.", icon=":material/info:")
        return
    method = every[0]
    if len(every) > 1:
        method = st.selectbox("Share of", every, key="l.predicted", persist_state="session")
    span = likeness.share_span(rows, method)
    for column, name in zip(st.columns(len(names)), names, strict=True):
        about = known.get((method, name), {})
        figure = draw.made(
            likeness.predictor, rows, method, name, about.get("correlation"), int(about.get("n") or 0), span
        )
        with column:
            draw.plot(figure, f"l.predictor.{name}", likeness.describe(rows, method, name, about.get("correlation")))
    draw.how_to_read(
        f"Each mark is one pair: how alike its two models are (across) and how much of the knowledge "
        f"{shell.escape(method)} carried (up). ρ is Spearman's rank correlation over pairs; it is missing (–) below "
        "four pairs or where a measure does not vary. Few pairs settle little, and the pairs of one kind lie together."
    )


def dose(pooled: pd.DataFrame) -> None:
    """Share against the number of neurons moved, where variants differ in it."""
    found = likeness.doses(pooled)
    if found.empty:
        return
    st.subheader("Does more of it carry more?")
    alt = "; ".join(
        f"{r.series} on {r.rung}, {r.neurons} neurons: {ladder.number(r.share, r.lo, r.hi)}" for r in found.itertuples()
    )
    draw.plot(draw.made(likeness.dose, found), "l.dose", f"Share by neurons moved: {alt}.")
    draw.how_to_read(
        "Variants of a method that differ only in how many neurons of every layer they move (logarithmic). If what "
        "arrives rides on those neurons, a line rises with their number."
    )
    draw.csv(found, "ladder-dose", "ladder-dose")


def numbers(pooled: pd.DataFrame) -> None:
    """All numbers, one line per pair and model."""
    st.subheader("Numbers")
    order = {rung: k for k, rung in enumerate(ladder.ordered([str(r) for r in pooled.rung]))}
    shown = pooled[pooled.part != "pair"].sort_values("rung", key=lambda r: r.map(order), kind="stable")
    config = {
        "rung": "pair",
        "part": "taken as",
        "worlds": st.column_config.NumberColumn("worlds", help="pairs of this kind, each from its own seed"),
        "measured": st.column_config.NumberColumn("measured", help="worlds where a share could be measured"),
        "share": st.column_config.NumberColumn("share arrived", format="%.2f"),
        "lo": st.column_config.NumberColumn("lo", format="%.2f", help="lower end of the 95 % interval"),
        "hi": st.column_config.NumberColumn("hi", format="%.2f", help="upper end of the 95 % interval"),
        "accuracy": st.column_config.NumberColumn("never shown", format="%.2f", help="share answered correctly"),
        "known": st.column_config.NumberColumn(
            "known", format="%.2f", help="share of facts that both models knew that is still answered correctly"
        ),
        "above_controls": st.column_config.NumberColumn(
            "above all controls", help="worlds where the method lies above the student and every control"
        ),
    }
    digits = [c for c in ("share", "lo", "hi", "accuracy", "known") if c in shown]
    st.dataframe(
        shown.assign(**{c: shown[c].round(2) + 0.0 for c in digits}),  # no −0.00
        hide_index=True,
        column_order=["rung", "model", "part", *(c for c in config if c in shown and c not in ("rung", "part"))],
        column_config=config,
        placeholder=shell.MISSING,
        alt="All shares of the calibration, one line per pair and model.",
    )
    draw.how_to_read(
        "“known” shows what the student forgot: at 1.00 nothing. lo and hi end 95 % intervals: over worlds where there "
        "are several, else over items. – is missing or does not apply."
    )
    draw.csv(shown, "ladder", "ladder-pooled")


there = readable()
if not there:
    st.info(
        "There is no calibration yet: none was made here, and none came with the package. The command below makes one "
        "(some minutes on the shipped pairs); then reload this page.",
        icon=":material/info:",
    )
    st.code(COMMAND, language="bash")
    shell.stop()
chosen = next(iter(there))
if len(there) > 1:
    chosen = st.selectbox("Calibration", list(there), help="Which one this page shows.")
calibration, file = there[chosen]
written = "" if file.is_relative_to(resources.assets()) else f", written {shell.when(file.stat().st_mtime)}"
st.caption(f"{chosen}{written}. The command that made it stands below.")  # a file of the package has no date of its own
verdict(calibration)
of_worlds, over_worlds = ladder.tables(calibration)
journey(of_worlds, over_worlds)
predictors(calibration, of_worlds)
dose(over_worlds)
numbers(over_worlds)
st.subheader("What made it")
st.code(str(calibration.get("command") or COMMAND), language="bash", wrap_lines=True)
st.caption("Run it with other pairs, methods or worlds: the newest one then stands first on this page.")
