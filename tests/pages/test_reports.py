"""The Runs page: reports, figures of two runs side by side; menus that save figures. Nothing is drawn unasked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from paraknow import files
from paraknow.figures import images
from paraknow.report import page
from paraknow.runs import store
from tests.pages.test_pages import no_worker, run, show, warm_server, words  # noqa: F401 (fixtures)


@pytest.fixture
def other(run: store.Run, runs: Path) -> store.Run:  # noqa: F811
    made = store.Run(runs / f"{run.id}-b")
    shutil.copytree(run.folder, made.folder)
    return made


@pytest.fixture
def nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise AssertionError("a page drew a picture or a report that nobody asked for")

    monkeypatch.setattr(images, "render", refuse)
    monkeypatch.setattr(page, "compose", refuse)


def test_menus_cost_next_to_nothing(run: store.Run, nothing_is_drawn: None) -> None:  # noqa: F811
    app = show("similarity", run=run.id)
    menus = [b for b in blocks(app._tree) if getattr(b, "type", "") == "popover"]
    menus = [b for b in menus if b.proto.popover.label == "Save"]
    assert len(menus) >= 5
    assert sum(b.proto.ByteSize() for b in menus) < 400 * len(menus)
    assert not any(list(b.children) for b in menus)  # closed menus are empty


def blocks(block):
    for child in getattr(block, "children", {}).values():
        if hasattr(child, "children"):
            yield child
            yield from blocks(child)


def test_two_runs_are_drawn_side_by_side(run: store.Run, other: store.Run, nothing_is_drawn: None) -> None:  # noqa: F811
    app = show("runs", run=run.id)
    labels = [b.proto.label for b in app.get("download_button")]
    assert {"Report (HTML)", "Report on both (HTML)"} <= set(labels)
    app.selectbox("r.first").set_value(run.id)
    app.selectbox("r.second").set_value(other.id)
    app.toggle("r.beside").set_value(True).run()
    assert not app.exception
    names = app.selectbox("r.figure").options
    assert any("Sensitivity of the teacher" in name for name in names)
    before = len(app.get("plotly_chart"))
    assert before == 3  # a measured panel of each run, and the difference
    app.selectbox("r.figure").set_value("cka.residual").run()
    assert not app.exception and len(app.get("vega_lite_chart")) + len(app.get("arrow_vega_lite_chart")) == 3
    assert "Second − first" in words(app) and "in one run only" in words(app)


def test_one_run_is_not_compared_with_itself(run: store.Run, other: store.Run) -> None:  # noqa: F811
    app = show("runs", run=run.id)
    app.selectbox("r.first").set_value(run.id)
    app.selectbox("r.second").set_value(run.id).run()
    assert "This is one run" in words(app)


def test_columns_have_words(run: store.Run, other: store.Run) -> None:  # noqa: F811
    app = show("runs", run=run.id)
    app.selectbox("r.first").set_value(run.id)
    app.selectbox("r.second").set_value(other.id).run()
    config = "".join(frame.proto.columns for frame in app.dataframe)
    for label in ("what went wrong", "first: accuracy", "second: 95 % interval", "second − first", "corrected p"):
        assert label in config or label.encode("unicode_escape").decode() in config, label
    items = app.dataframe[-1].value
    assert "facts in the fine-tuning set" in set(items["group"]) and "Seeking Neural Nuggets" in set(items["model"])


def test_a_run_whose_settings_are_damaged_has_no_report(run: store.Run) -> None:  # noqa: F811
    files.write_text(run.path("config.yaml"), "pair: 3\n")
    app = show("runs", run=run.id)
    assert "No report:" in words(app)
    assert "Report (HTML)" not in [b.proto.label for b in app.get("download_button")]
