"""Names and titles in figures: different models never look alike, and a narrow window shows what a figure says."""

from __future__ import annotations

import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraknow.figures import theme

NAMES = st.lists(st.text(alphabet="ab/-…é ", max_size=60), max_size=6)


@given(NAMES, st.integers(theme.SHORTEST, 60))
def test_different_models_look_different_however_they_are_cut(names: list[str], length: int) -> None:
    made = theme.distinct({str(k): name for k, name in enumerate(names)})
    assert len({theme.short(name, length) for name in made.values()}) == len(names)


@given(st.text(alphabet="ab/- ", max_size=90), st.integers(4, 60))
def test_cut_names_keep_both_ends(name: str, length: int) -> None:
    cut = theme.short(name, length)
    assert len(cut) == min(len(name), length)
    assert cut == name or (name.startswith(cut.split("…")[0][: length // 4]) and name.endswith(cut[-(length // 2) :]))


def test_only_what_differs_is_kept_of_long_names() -> None:
    family = "some-organisation/Some-Model-Family"
    made = theme.distinct({"a": f"{family}-70B-Instruct", "b": f"{family}-7B-Instruct", "c": "x", "d": "x"})
    assert made == {"a": "…70B-Instruct", "b": "…7B-Instruct", "c": "x", "d": "x (2)"}
    assert theme.distinct({"a": "demo:teacher", "b": "demo:student"}) == {"a": "demo:teacher", "b": "demo:student"}


@given(st.text(alphabet="ab -;", max_size=200), st.integers(10, 60))
def test_lines_keep_their_words(text: str, width: int) -> None:
    made = theme.lines(text, width)
    assert made.replace("<br>", " ").split() == text.split()
    assert all(len(line) <= width or " " not in line for line in made.split("<br>"))


def test_a_title_of_two_lines_makes_room_for_itself() -> None:
    one, two = (theme.frame(go.Figure(), text, 300, "note").layout for text in ("short", "long words " * 8))
    assert two.height > one.height and two.margin.t > one.margin.t
    assert one.height - one.margin.t == two.height - two.margin.t


@pytest.mark.parametrize("layers", [1, 4, 24, 25, 80, 126, 1000])
def test_axes_of_deep_models_keep_few_numbers(layers: int) -> None:
    step = theme.sparse(layers)
    assert len(range(0, layers, step)) <= 24 and (layers > 24 or step == 1)
