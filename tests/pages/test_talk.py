"""Talk mode through AppTest: the page runs unseen, one of its figures is drawn, the address says which."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from pages.parts import shell, talk
from paraknow.runs import store
from tests.pages.test_pages import no_worker, run, show, warm_server, words  # noqa: F401 (fixtures)

COUNTS = {"overview": 2, "similarity": 8}


def figures(app: AppTest) -> int:
    return len(app.get("plotly_chart")) + len(app.get("vega_lite_chart")) + len(app.get("arrow_vega_lite_chart"))


def talked(page: str, **query: str) -> AppTest:
    return show(page, talk="1", **query)


def asked(app: AppTest, name: str) -> str:
    value = app.query_params[name]
    return value if isinstance(value, str) else value[0]


def heading(app: AppTest) -> str:
    return app.title[-1].value


@pytest.mark.parametrize("page", [name for name, *_ in shell.PAGES])
def test_at_most_one_figure_is_drawn(page: str, run: store.Run) -> None:  # noqa: F811
    app = talked(page)
    shown = words(app)
    assert figures(app) == (0 if "no figure to show" in shown else 1)
    assert "How to read this" not in shown  # of the page; the one of the figure stands under it without these words


def test_next_and_previous_walk_through_the_figures(run: store.Run) -> None:  # noqa: F811
    app = talked("similarity")
    headings = [heading(app)]
    for number in (2, 3):
        app.button(key="talk.Right").click().run()
        assert asked(app, "figure") == str(number) and asked(app, "run") == run.id
        headings.append(heading(app))
    assert len(set(headings)) == 3
    app.button(key="talk.PageUp").click().run()
    assert heading(app) == headings[1]


def test_beyond_the_last_figure_comes_the_next_page(run: store.Run) -> None:  # noqa: F811
    app = talked("overview", figure="2")
    app.button(key="talk.Right").click().run()
    assert not app.exception and asked(app, "figure") == "1" and asked(app, "talk") == "1"
    assert shell.PAGES[1][1] in words(app) and asked(app, "run") == run.id
    app.button(key="talk.Left").click().run()
    assert asked(app, "figure") == "2" and "2 / 2" in words(app)


def test_at_the_ends_there_is_no_further_step(run: store.Run) -> None:  # noqa: F811
    assert talked("overview").button(key="talk.Left").disabled
    last = shell.PAGES[-1][0]
    app = talked(last)
    assert app.button(key="talk.Right").disabled or figures(app)


@pytest.mark.parametrize("asked", ["999", "0", "-1", "x", "**1**", "1e400", "9" * 50])
def test_a_wrong_number_is_said(asked: str, run: store.Run) -> None:  # noqa: F811
    app = talked("overview", figure=asked)
    assert "The link names figure" in words(app) and "1 / 2" in words(app) and "**1**" not in words(app)


def test_leaving_keeps_what_was_chosen(run: store.Run) -> None:  # noqa: F811
    app = show("similarity")
    app.selectbox(key="c.module").set_value("down").run()
    before = figures(app)
    app.button(key="talk.enter").click().run()
    assert figures(app) == 1 and "down" in heading(app)
    app.button(key="talk.leave").click().run()
    assert figures(app) == before and app.selectbox(key="c.module").value == "down"
    assert "talk" not in app.query_params and "figure" not in app.query_params


def test_a_page_that_has_nothing_to_show_says_so(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "recorded_runs", lambda: [])
    assert "no figure to show" in words(talked("sensitivity"))


def test_pages_end_so_that_talk_mode_goes_on() -> None:
    for path in Path(shell.__file__).parents[1].rglob("*.py"):
        assert "st.stop()" not in path.read_text() or path.name == "login.py", f"{path.name}: use shell.stop()"


def test_a_part_that_redraws_itself_brings_its_figure_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(talk, "_draw", lambda place, large, alt: drawn.append((place, alt)))
    stage = talk.Stage("transfer")
    stage.add("figure", "alt", "t.loss")
    assert not drawn and len(stage.figures) == 1
    stage.place, stage.key = "place", "t.loss"
    monkeypatch.setattr(talk.enlarged, "enlarge", lambda figure: figure)
    stage.add("later", "new alt", "t.loss")
    stage.add("another", "alt", "t.other")
    assert drawn == [("place", "new alt")] and len(stage.figures) == 1


def test_lines_of_how_to_read_go_to_the_figures_before_them() -> None:
    stage = talk.Stage("x")
    for name in "abc":
        stage.add(name, name, name)
        if name == "b":
            stage.tell("of a and b")
    stage.tell("of c")
    assert [f.how for f in stage.figures] == ["of a and b", "of a and b", "of c"]
