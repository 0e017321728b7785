"""The cross matrix shows every cell with its interval, the diagonal framed, and what is missing as missing."""

from __future__ import annotations

import pytest

from paraknow.figures import cross
from paraknow.figures.theme import EXAMINED
from tests.pages import tables

FOUND = tables.crossed()
TASKS = FOUND["tasks"]


def drawn(scope: str = "all", held: str = cross.STUDENT):
    return cross.matrix(cross.cells(FOUND, scope, held), TASKS, FOUND["title"], scope, held)


def test_axes_say_what_was_located_and_what_was_measured():
    figure = drawn()
    assert figure.layout.xaxis.title.text == "measured on" and figure.layout.yaxis.title.text == "located on"
    assert list(figure.layout.xaxis.ticktext) == ["demo:people", "demo:sort"]
    assert list(figure.layout.yaxis.ticktext) == ["demo:people", "demo:sort", "nothing<br>(noise)"]
    assert "to the student, all items" in figure.layout.title.text.replace("<br>", " ")
    assert "demo:people 120" in figure.layout.title.subtitle.text


def test_numbers_and_intervals_stand_in_their_cells():
    figure = drawn()
    at = {}
    for note in figure.layout.annotations:
        at.setdefault((note.x, note.y), []).append(note.text)
    assert at[0, 0] == ["<b>+0.40</b>", "+0.30 to +0.50"] and at[0, 2] == ["<b>0.00</b>", "−0.05 to +0.05"]
    assert at[1, 0] == ["missing"] and figure.data[0].z[0][1] is None
    assert min(note.font.size for note in figure.layout.annotations if "<b>" in note.text) >= 24
    assert "it broke &lt;b&gt;" in figure.data[0].customdata[0][1]


def test_the_scale_is_symmetric_around_zero():
    (heat,) = drawn().data
    assert (heat.zmin, heat.zmax) == (-0.4, 0.4) and heat.colorscale[2][0] == 0.5
    assert cross.span(cross.cells(FOUND).head(0)) == cross.LEAST


def test_the_diagonal_is_framed():
    frames = [s for s in drawn().layout.shapes if s.line.color == EXAMINED.color]
    assert [(s.x0 + 0.49, s.y0 + 0.49) for s in frames] == [(pytest.approx(k), pytest.approx(k)) for k in (0, 1)]


def test_against_a_control_there_is_no_row_of_noise():
    table = cross.cells(FOUND, "all", "noise")
    assert cross.NOTHING not in set(table.located) and table.value.iloc[0] == pytest.approx(0.35)
    assert len(drawn("all", "noise").layout.yaxis.tickvals) == 2
    assert "noise of the same size" in drawn("all", "noise").layout.title.text.replace("<br>", " ")


def test_a_group_that_only_one_task_has_leaves_the_others_missing():
    assert cross.scopes(FOUND) == ["all", "never_shown"]
    texts = [note.text for note in drawn("never_shown").layout.annotations]
    assert texts.count("missing") == 3


def test_words_for_screen_readers():
    said = cross.describe(cross.cells(FOUND))
    assert "located on demo:people, measured on demo:people: +0.40 (+0.30 to +0.50)" in said and "missing" in said
