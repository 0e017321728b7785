"""Everything as people read it in Chromium: every page in both themes, narrow, large models, links, budgets."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator

import psutil
import pytest

from benchmarks.browsing import TITLES, Visit, served
from benchmarks.pages import FIRST, MEMORY, MESSAGES, SWITCH
from paraknow.runs import store
from tests.browser import looking
from tests.browser.test_dashboard import PAGES, chromium, pytestmark  # noqa: F401 (fixture, marks)
from tests.pages import large

SLACK = 3  # times as long is allowed, and more where every core has several things to do at once


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> store.Run:
    """A run of forty layers against thirty-two, in a folder of its own."""
    return large.write(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def server(deep: store.Run) -> Iterator[tuple[str, psutil.Process]]:
    """The app over that folder: its address and process. No run waits here, so no worker is started."""
    with served(deep.folder.parent) as (address, process):
        yield address, process


@pytest.fixture
def tab(chromium, server: tuple[str, psutil.Process]) -> Iterator:  # noqa: F811
    opened: list[Visit] = []

    def make(**more) -> Visit:
        opened.append(Visit(chromium, server[0], **more))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def drawn(visit: Visit) -> None:
    """Wait until figures in sight have their text."""
    visit.page.wait_for_function(
        "() => [...document.querySelectorAll('.js-plotly-plot')].every(p => p.querySelector('.gtitle, .xtick text'))"
    )


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_story_through_all_pages(theme: str, tab) -> None:
    visit, recorded = tab(theme=theme), store.recorded_runs()[0]
    visit.open()  # the server's first page is not measured: it imports what all others use
    began = time.perf_counter()
    visit.open("overview", f"?run={recorded.id}")
    visit.page.locator(".js-plotly-plot").first.wait_for()
    first, times, sizes = time.perf_counter() - began, {}, {"Overview": visit.received}
    for title in [*list(TITLES.values())[1:], "Overview"]:
        before = visit.received
        times[title] = visit.go(title)
        drawn(visit)
        sizes[title] = max(sizes.get(title, 0), visit.received - before)
        assert looking.grave(visit.page, None if theme == "light" else ["color-contrast"]) == [], title
        assert visit.page.evaluate(looking.FAINT) == [], title
        assert recorded.id in visit.page.url
    median = statistics.median(times.values())
    print(f"{theme}: first page {first:.1f} s; switches {', '.join(f'{k} {v:.2f} s' for k, v in times.items())}")
    print(f"messages: {', '.join(f'{k} {v / 1e6:.2f} MB' for k, v in sizes.items())}")
    slack = SLACK * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert first <= FIRST * slack and median <= SWITCH * slack
    assert max(sizes.values()) <= MESSAGES


def test_a_large_pair_within_the_budgets(tab, deep: store.Run, server: tuple[str, psutil.Process]) -> None:
    visit = tab()
    visit.open("overview", f"?run={deep.id}")
    sizes = {}
    for name, title in list(TITLES.items())[1:]:
        before = visit.received
        visit.go(title)
        drawn(visit)
        if name == "sensitivity":  # a click in the last row opens that layer
            cells = visit.page.get_by_test_id("stVegaLiteChart").first.locator("canvas, svg").first
            cells.scroll_into_view_if_needed()
            last = cells.locator(".mark-rect.role-mark path").last
            last.scroll_into_view_if_needed()
            box = last.bounding_box()
            visit.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
            visit.page.wait_for_function(
                "() => [...document.querySelectorAll('[data-testid=stMain] input')].some(box => box.value === '39')"
            )
            visit.settle()
        sizes[title] = visit.received - before
    rss = server[1].memory_info().rss
    print(f"large pair: {', '.join(f'{k} {v / 1e6:.2f} MB' for k, v in sizes.items())}; server {rss / 2**20:.0f} MiB")
    assert max(sizes.values()) <= MESSAGES
    assert rss <= MEMORY


def test_a_narrow_window_shows_everything(tab) -> None:
    visit = tab(width=390, height=3000)
    for page in PAGES:
        if page == PAGES[0]:
            visit.open(page, f"?run={store.recorded_runs()[0].id}")
        else:
            visit.go_unseen(TITLES[page])
        drawn(visit)
        beyond, cut = visit.page.evaluate(looking.WIDE)
        assert beyond <= 0 and cut == [], page


@pytest.mark.parametrize("theme, size", [("light", (1280, 720)), ("dark", (1920, 1080))])
def test_talk_mode_fills_the_screen(theme: str, size: tuple[int, int], tab) -> None:
    visit = tab(theme=theme, width=size[0], height=size[1])
    visit.open("similarity", f"?talk=1&figure=3&run={store.recorded_runs()[0].id}")
    for number in (3, 4, 5):
        visit.page.get_by_text(f"{number} / ").wait_for()
        figure = visit.page.locator(".js-plotly-plot, [data-testid=stVegaLiteChart]")
        figure.wait_for()
        visit.page.wait_for_timeout(700)
        assert figure.count() == 1 and figure.bounding_box()["height"] > 0.45 * size[1]
        assert min(visit.page.evaluate(looking.SIZES)) >= 18
        main = visit.page.get_by_test_id("stMain")
        assert main.evaluate("e => [e.scrollHeight - e.clientHeight, e.scrollWidth - e.clientWidth]") == [0, 0]
        assert visit.page.get_by_test_id("stSidebar").is_hidden()
        visit.page.keyboard.press("PageDown" if number % 2 else "ArrowRight")
        visit.page.wait_for_function("n => location.search.includes(`figure=${n}`)", arg=number + 1)
        visit.settle()
    assert looking.grave(visit.page) == []
    visit.page.keyboard.press("Escape")
    visit.page.wait_for_function("() => !location.search.includes('talk')")
    visit.page.get_by_role("heading", name="Similarity", exact=True).wait_for()


def test_links_that_name_nothing_are_said(tab, deep: store.Run) -> None:
    visit = tab()
    visit.open("benchmarks", "?run=nonsense")
    visit.page.get_by_text("which is not here").wait_for()
    visit.open("overview", f"?talk=1&figure=999&run={deep.id}")
    visit.page.get_by_text("The link names figure 999").wait_for()
    other = tab()  # two tabs have a run each
    other.open("runs", f"?run={store.recorded_runs()[0].id}")
    other.page.reload()
    other.settle()
    assert store.recorded_runs()[0].id in other.page.url and deep.id in visit.page.url
    other.open("nowhere", f"?run={deep.id}")
    other.page.get_by_text("Page not found").wait_for()
    said = [text for text in other.errors if "does not seem to exist" not in text and "fonts.gstatic.com" not in text]
    other.errors = [text for text in said if "nowhere" not in text]


LOOK = """e => { const shown = []; for (let n = e, k = 0; k < 6 && n; k++, n = n.parentElement) {
    const s = getComputedStyle(n); shown.push([s.outline, s.boxShadow, s.borderColor, s.backgroundColor].join()); }
    return shown.join(';'); }"""


def test_everything_is_reached_by_keyboard(tab) -> None:
    visit = tab()
    visit.open("transfer")
    reached, same, before, looked = set(), [], None, ""
    for _ in range(32):
        visit.page.keyboard.press("Tab")
        visit.page.wait_for_timeout(200)  # borders change their colour slowly
        together = before is not None and before.evaluate(
            "e => !!e.closest('[role=group]')?.contains(document.activeElement)"  # they share one border
        )
        if before is not None and not together and before.evaluate(LOOK) == looked:
            same.append(before.evaluate("e => e.outerHTML.slice(0, 150)"))
        before = visit.page.evaluate_handle("() => document.activeElement").as_element()
        looked = before.evaluate(LOOK)
        name = before.evaluate("e => e.ariaLabel || e.innerText || ''")
        reached.add(name.strip().split("\n")[-1])
    assert {*TITLES.values(), "Run", "Talk mode", "Teacher"} <= reached
    assert same == []
