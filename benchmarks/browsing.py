"""The dashboard as a process and Chromium in front of it: what the page benchmarks and the browser tests share."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil

from pages.parts import shell

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = next(
    (
        p
        for p in (
            os.environ.get("CHROMIUM"),
            "/usr/bin/chromium",
            shutil.which("chromium"),
            shutil.which("google-chrome"),
        )
        if p and Path(p).exists()
    ),
    None,
)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
# Streamlit's browser part cannot know under which folder of an address the server stands. It asks for its own two
# endpoints one folder below a page's address first, is told 404, and goes up: two lines in the console per deep link.
PROBES = re.compile(r"/[a-z]+/_stcore/(health|host-config)$")
READY = "[data-testid=stApp][data-test-script-state=notRunning]"
# Until the script has ended and nothing has changed for a while: what it drew may have made it run again. A page that
# never is still (a run under way) is left after a second.
STILL = """ready => new Promise(done => {
    const began = performance.now();
    let last = began;
    const seen = new MutationObserver(() => { last = performance.now(); });
    seen.observe(document.body, {subtree: true, childList: true, attributes: true, characterData: true});
    const look = () => {
        const now = performance.now();
        if (now - began < 1000 && (!document.querySelector(ready) || now - last < 150)) return setTimeout(look, 25);
        seen.disconnect();
        done();
    };
    look();
})"""
TITLES = {name: title for name, title, _ in shell.PAGES}
HEADINGS = {TITLES["overview"]: "Does knowledge cross scales?"}  # of the others: their title

# Presses a page's link in the sidebar and looks every 20 ms whether that page stands: its heading, no script that
# runs, nothing left of the page before, every chart drawn with its text. Milliseconds since the press; measured in the
# browser, so that the driver's own round trips are not counted.
SWITCH = """([title, heading, limit]) => new Promise((done, fail) => {
    const drawn = () => document.querySelector('[data-testid=stApp]').dataset.testScriptState === 'notRunning'
        && [...document.querySelectorAll('h1')].some(h => h.textContent.trim() === heading)
        && !document.querySelector('[data-testid=stSkeleton], [data-stale=true]')
        && [...document.querySelectorAll('[data-testid=stPlotlyChart]')].every(p =>
            p.querySelector('.gtitle, .xtick text'))
        && [...document.querySelectorAll('[data-testid=stVegaLiteChart]')].every(p => p.querySelector('svg, canvas'));
    const link = [...document.querySelectorAll('[data-testid=stSidebarNavLink]')]
        .find(a => a.textContent.endsWith(title));
    const began = performance.now();
    link.click();
    const look = () => {
        const now = performance.now() - began;
        if (drawn()) done(now);
        else if (now > limit) fail(new Error(`${title} does not stand after ${now} ms`));
        else setTimeout(look, 20);
    };
    setTimeout(look, 20);
})"""


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def end(process: psutil.Process) -> None:
    """End a process of ours and its children."""
    for one in [*process.children(recursive=True), process]:
        one.terminate()
    _, alive = psutil.wait_procs([process], timeout=10)
    for one in alive:
        one.kill()


def started(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """The dashboard's process on a port, over a runs folder; its log lies beside the folder."""
    options = [f"--server.port={port}", "--server.headless=true"]
    with (folder.parent / "server.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "streamlit", "run", "app.py", *options],
            cwd=ROOT,
            env={**os.environ, "PARAKNOW_RUNS": str(folder)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def answers(port: int) -> bool:
    """Whether the dashboard's health endpoint answers."""
    try:
        return bool(urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=1).read())
    except OSError:
        return False


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The dashboard over a runs folder: its address and its process. Raises TimeoutError where it does not come up."""
    port = free_port()
    process = started(folder, port)
    try:
        until = time.monotonic() + 120
        while not answers(port):
            if time.monotonic() > until:
                raise TimeoutError(f"the dashboard does not answer; see {folder.parent / 'server.log'}")
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
    finally:
        end(psutil.Process(process.pid))


@contextmanager
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


class Visit:
    """One browser tab that notes what went wrong in it. All tabs share what the browser has fetched and compiled."""

    def __init__(self, chromium: Any, address: str, theme: str = "light", width: int = 1440, height: int = 900):
        self.address = address
        self.page = (chromium.contexts or [chromium.new_context()])[0].new_page()
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.emulate_media(color_scheme=theme)
        self.errors: list[str] = []
        self.received = 0  # bytes of the server's messages
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: self._note(message))
        self.page.on("websocket", lambda socket: socket.on("framereceived", self._count))

    def _note(self, message: Any) -> None:
        probe = "status of 404" in message.text and PROBES.search(message.location.get("url", ""))
        if message.type == "error" and not probe:
            self.errors.append(f"{message.text} {message.location.get('url', '')}")

    def _count(self, payload: str | bytes) -> None:
        self.received += len(payload)

    def open(self, page: str = "overview", query: str = "") -> None:
        """By the address, as a link is followed."""
        self.page.goto(f"{self.address}/{'' if page == 'overview' else page}{query}")
        self.settle()

    def go(self, title: str) -> float:
        """Through the sidebar, as people do. Returns the seconds until the page stands, its last chart drawn."""
        took = self.page.evaluate(SWITCH, [title, HEADINGS.get(title, title), 60_000]) / 1000
        self.settle()
        return took

    def go_unseen(self, title: str) -> None:
        """Through the sidebar while it is folded away; the page is not loaded anew."""
        self.page.get_by_test_id("stSidebarNavLink").filter(has_text=title).dispatch_event("click")
        self.page.get_by_role("heading", name=HEADINGS.get(title, title), exact=True).wait_for()
        self.settle()

    def settle(self) -> None:
        """Wait until the page stands. Raises AssertionError where it shows an exception."""
        self.page.wait_for_selector(READY, timeout=60_000)
        self.page.wait_for_selector("h1:visible", timeout=30_000)
        self.page.evaluate(STILL, READY)
        self.page.wait_for_selector(READY, timeout=60_000)
        assert self.page.get_by_test_id("stException").count() == 0

    def close(self) -> None:
        """Close the tab. Raises AssertionError where something went wrong in it."""
        self.page.close()
        assert not self.errors, self.errors
