"""The plot over all runs, the tour and the glossary beside every page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import streamlit
from streamlit.testing.v1 import AppTest

from pages.parts import all_runs
from paraknow import glossary
from paraknow.runs import store
from tests.pages import hostile
from tests.pages.test_hostile import read_as_markdown, strings
from tests.pages.test_pages import no_worker, run, show, warm_server, words  # noqa: F401 (fixtures)
from tests.runs.test_landscape import measured


def page() -> None:
    from pages.parts import all_runs, shell

    shell.pick_run()
    all_runs.section(shell.current_run())


def plotted() -> AppTest:
    app = AppTest.from_function(page, default_timeout=60).run()
    assert not app.exception, [e.value for e in app.exception]
    return app


def test_marks_carry_their_runs(runs: Path) -> None:
    made = measured(runs, 0.7)
    app = plotted()
    said = words(app)
    assert "too few to tell" in said and "49 pairs of models" in said and "Similarity is not transfer" in said
    spec = json.loads(app.get("plotly_chart")[0].proto.spec)
    marks = [d for trace in spec["data"] for d in trace.get("customdata") or []]
    assert [made.id, "seeking"] in marks and ["", "transport-kin"] in marks


def test_what_a_click_or_a_picked_line_names_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    state: dict = {"run": "a", "a.plot": {"selection": {"points": [{"customdata": ["", "transport"]}]}}}
    monkeypatch.setattr(streamlit, "session_state", state)
    all_runs.clicked()
    assert state["run"] == "a"  # a mark of the package's has no run here
    state["a.plot"]["selection"]["points"] = [{"customdata": ["b", "seeking"]}]
    all_runs.clicked()
    assert (state["run"], state["a.opened"]) == ("b", "b")
    state["a.table"] = {"selection": {"rows": [1]}}
    all_runs.picked_line(["a", "c"])
    assert (state["run"], state["a.opened"]) == ("c", "c")
    all_runs.picked_line(["a"])
    assert state["run"] == "c"


def test_an_opened_run_says_where_to_go_on(runs: Path) -> None:
    made = measured(runs, 0.4)
    app = AppTest.from_function(page, default_timeout=60)
    app.session_state["a.opened"] = made.id
    app.run()
    assert f"Open now, on every page: {made.id}" in "".join(s.value for s in app.success).replace("\\", "")


def test_axes_methods_and_kinds_can_be_chosen(runs: Path) -> None:
    measured(runs, 0.4)
    app = plotted()
    app.selectbox(key="a.x").set_value("cos").run()
    app.selectbox(key="a.y").set_value("gain").run()
    app.toggle(key="a.shipped").set_value(False).run()
    app.multiselect(key="a.methods").set_value(["seeking"]).run()
    assert not app.exception and "All pairs" not in words(app)
    assert len(app.dataframe[0].value) == 2  # the run here and the recorded one


def test_without_runs_it_says_where_they_come_from(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "recorded_runs", lambda: [])
    app = plotted()
    assert "No finished run here has facts" in words(app) and len(app.get("plotly_chart")) == 1


def test_names_are_text(run: store.Run, runs: Path) -> None:  # noqa: F811
    hostile.whole(runs)
    run.update(state="done")
    app = plotted()
    for text in read_as_markdown(app):
        assert not any(re.search(rf"(?<!\\){re.escape(raw)}", text) for raw in hostile.RAW), text
    for text in strings(json.loads(app.get("plotly_chart")[0].proto.spec)):
        assert not any(raw in text for raw in ("<img", "<a ", "<script", "%{evil", "$x")), text


def test_the_tour_walks_over_four_pages_and_can_be_left(run: store.Run) -> None:  # noqa: F811
    app = show("overview")
    app.button(key="tour.start").click().run()
    assert "Tour, step 1 of 4" in words(app) and app.title[0].value == "Sensitivity"
    assert app.query_params["tour"] in ("1", ["1"]) and app.session_state["run"] == store.recorded_runs()[0].id
    app.button(key="tour.next").click().run()
    assert "Tour, step 2 of 4" in words(app) and app.title[0].value == "Similarity"
    assert app.session_state["run"] == store.recorded_runs()[0].id
    app.button(key="tour.back").click().run()
    assert app.title[0].value == "Sensitivity" and app.button(key="tour.back").disabled
    app.button(key="tour.leave").click().run()
    assert "Tour, step" not in words(app) and "tour" not in app.query_params


def test_a_link_begins_the_tour_at_its_step(runs: Path) -> None:
    app = show("overview", tour="3")
    assert app.title[0].value == "Benchmarks" and "Tour, step 3 of 4" in words(app)
    app = show("overview", tour="7")
    assert "steps 1 to 4" in words(app) and "Tour, step" not in words(app)


def test_the_glossary_is_beside_every_page(runs: Path) -> None:
    app = show("transfer")
    assert all(t.words in words(app) for t in glossary.TERMS[:3])
    app.text_input(key="glossary.search").set_value("kinship").run()
    shown = words(app)
    assert "**kinship**" in shown and "**adapter**" not in shown
    app.text_input(key="glossary.search").set_value("<b>").run()
    assert "No word is like that" in words(app)


@pytest.mark.parametrize("state", ["queued", "failed", "running"])
def test_what_is_missing_says_what_to_do(state: str, run: store.Run) -> None:  # noqa: F811
    run.path("evaluate", "deltas.json").unlink()
    run.update(state=state)
    said = words(show("benchmarks"))
    state = "lost" if state == "running" else state  # nobody holds its lock
    assert "its evaluate stage writes it" in said.replace("\\", "") and "the Transfer page" in said
    assert {"queued": "in the queue", "failed": "failed before", "lost": "was lost"}[state] in said
