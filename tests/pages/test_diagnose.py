"""The page Diagnose on a run written by hand, and what its buttons do."""

from __future__ import annotations

import pytest

from paraknow import files
from paraknow.report import gallery
from paraknow.report.source import Source
from paraknow.runs import diagnosis, store
from tests.pages.test_pages import no_worker, run, show, warm_server, words  # noqa: F401 (fixtures)


def test_findings_are_ranked_with_icon_and_word(run: store.Run) -> None:  # noqa: F811
    app = show("diagnose", run=run.id)
    assert not app.exception
    heads = [m.value for m in app.markdown if m.value.startswith("#####")]
    assert heads and all(any(word in h for word in ("In the way", "Warning", "Note", "Good")) for h in heads)
    assert all(":material/" in head for head in heads)
    said = words(app)
    assert "Checked and fine" in said and "Not checked" in said and "How to read this" in said
    assert app.get("plotly_chart") and f"paraknow diagnose {run.id}" in " ".join(c.value for c in app.code)


def test_a_clone_takes_the_change_along(run: store.Run) -> None:  # noqa: F811
    for step in range(1, 13):
        run.event(stage="tune", step=step, total=12, message="seeking, seed 0", loss=1.0 + step)
    app = show("diagnose", run=run.id)
    buttons = [b for b in app.button if str(b.key).startswith("d.loss")]
    assert buttons, [b.key for b in app.button]
    app = buttons[0].click().run()
    assert not app.exception
    assert app.session_state["t.tune.learning_rate"] == pytest.approx(1e-4)
    assert app.session_state["t.method.name"] == "seeking"
    assert any("tune" in i.value and "learning" in i.value for i in app.info)


def test_losses_are_read_once_and_told_as_in_a_report(run: store.Run, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    for step in range(1, 13):
        run.event(stage="tune", step=step, total=12, message="seeking, seed 0", loss=1.0 + step)
    app, looked = show("diagnose", run=run.id), []
    (picture,) = (p for p in gallery.pictures(Source(run)) if p.name == "losses")
    assert picture.read in words(app)
    evidence = diagnosis.evidence
    monkeypatch.setattr(diagnosis, "evidence", lambda *a: looked.append(a) or evidence(*a))
    assert not app.run().exception and not looked


def test_what_cannot_be_read_is_said_and_renewed_results_are_seen(run: store.Run) -> None:  # noqa: F811
    run.path("evaluate", "deltas.json").write_text("{")
    app = show("diagnose", run=run.id)
    assert not app.exception and "damaged" in words(app)
    files.write_json(run.path("evaluate", "deltas.json"), {"rows": []})
    app = show("diagnose", run=run.id)
    assert not app.exception and "damaged" not in words(app)
