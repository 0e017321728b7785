"""In Chromium: hostile text makes no element and no request; a dashboard with a login shows nothing before it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.browsing import PROBES, READY
from paraknow.runs import store
from tests import servers
from tests.browser.test_dashboard import chromium, pytestmark  # noqa: F401 (fixture, marks)
from tests.pages import hostile
from tests.pages.test_pages import run  # noqa: F401 (fixture)
from tests.test_serving import AUTH, secrets

PAGES = ("benchmarks", "similarity", "runs")  # of all kinds of elements; the others by test_hostile.py in tests/pages
MADE = """() => {
    const at = [...document.querySelectorAll('[data-testid=stApp] *')];
    const bad = e => (e.tagName === 'IMG' && !e.src.startsWith('data:') && !e.src.startsWith(location.origin))
        || (e.tagName === 'SCRIPT') || (e.tagName === 'IFRAME') || e.hasAttribute('onerror')
        || (e.tagName === 'A' && e.href && !e.href.startsWith(location.origin)) || (e.tagName === 'a')
        || (e.tagName === 'B') || (e.classList && e.classList.contains('katex'))
        || (e.tagName === 'tspan' && e.textContent === 'T');
    return at.filter(bad).map(e => e.outerHTML.slice(0, 200));
}"""


class Watched:
    """A tab that notes errors, dialogs and requests to any other address."""

    def __init__(self, browser, port: int):
        self.address = f"http://127.0.0.1:{port}"
        self.context = browser.new_context(viewport={"width": 1440, "height": 900})
        self.page, self.noted = self.context.new_page(), []
        self.page.on("request", self._request)
        self.page.on("pageerror", lambda error: self.noted.append(str(error)))
        self.page.on("dialog", lambda dialog: self.noted.append(f"dialog: {dialog.message}"))
        self.page.on("console", lambda message: self._console(message))

    def _request(self, request) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.noted.append(request.url)

    def _console(self, message) -> None:
        if message.type == "error" and not PROBES.search(message.location.get("url", "")):
            self.noted.append(message.text)

    def open(self, path: str) -> None:
        self.page.goto(f"{self.address}/{path}")
        self.settle()

    def settle(self) -> None:
        self.page.wait_for_selector("h1:visible", timeout=60_000)
        self.page.wait_for_timeout(300)
        self.page.wait_for_selector(READY, timeout=60_000)


@pytest.fixture
def tab(chromium) -> Iterator:  # noqa: F811
    opened = []

    def make(port: int) -> Watched:
        opened.append(Watched(chromium, port))
        return opened[0]

    yield make
    for one in opened:
        one.context.close()


def test_hostile_text_is_only_text(run: store.Run, runs: Path, tab) -> None:  # noqa: F811
    bad = hostile.whole(runs)
    with servers.app(runs.parent) as (_, port):
        visit = tab(port)
        visit.open(f"?run={bad.id}")
        for page in (None, *PAGES):
            if page:
                visit.page.get_by_test_id("stSidebarNav").get_by_text(page.capitalize(), exact=True).click()
                visit.page.get_by_role("heading", name=page.capitalize(), exact=True).wait_for()
                visit.settle()
            assert visit.page.get_by_test_id("stException").count() == 0
            if page == "benchmarks":
                visit.page.get_by_test_id("stExpander").first.click()
                visit.page.locator(".js-plotly-plot .point").first.hover(force=True)
            assert visit.page.evaluate(MADE) == [], page
        assert visit.noted == []


def test_nothing_is_shown_before_login(tmp_path: Path, runs: Path, tab) -> None:
    secrets(tmp_path, AUTH)
    with servers.app(tmp_path) as (_, port):
        visit = tab(port)
        for path in ("runs", ""):  # the first of a cold server goes past app.py: see through_app
            visit.open(path)
            visit.page.get_by_role("button", name="Log in").wait_for()
            assert visit.page.get_by_test_id("stSidebar").count() == 0
            assert visit.page.locator("[data-testid=stMain] button").count() == 1
            assert visit.page.get_by_test_id("stMain").inner_text().split() == ["ParaKnow", "login", "Log", "in"]
        assert "nobody can come in" in (tmp_path / "log").read_text()  # Authlib is not installed here
