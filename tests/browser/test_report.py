"""Reports in Chromium: hostile text makes no element and no request, light and dark; all figures are drawn."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from paraknow.report import page, source
from paraknow.runs import store
from tests.browser.test_dashboard import chromium, pytestmark  # noqa: F401 (fixture, marks)
from tests.pages import hostile
from tests.pages.test_pages import run  # noqa: F401 (fixture)

MADE = """() => [...document.querySelectorAll('main *, header *, nav *, footer *')].filter(e =>
    ['IMG', 'IFRAME', 'OBJECT', 'EMBED', 'LINK', 'a', 'foreignObject', 'script'].includes(e.tagName)
    || (e.tagName === 'image' && !e.href.baseVal.startsWith('data:image/png'))
    || (e.tagName === 'SCRIPT' && e.type !== 'application/json')
    || (e.tagName === 'A' && !e.getAttribute('href').startsWith('#') && !e.closest('footer'))
    || (e.tagName === 'B' && e.textContent !== 'How to read this.')
    || [...e.attributes].some(a => a.name.startsWith('on'))).map(e => e.outerHTML.slice(0, 200))"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_hostile_text_is_text(theme: str, chromium, run: store.Run, runs: Path, tmp_path: Path) -> None:  # noqa: F811
    bad = hostile.whole(runs)
    if theme == "light":
        text = page.compose([source.Source(bad)])
    else:
        other = store.Run(runs / f"{bad.id}-b")
        shutil.copytree(bad.folder, other.folder)
        text = page.compose([source.Source(r) for r in (bad, other)])
    file = tmp_path / "report.html"
    file.write_text(text, encoding="utf-8")
    context = chromium.new_context(viewport={"width": 1440, "height": 900}, color_scheme=theme)
    try:
        tab, noted, asked = context.new_page(), [], []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("pageerror", lambda error: noted.append(str(error)))
        tab.on("dialog", lambda dialog: noted.append(dialog.message))
        tab.on("console", lambda message: noted.append(message.text) if message.type == "error" else None)
        tab.goto(file.as_uri())
        tab.wait_for_selector("html[data-drawn=all]", timeout=60_000)
        if theme == "dark":  # closed boxes draw their figures once they are opened
            tab.evaluate("document.querySelectorAll('details').forEach(box => { box.open = true; })")
            every = "() => [...document.querySelectorAll('.plot')].every(place => place.querySelector('.main-svg'))"
            tab.wait_for_function(every, timeout=60_000)
        assert asked == [file.as_uri()] and not noted
        assert tab.evaluate(MADE) == []
        assert tab.evaluate("document.querySelectorAll('script:not([type])').length") == 2
        ink = tab.evaluate("getComputedStyle(document.querySelector('.drawing text')).fill")
        paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ink, paper) == (
            ("rgb(27, 36, 48)", "rgb(255, 255, 255)") if theme == "light" else ("rgb(230, 234, 240)", "rgb(16, 21, 28)")
        )
        assert hostile.SHORT.split()[0] in tab.locator("main").inner_text()
    finally:
        context.close()
