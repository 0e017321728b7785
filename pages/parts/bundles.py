"""Bundles on the Runs page: one run as a file to take along, and one from elsewhere to look at."""

from __future__ import annotations

import tempfile
from pathlib import Path

import streamlit as st

from pages.parts import shell
from paraknow import limits
from paraknow.errors import ParaKnowError
from paraknow.runs import bundle, store
from paraknow.runs.store import Run

LARGEST = 64  # MiB of files whose bundle passes through the server's memory; the command line has no such limit


def download(run: Run) -> None:
    """A button that makes the bundle when it is pressed, and what there is to say where it cannot."""
    try:
        size = sum(path.stat().st_size for path in bundle.files_of(run))
    except (ParaKnowError, OSError) as error:
        st.caption(f"No bundle: {shell.sentence(error)}")
        return
    if size > LARGEST * 2**20:
        st.caption(f"Bundle: with {shell.size(size)} too large for this page; on the command line:")
        st.code(f"paraknow runs export {run.id} -o {run.id}.zip", language="sh")
        return
    if run.status().get("state") not in bundle.ENDED:
        st.caption("A bundle can be made once the run has ended.")
        return
    if st.button(
        "Make a bundle (zip)", icon=":material/folder_zip:", key="r.bundle", help="What pages show of this run."
    ):
        try:
            with tempfile.TemporaryDirectory() as folder:
                made = bundle.export(run, Path(folder, f"{run.id}.zip")).read_bytes()
        except (ParaKnowError, OSError) as error:
            st.error(shell.sentence(error))
            return
        st.download_button(
            f"Download {run.id}.zip ({len(made) / 2**20:.1f} MiB)",
            made,
            f"{run.id}.zip",
            "application/zip",
            icon=":material/download:",
            key="r.bundle.file",
            on_click="ignore",
        )
        st.caption("Without adapters (`paraknow runs export --adapters`); paths of this machine are shortened in it.")


def upload() -> None:
    """A bundle from elsewhere becomes a read-only run."""
    with st.expander("Import a bundle"):
        given = st.file_uploader("Bundle (zip)", "zip", key="r.upload", label_visibility="collapsed")
        most = st.get_option("server.maxUploadSize")  # the server refuses what is larger, whatever a page allows
        st.caption(
            f"Everything in it is checked before it becomes a run, and it stays read-only. Up to {most} MiB here; a "
            "larger one: `paraknow runs import FILE.zip`."
        )
        st.button("Import it", icon=":material/upload:", key="r.import", disabled=given is None, on_click=_take)
    if said := st.session_state.pop("r.imported", None):
        st.success(shell.escape(said))
    if refused := st.session_state.pop("r.refused", None):
        st.error(shell.sentence(refused))


def _take() -> None:
    """Import what was uploaded, and look at it; what is said about it stands in the session until it is shown."""
    given = st.session_state["r.upload"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "upload.zip")
        path.write_bytes(given.getbuffer())
        try:
            limits.check_queue(0, len(store.listing()), store.runs_folder())
            run, known = bundle.import_(path, called=given.name)
        except (ParaKnowError, OSError) as error:
            st.session_state["r.refused"] = str(error)
            return
    shell.choose(run.id)
    st.session_state["r.imported"] = f"{'Here already' if known else 'Imported, read-only'}: run {run.id}."
