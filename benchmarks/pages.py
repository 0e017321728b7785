"""`python -m benchmarks.pages`: how long pages take in Chromium, what they send, and what the server holds.

A switch is the time from the press of a page's link in the sidebar until that page stands: its heading, no script that
runs, every chart drawn. The first visit is the first one after the server has started and shown the Overview: modules
and figures that no other page needs are made then. The others are made by new visitors of a warm server.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks import written
from benchmarks.browsing import CHROMIUM, TITLES, Visit, browser, served
from paraknow.runs import store
from paraknow.screen import emit

FIRST, SWITCH = 5.0, 1.0  # seconds
MESSAGES = 2.5e6  # bytes a page
MEMORY = 400 * 2**20  # bytes of the server
THEMES = ("light", "dark")
ROUNDS = 6


@dataclass
class Told:
    """What was measured of one page, visit by visit: seconds of the switch and of the server's CPU, bytes received."""

    seconds: list[float] = field(default_factory=list)
    server: list[float] = field(default_factory=list)
    received: list[int] = field(default_factory=list)


def _cpu(server: psutil.Process) -> float:
    used = server.cpu_times()
    return used.user + used.system


def tour(visit: Visit, run: str, server: psutil.Process, told: dict[str, Told]) -> float:
    """Every page once, through the sidebar, noted in `told`. Returns the seconds until the first page was painted."""
    began = time.perf_counter()
    visit.open("overview", f"?run={run}")
    visit.page.locator(".js-plotly-plot").first.wait_for()
    first = time.perf_counter() - began
    titles = list(TITLES.values())
    for title in [*titles[1:], titles[0]]:
        before, spent = visit.received, _cpu(server)
        seconds = visit.go(title)
        of_page = told.setdefault(title, Told())
        of_page.seconds.append(seconds)
        of_page.server.append(_cpu(server) - spent)
        of_page.received.append(visit.received - before)
    return first


@dataclass
class Measured:
    """The visits of a measurement: seconds to the first page, pages by name, bytes that the server holds at the end."""

    first: list[float]
    pages: dict[str, Told]
    memory: int

    @property
    def switch(self) -> float:
        """Median over pages of their median switch on a warm server, in seconds."""
        return statistics.median(statistics.median(p.seconds[1:]) for p in self.pages.values())

    @property
    def fresh(self) -> float:
        """Median over pages of the first switch to each, in seconds."""
        return statistics.median(p.seconds[0] for p in self.pages.values())


def measure(rounds: int, themes: Sequence[str] = THEMES) -> Measured:
    """Visit every page of the recorded run `rounds` times, in each theme by turns."""
    run = store.recorded_runs()[0].id
    told: dict[str, Told] = {}
    first = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "runs"
        folder.mkdir()
        with served(folder) as (address, server), browser() as chromium:
            warm = Visit(chromium, address)
            warm.open("overview", f"?run={run}")
            warm.close()
            for number in range(rounds):
                visit = Visit(chromium, address, theme=themes[number % len(themes)])
                first.append(tour(visit, run, server, told))
                visit.close()
            return Measured(first, told, server.memory_info().rss)


def rows(measured: Measured) -> list[dict[str, Any]]:
    """A row per page."""
    made = []
    for title, page in measured.pages.items():
        later = page.seconds[1:]
        made.append(
            {
                "page": title,
                "first visit": f"{page.seconds[0]:.2f} s",
                "later visits": f"{statistics.median(later):.2f} s",
                "from – to": f"{min(later):.2f} – {max(later):.2f} s",
                "server's CPU": f"{statistics.median(page.server[1:]):.2f} s",
                "messages": f"{max(page.received) / 1e6:.2f} MB",
            }
        )
    return made


def claims(measured: Measured) -> list[dict[str, Any]]:
    """What is asked for, and whether it was held."""
    sent = max(max(p.received) for p in measured.pages.values())
    found = (
        ("first page painted, median", statistics.median(measured.first), FIRST, "s", 1.0),
        ("page switch, median over pages, later visits", measured.switch, SWITCH, "s", 1.0),
        ("page switch, median over pages, first visits", measured.fresh, SWITCH, "s", 1.0),
        ("messages of a page, largest", sent, MESSAGES, "MB", 1e6),
        ("server's memory at the end", measured.memory, MEMORY, "MiB", 2**20),
    )
    return [
        {
            "what": what,
            "value": f"{value / unit:.2f} {name}",
            "limit": f"≤ {limit / unit:g} {name}",
            "held": "yes" if value <= limit else "no",
        }
        for what, value, limit, name, unit in found
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """0: all limits held; 1: one was not; 3: there is no Chromium."""
    parser = written.options(__doc__, "pages")
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help="visits of every page, at least 2; the themes take turns"
    )
    given = parser.parse_args(argv)
    if CHROMIUM is None:
        print("benchmarks.pages: no Chromium was found; install one, or name it in $CHROMIUM.", file=sys.stderr)
        return 3
    measured = measure(max(2, given.rounds))

    held, pages = claims(measured), rows(measured)
    load = f"Load (1 minute) on {os.cpu_count()} cores at the end: {os.getloadavg()[0]:.1f}."
    body = f"{(__doc__ or '').split(chr(10), 2)[2]}\n{load}\n\n{written.markdown(held)}\n\n{written.markdown(pages)}"
    if given.write and given.rounds == ROUNDS:
        written.put("pages", "Pages in the browser", body)
    if given.json:
        emit({"claims": held, "pages": pages})
    else:
        print(body)
    return 0 if all(row["held"] == "yes" for row in held) else 1


if __name__ == "__main__":
    sys.exit(main())
