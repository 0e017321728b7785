"""Colours can be told from both page backgrounds, as the Web Content Accessibility Guidelines ask (WCAG 2.2)."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from paraknow.figures import cross, ladder, layers, neurons, similarity, theme

CONFIG = tomllib.loads((Path(__file__).parents[2] / ".streamlit/config.toml").read_text())["theme"]
TEXT, MARK = 4.5, 3.0  # contrast of text (1.4.3) and of parts of a figure (1.4.11)
STYLES = (theme.TEACHER, theme.STUDENT, theme.EXAMINED, *theme.BASELINES, *theme.CONTROLS)
MARKS = {*(s.color for s in STYLES), *ladder.COLORS, *(k[1] for k in neurons.KINDS.values())}
MARKS |= {theme.NEUTRAL, theme.BLOCK, theme.EXPECTED, layers.CHOSEN}


def luminance(color: str) -> float:
    parts = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_pages_have_the_backgrounds_that_figures_are_made_for() -> None:
    assert (CONFIG["light"]["backgroundColor"], CONFIG["dark"]["backgroundColor"]) == (theme.LIGHT, theme.DARK)


@pytest.mark.parametrize("name", ["light", "dark"])
def test_text_and_links_of_pages(name: str) -> None:
    colors = CONFIG[name]
    for ground in (colors["backgroundColor"], colors["secondaryBackgroundColor"]):
        for part in ("textColor", "linkColor"):
            assert contrast(colors[part], ground) >= TEXT, part
    assert contrast(colors["primaryColor"], colors["backgroundColor"]) >= MARK


@pytest.mark.parametrize("ground", [theme.LIGHT, theme.DARK])
@pytest.mark.parametrize("color", sorted(MARKS))
def test_marks_of_figures(color: str, ground: str) -> None:
    assert contrast(color, ground) >= MARK


def test_numbers_in_cells() -> None:
    assert contrast(cross.INK, similarity.ABSENT) >= TEXT
    assert contrast("#FFFFFF", theme.BLOCK) >= MARK  # “chosen block”, beside its outline
    for color in similarity.DIVERGING:
        assert max(contrast(ink, color) for ink in (cross.INK, cross.PAPER)) >= TEXT
