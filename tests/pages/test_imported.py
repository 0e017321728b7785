"""Runs that came in a bundle, on every page."""

from __future__ import annotations

from pathlib import Path

import pytest

from paraknow.runs import bundle, store
from tests.pages import tables
from tests.pages.test_pages import PAGES, no_worker, show, warm_server, words  # noqa: F401 (fixtures)
from tests.runs import packed

NOWHERE = {"teacher": "/nowhere/at/all/large", "student": "/nowhere/at/all/small"}


@pytest.fixture
def imported(tmp_path: Path, runs: Path) -> store.Run:
    """A run of models and data that are not on this machine."""
    run = packed.finished(tmp_path / "elsewhere", pair=NOWHERE, task=["/nowhere/facts.jsonl"])
    tables.write(run)
    packed.adapter(run, NOWHERE["student"])
    return bundle.import_(bundle.export(run, tmp_path / "a.zip", adapters=True), runs).run


@pytest.mark.parametrize("page", PAGES)
def test_an_imported_run_opens_without_its_models(
    page: str, imported: store.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paraknow.checkpoints._download", lambda spec: pytest.fail("asked a hub"))
    before = packed.snapshot(imported.folder)
    app = show(page, run=imported.id)
    assert app.session_state["run"] == imported.id
    assert "Imported: read-only" in "\n".join(c.value for c in app.sidebar.caption)
    if page in ("runs", "transfer"):
        disabled = {b.key: b.disabled for b in app.button}
        assert all(disabled.get(key, True) for key in ("r.cancel", "r.resume", "t.cancel", "t.resume"))
    if page == "runs":
        assert not disabled["r.delete"]
    if page == "transfer":
        app.button(key="t.preset.run").click().run()
        assert not app.exception and app.button(key="t.start").disabled
    assert packed.snapshot(imported.folder) == before


def test_a_bundle_is_made_and_taken_on_the_page(tmp_path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = packed.finished(runs)
    app = show("runs", run=run.id)
    app.button(key="r.bundle").click().run()
    assert [d.label for d in app.get("download_button") if "zip" in d.label] and not app.error
    bad, good = tmp_path / "bad *name*.zip", bundle.export(run, tmp_path / "good.zip")
    bad.write_bytes(good.read_bytes()[:-30])
    monkeypatch.setenv("PARAKNOW_RUNS", str(tmp_path / "other"))
    app = show("runs")
    for file, said in ((bad, "is no readable zip file"), (good, "Imported, read\\-only")):
        app.file_uploader(key="r.upload").upload(file.name, file.read_bytes(), "application/zip").run()
        app.button(key="r.import").click().run()
        assert not app.exception and said in words(app) + "\n".join(s.value for s in app.success), words(app)
    assert app.session_state["run"] == run.id
    assert [p.name for p in (tmp_path / "other").iterdir() if p.name[0] != "."] == [run.id]
