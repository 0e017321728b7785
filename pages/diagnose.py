"""Diagnose: what went well in a run, what is in the way of believing it, and what to try."""

import re
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from pages.parts import all_runs, artifacts, draw, shell
from paraknow import config as configs
from paraknow.diagnose import Finding, headline
from paraknow.diagnose import evidence as counted
from paraknow.errors import InputError
from paraknow.figures import deltas, diagnose, tables
from paraknow.report import answers
from paraknow.runs import diagnosis
from paraknow.runs.store import Run

LOOKS = {  # severity: icon, word
    "blocking": (":material/block:", "In the way"),
    "warning": (":material/warning:", "Warning"),
    "note": (":material/info:", "Note"),
    "good": (":material/check_circle:", "Good"),
}
PANELS = ("gains", "forgotten")  # evidence that is a panel of the Benchmarks page
MOST = 4  # panels of one finding
LINKS = {
    "transfer": "Look at the run on Transfer",
    "benchmarks": "Look further on Benchmarks",
    "similarity": "Look further on Similarity",
    "sensitivity": "Look further on Sensitivity",
    "ladder": "Compare with the Ladder",
    "runs": "Look at its files on Runs",
}


@st.cache_data(max_entries=16, show_spinner="Looking at the run …")
def findings_of(folder: str, recorded: bool, content: tuple) -> list[Finding]:
    """The findings about a run whose files and state are as `content` says."""
    return diagnosis.diagnose(Run(Path(folder), recorded))


@st.cache_data(max_entries=4, show_spinner=False)
def losses_of(folder: str, recorded: bool, content: tuple) -> pd.DataFrame | None:
    """The losses of every model of a run, as its findings rest on them."""
    return diagnosis.evidence(Run(Path(folder), recorded)).losses


def content_of(run: Run) -> tuple:
    """The run's files and state as they are now."""
    content = tuple(artifacts.fingerprint(run, name) for name in diagnosis.sources(run))
    status = run.status()
    return (*content, (status["state"], str(status.get("error")), tuple(status.get("stages", ()))))


def found_in(run: Run) -> list[Finding]:
    """The findings about the run as it is now."""
    return findings_of(str(run.folder), run.recorded, content_of(run))


def code(text: str) -> str:
    """A rule's own words as Markdown, commands between backticks as code."""
    return " ".join(
        word if word.startswith("`") else shell.escape(word)
        for word in re.split(r"(`[^`]*`\S*|\s)", text)
        if word.strip()
    )


def panels(finding: Finding, key: str) -> None:
    """Every model's difference to the student where the finding looked."""
    rows = shell.read(artifacts.delta_rows, run)
    if rows is None:
        return
    wanted = {line["on"] for line in finding.numbers if "on" in line}
    kinds = tables.kinds(rows)
    titles = artifacts.model_titles(run, list(kinds))
    frame = tables.deltas_frame([row for row in rows if counted.place(row) in wanted], titles)
    if frame.empty:
        return
    frame["kind"] = frame.model.map(kinds)
    span, columns = deltas.limits(frame, deltas.DELTA), st.columns(2)
    for number, ((suite, group), part) in enumerate(frame.groupby(["suite", "group"], sort=False)):
        if number < MOST:
            title = tables.panel_title(suite, group)
            figure = draw.made(deltas.panel, part, deltas.DELTA, title, titles, span, kinds)
            with columns[number % 2]:
                draw.plot(figure, f"{key}.{number}", deltas.describe(part, deltas.DELTA, title))
    escaped = {model: shell.escape(title) for model, title in titles.items()}
    draw.how_to_read(answers.readings(escaped)["delta"])


def curves(key: str) -> None:
    """The losses of every model."""
    table = losses_of(str(run.folder), run.recorded, content_of(run))
    if table is None or table.empty:
        return
    picture = answers.curves(table, artifacts.model_titles(run, [str(label) for label in dict.fromkeys(table.label)]))
    draw.plot(draw.made(picture.draw), key, picture.alt)
    draw.how_to_read(picture.read)


def evidence(finding: Finding, key: str) -> None:
    """The finding's figure and its numbers."""
    if finding.figure in PANELS:
        panels(finding, key)
    elif finding.figure == "losses":
        curves(key)
    elif figure := draw.made(diagnose.draw, finding.figure, finding.numbers):
        draw.plot(figure, key, diagnose.describe(finding.figure, finding.numbers))
        draw.how_to_read(diagnose.DRAWINGS[finding.figure].reading)
    if finding.numbers:
        table = pd.DataFrame(list(finding.numbers))
        box = st.expander("The numbers", key=f"{key}.numbers", on_change="rerun")
        if not box.open:
            return
        with box:
            st.dataframe(table, hide_index=True, placeholder=shell.MISSING, alt="The numbers of this finding.")
            draw.csv(table, f"{run.id}-{finding.rule}", key)


def remedies(finding: Finding, key: str) -> None:
    """What to try; a change of settings can be taken to the Transfer page."""
    if not finding.remedies:
        return
    st.markdown("**What to try**")
    for number, remedy in enumerate(finding.remedies):
        text, button = st.columns([3, 1], vertical_alignment="center")
        changes = ", ".join(f"`{name}: {_value(value)}`" for name, value in remedy.changes.items())
        text.markdown(f"- {code(remedy.text)}" + (f" {changes}" if changes else ""))
        if (
            remedy.changes
            and possible(remedy.changes)
            and button.button(
                "Clone the run with this change",
                key=f"{key}.try.{number}",
                icon=":material/content_copy:",
                help="A new run: the form on the Transfer page is filled with this run's settings and this change.",
            )
        ):
            st.session_state["t.refill"], st.session_state["t.changes"] = run.id, remedy.changes
            st.switch_page("pages/transfer.py", query_params={"run": run.id})


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}={_value(v)}" for k, v in value.items())
    return str(value).replace("`", "'")


def possible(changes: dict[str, Any]) -> bool:
    """Whether the run's settings can be changed so."""
    try:
        configs.changed(run.config(), changes)
    except InputError:
        return False
    return True


def card(finding: Finding, number: int) -> None:
    """One finding."""
    key, (icon, word) = f"d.{finding.rule}.{number}", LOOKS[finding.severity]
    with st.container(border=True):
        st.markdown(f"##### {icon} {word}: {shell.escape(finding.title)}")
        st.markdown(shell.sentence(finding.says))
        evidence(finding, key)
        remedies(finding, key)
        if finding.page:
            shell.link(finding.page, LINKS[finding.page], run, ":material/arrow_forward:")


def short_list(found: list[Finding], severity: str, title: str, about: str) -> None:
    """Rules that found nothing, or could not look, a line each."""
    part = [f for f in found if f.severity == severity]
    st.subheader(f"{title} ({len(part)})")
    if not part:
        st.caption("None.")
        return
    st.caption(about)
    st.markdown("\n".join(f"- **{shell.escape(f.title)}** {shell.sentence(f.says)}" for f in part))


run = shell.current_run()
shell.heading(
    "Diagnose",
    "What went well in this run, what is in the way of believing it, and what to try.",
    run,
)
run = shell.need_run()
found = shell.read(found_in, run)
if found is not None:
    st.subheader(shell.escape(headline(found)))
    grave = [f for f in found if f.severity in LOOKS]
    counts = {severity: sum(f.severity == severity for f in found) for severity in LOOKS}
    st.caption(
        " · ".join(
            f"{icon} {counts[s]} {word.lower()}{'s' * (s in ('warning', 'note') and counts[s] > 1)}"
            for s, (icon, word) in LOOKS.items()
            if counts[s]
        )
        or "No finding."
    )
    for number, finding in enumerate(grave):
        card(finding, number)
    short_list(found, "fine", "Checked and fine", "These questions were looked at, and nothing was found.")
    short_list(found, "not checked", "Not checked", "These could not be looked at; that does not make them good.")
    st.caption("The same on the command line:")
    st.code(f"paraknow diagnose {run.id}", language="bash")
all_runs.section(run)
