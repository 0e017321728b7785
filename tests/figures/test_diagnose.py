"""Figures of findings: every rule's numbers can be drawn, hostile ones too."""

from __future__ import annotations

import pytest

from paraknow.diagnose import RULES
from paraknow.figures import diagnose
from tests.diagnose.made import of
from tests.diagnose.test_rules import BROKEN

ELSEWHERE = {"gains", "forgotten", "losses", ""}  # drawn from deltas.json and the losses; none


def test_every_figure_that_a_rule_names_is_there() -> None:
    assert {rule.figure for rule in RULES} <= set(diagnose.DRAWINGS) | ELSEWHERE


@pytest.mark.parametrize("k", range(len(BROKEN)), ids=[f"{b[0]}-{k}" for k, b in enumerate(BROKEN)])
def test_a_finding_s_numbers_are_what_its_figure_draws(k: int) -> None:
    (found,) = of(*BROKEN[k][:2])
    figure = diagnose.draw(found.figure, found.numbers)
    if found.figure in ELSEWHERE or not found.numbers:
        assert figure is None
        return
    drawing = diagnose.DRAWINGS[found.figure]
    assert figure is not None and figure.layout.title.text.replace("<br>", " ") == drawing.title
    marks = figure.data[0]
    held = list(marks.x if drawing.across is None else marks.y)
    assert held == [row[drawing.series[0].column] for row in found.numbers]
    assert diagnose.drawable(found.figure, found.plain()["numbers"])
    assert drawing.title in diagnose.describe(found.figure, found.numbers)


def test_names_of_users_are_text_and_missing_values_are_gaps() -> None:
    numbers = [
        {"on": "<b>x</b> $y$", "held against": "z", "difference (points)": None, "from": None, "to": None, "n": None}
    ]
    figure = diagnose.draw("controls", numbers)
    assert figure is not None and list(figure.data[0].x) == [None]
    assert "<b>" not in "".join(figure.data[0].y) and "–" in diagnose.describe("controls", numbers)
    assert diagnose.draw("controls", []) is None and diagnose.draw("nowhere", numbers) is None
    twice = diagnose.draw("controls", [{"on": "a", "difference (points)": 1.0}] * 2)
    assert twice is not None and len(set(twice.data[0].y)) == 2
