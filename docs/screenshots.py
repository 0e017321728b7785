"""The pictures in README.md and docs/, taken anew from the dashboard on the recorded run.

    .venv/bin/python docs/screenshots.py            # needs the test tools and Chromium

It starts the app with an empty runs folder, opens pages in Chromium and writes assets/images/*.png.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
OUT = ROOT / "assets" / "images"
READY = "[data-testid=stApp][data-test-script-state=notRunning]"
LARGEST = 300_000  # bytes of a picture
WIDTH = 1280


@dataclass(frozen=True)
class Shot:
    """One picture: a page in a theme, from a heading of it on (from its top without one)."""

    name: str
    page: str
    theme: str = "light"
    heading: str = ""
    height: int = 860


SHOTS = (
    Shot("overview", "overview", height=900),
    Shot("sensitivity", "sensitivity", "dark", height=980),
    Shot("benchmarks", "benchmarks"),
    Shot("all-runs", "diagnose", heading="Similarity against knowledge, over all runs", height=1080),
)


def main() -> None:
    """Take every picture, or those named on the command line; exits with 1 where one is too large."""
    wanted = [s for s in SHOTS if s.name in sys.argv[1:] or not sys.argv[1:]]
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as runs:
        command = [sys.executable, "-m", "streamlit", "run", "app.py", f"--server.port={port}"]
        server = subprocess.Popen(
            [*command, "--server.headless=true"],
            cwd=ROOT,
            env={**os.environ, "PARAKNOW_RUNS": runs},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait(f"http://127.0.0.1:{port}/_stcore/health")
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
                sizes = [take(browser, f"http://127.0.0.1:{port}", shot) for shot in wanted]
                browser.close()
        finally:
            server.terminate()
            server.wait(20)
    sys.exit(1 if max(sizes, default=0) > LARGEST else 0)


def wait(address: str) -> None:
    """Until the server answers. Raises TimeoutError after two minutes."""
    until = time.time() + 120
    while time.time() < until:
        try:
            urlopen(address, timeout=2).read()
            return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(f"{address} does not answer")


def take(browser: Any, address: str, shot: Shot) -> int:
    """One picture; returns its size in bytes."""
    size = {"width": WIDTH, "height": shot.height}
    context = browser.new_context(viewport=size, color_scheme=shot.theme, device_scale_factor=1.25)
    page = context.new_page()
    page.goto(f"{address}/{'' if shot.page == 'overview' else shot.page}")
    page.wait_for_selector(READY, timeout=120_000)
    page.wait_for_selector("h1", timeout=120_000)
    page.wait_for_timeout(4000)  # figures draw after the script has ended
    page.wait_for_selector(READY, timeout=120_000)
    if shot.heading:
        heading = page.get_by_role("heading", name=shot.heading, exact=True).first
        heading.evaluate("e => e.scrollIntoView()")
        page.wait_for_timeout(2500)
    path = OUT / f"{shot.name}.png"
    page.screenshot(path=path)
    context.close()
    Image.open(path).convert("RGB").save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")
    return path.stat().st_size


if __name__ == "__main__":
    main()
