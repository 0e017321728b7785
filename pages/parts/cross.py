"""The section on the cross matrix: located on one task, measured on another. It does not depend on the chosen run."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import streamlit as st

from pages.parts import draw, shell
from paraknow.figures import cross
from paraknow.runs import cross as runs
from paraknow.runs import store

NEEDED = {"located", "measured", "own", "scope", "n", "delta", "delta_ci", "against", "state", "error", "run"}


@st.cache_data(max_entries=4, show_spinner=False)
def parsed(path: str, content: str) -> dict | None:
    """A result as `paraknow cross` writes it, or None. `content` is the file's hash."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        cells, tasks = found["cells"], found["tasks"]
        whole = tasks and cells and all(isinstance(c, dict) and set(c) >= NEEDED for c in cells)
        if not whole or not {c["measured"] for c in cells} <= set(tasks) or not isinstance(found["title"], str):
            return None
        for held in cross.HELD:
            for scope in cross.scopes(found):
                cross.cells(found, scope, held)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return found


def section() -> None:
    """The newest cross matrix of the runs folder; nothing where there is none."""
    file = store.runs_folder() / runs.FILE
    if not file.is_file():
        return
    st.subheader("Located on one task, measured on another")
    try:
        found = parsed(str(file), hashlib.sha256(file.read_bytes()).hexdigest())
    except OSError:
        found = None
    if found is None:
        st.warning(f"{shell.escape(file.name)} in the runs folder is damaged, or was written by another version.")
        return
    pair = found.get("pair") or {}
    st.caption(
        f"{shell.escape(pair.get('teacher', shell.MISSING))} → {shell.escape(pair.get('student', shell.MISSING))} · "
        f"written {shell.when(file.stat().st_mtime)} · it does not depend on the chosen run"
    )
    said = [_sentence(s) for s in found.get("words") or []]
    st.markdown("\n".join(f"- {s}" for s in said))
    a, b = st.columns(2)
    scopes = cross.scopes(found)
    scope = scopes[0]
    if len(scopes) > 1:
        scope = a.selectbox("Items", scopes, key="x.scope", format_func=cross.SCOPES.get, persist_state="session")
    held = b.selectbox(
        "Difference to", list(cross.HELD), key="x.held", format_func=cross.HELD.get, persist_state="session"
    )
    table = cross.cells(found, scope, held)
    draw.plot(
        draw.made(cross.matrix, table, found["tasks"], found["title"], scope, held), "x.matrix", cross.describe(table)
    )
    student = " The last row is noise of the same size: nothing was located." if held == cross.STUDENT else ""
    draw.how_to_read(
        "A row says whose examples chose the layers and blocks in the teacher, a column which task was tuned and "
        "measured on. If it matters where knowledge lies, a column's framed cell (located on the task itself) stands "
        f"out from the cells above and below it.{student} Numbers: change in accuracy on the same items with a paired "
        "95 % interval, orange above 0, blue below; grey cells are missing. With many cells some lie above 0 by chance."
    )
    draw.csv(table, f"cross-{scope}-{held}", "cross")
    if command := found.get("command"):
        st.code(str(command), language="bash", wrap_lines=True)


def _sentence(text: object) -> str:
    """A sentence of the result as Markdown, with real minus signs."""
    return shell.escape(re.sub(r"(?<![\w−-])-(?=\d)", "−", str(text)))
