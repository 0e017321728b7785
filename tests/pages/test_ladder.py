"""The Ladder page, on calibrations written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paraknow import files, resources
from paraknow.runs import calibrate
from tests.pages import tables
from tests.pages.test_pages import no_worker, show, warm_server, words  # noqa: F401 (fixtures)


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of what is shipped."""
    folder = tmp_path / "assets"
    folder.mkdir()
    monkeypatch.setattr(resources, "assets", lambda: folder)
    return folder


def titles(app) -> list[str]:
    return [s.value for s in app.subheader]


def which(app):
    return next(box for box in app.selectbox if box.label == "Calibration")


def test_without_a_calibration_the_command_is_shown(runs: Path, assets: Path) -> None:
    app = show("ladder")
    assert "There is no calibration yet" in words(app)
    assert [c.value for c in app.code] == ["paraknow calibrate"] and not app.subheader


def test_the_verdict_comes_first_and_in_words(runs: Path, assets: Path) -> None:
    files.write_json(runs / calibrate.FILE, tables.calibration())
    app = show("ladder")
    said = words(app).replace("\\", "")
    assert "it can be believed" in app.success[0].value.replace("\\", "") and not app.error
    assert "**seeking**: on clone 0.05 (−0.07 to 0.17), nothing crossed" in said
    assert "The last one of the runs folder" in said and "paraknow calibrate there --json" in [
        c.value for c in app.code
    ]
    assert titles(app) == [
        "How far it travels",
        "What predicts it?",
        "Does more of it carry more?",
        "Numbers",
        "What made it",
    ]
    assert len(app.get("plotly_chart")) == 6 and said.count("How to read this") == 4
    assert "sibling: the student was pruned" in said.replace("**", "") and "sibling −1.00" in said


def test_the_runs_own_calibration_goes_before_the_shipped_one(runs: Path, assets: Path) -> None:
    shipped = {**tables.calibration(), "command": "paraknow calibrate shipped", "passed": False}
    files.write_json(assets / calibrate.FILE, shipped)
    app = show("ladder")
    assert "came with the package" in words(app) and len(app.error) == 1
    files.write_json(runs / calibrate.FILE, tables.calibration())
    app = show("ladder")
    assert "came with the package" not in words(app) and not app.error
    which(app).select(which(app).options[1]).run()
    assert "came with the package" in words(app) and len(app.error) == 1 and not app.exception
    (runs / calibrate.FILE).write_text('{"rows": [3], "pooled": []}')
    app = show("ladder")
    assert "is damaged" in words(app) and "came with the package" in words(app)


def test_a_study_of_other_methods_can_be_looked_at(runs: Path, assets: Path) -> None:
    """What was chosen on one calibration does not have to be in another."""
    files.write_json(assets / calibrate.FILE, tables.calibration())
    files.write_json(assets / calibrate.STUDY, json.loads(json.dumps(tables.calibration()).replace("seeking", "eva")))
    app = show("ladder")
    assert "Five seeds" in words(app)
    for _ in range(2):
        for option in which(app).options:
            which(app).select(option).run()
            assert not app.exception and option in words(app)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"rows": 3, "pooled": 4}', '{"rows": [], "pooled": []}'])
def test_damage_becomes_a_sentence(runs: Path, assets: Path, content: str) -> None:
    runs.mkdir(exist_ok=True)
    (runs / calibrate.FILE).write_text(content)
    assert "is damaged" in words(show("ladder"))


def test_methods_and_range_can_be_chosen(runs: Path, assets: Path) -> None:
    files.write_json(runs / calibrate.FILE, tables.calibration())
    app = show("ladder")
    app.multiselect(key="l.methods").set_value(["seeking"]).run()
    spec = str(json.loads(app.get("plotly_chart")[0].proto.spec))
    assert "seeking on clone" in spec and "transport on clone" not in spec and "−1.2" in spec
    app.toggle(key="l.whole").set_value(True).run()
    app.selectbox(key="l.predicted").set_value("seeking").run()
    assert not app.exception and "n = 6 pairs" in app.get("plotly_chart")[2].proto.spec


def test_many_methods_are_not_all_drawn_at_first(runs: Path, assets: Path) -> None:
    found = tables.calibration(("0",))
    for name in ("rows", "pooled"):
        own = [r for r in found[name] if r["model"] == "seeking"]
        found[name] += [{**r, "model": f"seeking-{k}"} for k in range(5) for r in own]
    files.write_json(runs / calibrate.FILE, {**found, "words": [], "passed": False})
    app = show("ladder")
    assert len(app.multiselect(key="l.methods").value) == 6 and len(app.multiselect(key="l.methods").options) == 9
    assert "FAILED its check" in app.error[0].value


def test_what_an_older_calibration_lacks_is_missing(runs: Path, assets: Path) -> None:
    found = tables.calibration(("0",))
    keep = {"world", "rung", "model", "share", "share_ci"}
    found = {name: [{k: v for k, v in r.items() if k in keep} for r in found[name]] for name in ("rows", "pooled")}
    files.write_json(runs / calibrate.FILE, found)
    app = show("ladder")
    said = words(app)
    assert "nobody has checked" in said and "did not compare how alike" in said
    assert [c.value for c in app.code] == ["paraknow calibrate"]
