"""Two tabs at once, a page server that is killed, a run whose folder goes away: what the open page shows."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest

from benchmarks.browsing import ROOT, Visit, end, free_port
from benchmarks.faults import small
from paraknow.runs import queue, store
from paraknow.runs.store import Run
from tests.browser.test_dashboard import chromium, pytestmark  # noqa: F401 (fixture, marks)
from tests.processes import end_serving, until


class Server:
    """The app on a port of its own, that can be killed and started again."""

    def __init__(self, folder: Path):
        self.folder, self.port = folder, free_port()
        self.address = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        options = [f"--server.port={self.port}", "--server.headless=true"]
        with (self.folder.parent / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "streamlit", "run", "app.py", *options],
                cwd=ROOT,
                env={**os.environ, "PARAKNOW_RUNS": str(self.folder), "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until(self.answers, 180)

    def answers(self) -> bool:
        try:
            return bool(urlopen(f"{self.address}/_stcore/health", timeout=1).read())
        except OSError:
            return False


@pytest.fixture
def server(runs) -> Iterator[Server]:
    runs.mkdir()
    made = Server(runs)
    made.start()
    yield made
    end(psutil.Process(made.process.pid))
    end_serving(runs)


def beating(run: Run) -> float:
    return run.status().get("heartbeat", 0.0)


@pytest.mark.timeout(1500)
def test_two_tabs_and_a_killed_server(server: Server, runs, chromium) -> None:  # noqa: F811
    model = store.create(small(), state="cancelled")
    tabs = [Visit(chromium, server.address) for _ in range(2)]
    for tab in tabs:
        tab.open("transfer", f"?run={model.id}")
        tab.page.get_by_role("button", name="As the chosen run").click()
        tab.settle()
    for tab in tabs:  # at once: neither waits for the other's page
        tab.page.get_by_role("button", name="Start this run").click()
    until(lambda: len(store.listing()) == 3, 120)
    second, first = (Run(runs / row["id"]) for row in store.listing()[:2])
    until(lambda: {first.status()["state"], second.status()["state"]} == {"done"}, 500)
    assert second.status()["started"] >= first.status()["finished"] - 0.5
    for tab in tabs:
        tab.settle()
    tabs[1].close()

    tab = tabs[0]
    long = queue.submit(small(tune={"epochs": 10000, "max_length": 64}))
    tab.open("transfer", f"?run={long.id}")
    tab.page.get_by_text("Running").first.wait_for(timeout=180_000)
    until(lambda: long.status().get("stage") == "tune", 300)
    server.process.kill()
    server.process.wait()
    before = beating(long)
    until(lambda: beating(long) > before + 1, 120)  # the run goes on
    server.start()
    step = long.status()["step"]
    tab.page.wait_for_function(  # the open page comes back by itself, with a later step
        "step => { const found = document.body.innerText.match(/step (\\d+) of/); return found && +found[1] > step; }",
        arg=step,
        timeout=240_000,
    )
    tab.settle()
    tab.errors.clear()  # while there was no server, the browser said so
    tab.page.get_by_role("button", name="Cancel this run").click()
    until(lambda: long.status()["state"] == "cancelled", 120)
    tab.page.get_by_role("button", name="Resume this run").wait_for(timeout=120_000)

    shutil.rmtree(long.folder)  # while it is shown
    tab.page.wait_for_timeout(1000)
    tab.settle()  # the page may have seen it by now, and taken its button away
    for page in ("overview", "runs", "transfer", "benchmarks"):
        tab.open(page, f"?run={long.id}")
        tab.page.get_by_text("which is not here").first.wait_for(timeout=60_000)
    away = ("disconnected", "not responding", "WebSocket", "ERR_CONNECTION")  # said late of the time without a server
    tab.errors = [text for text in tab.errors if not any(word in text for word in away)]
    tab.close()
