"""`python -m benchmarks.start`: how long one waits for the library, the command line and the page server to begin.

The page server answers when its health endpoint does. What a first visitor waits for comes on top: the server imports
what pages need when its first script runs, and Chromium, already open, fetches and draws the start page. Everything is
started once uncounted, so that its files are in the system's cache: that is what warm means here.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import written
from benchmarks.browsing import CHROMIUM, ROOT, Visit, browser, served
from paraknow.screen import emit

ROUNDS = 5
LIMITS = {  # seconds
    "import paraknow": 0.3,
    "paraknow --help": 0.5,
    "paraknow runs list": None,
    "page server answers": 3.0,
    "… and a first visitor's page stands": None,
}


def process(*arguments: str) -> float:
    """Seconds from the start of a Python process to its end. Raises CalledProcessError where it fails."""
    with tempfile.TemporaryDirectory() as runs:  # not the user's own
        surroundings = {**os.environ, "PARAKNOW_RUNS": runs}
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env=surroundings)
        return time.perf_counter() - began


def server(chromium: Any) -> tuple[float, float]:
    """Seconds from the start of a page server until it answers, and until a browser's first page stands on it."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "runs"
        folder.mkdir()
        began = time.perf_counter()
        with served(folder) as (address, _):
            answered = time.perf_counter() - began
            visit = Visit(chromium, address)
            visit.open()
            stood = time.perf_counter() - began
            visit.close()
    return answered, stood


def measure(rounds: int) -> dict[str, list[float]]:
    """Seconds of every round, by what was measured; each once before, uncounted, so that files are in the cache."""
    cli = ("-m", "paraknow.cli")
    calls: dict[str, Callable[[], float]] = {
        "import paraknow": lambda: process("-c", "import paraknow"),
        "paraknow --help": lambda: process(*cli, "--help"),
        "paraknow runs list": lambda: process(*cli, "runs", "list"),
    }
    told: dict[str, list[float]] = {}
    for name, call in calls.items():
        told[name] = [call() for _ in range(rounds + 1)][1:]
    if CHROMIUM is not None:
        with browser() as chromium:
            pairs = [server(chromium) for _ in range(rounds + 1)][1:]
        told["page server answers"] = [answered for answered, _ in pairs]
        told["… and a first visitor's page stands"] = [stood for _, stood in pairs]
    return told


def rows(told: dict[str, list[float]]) -> list[dict[str, str]]:
    """A row per thing that was measured."""
    made = []
    for name, seconds in told.items():
        middle, limit = statistics.median(seconds), LIMITS[name]
        made.append(
            {
                "what": name,
                "median": f"{middle:.2f} s",
                "from – to": f"{min(seconds):.2f} – {max(seconds):.2f} s",
                "limit": "–" if limit is None else f"≤ {limit:g} s",
                "held": "–" if limit is None else "yes" if middle <= limit else "no",
            }
        )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """0: all limits held; 1: one was not."""
    parser = written.options(__doc__, "start")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args(argv)
    found = rows(measure(max(1, given.rounds)))

    load = f"Medians of {max(1, given.rounds)}. Load (1 minute) on {os.cpu_count()} cores: {os.getloadavg()[0]:.1f}."
    without = "" if CHROMIUM else "\n\nNo Chromium was found: the page server was not measured."
    body = f"{(__doc__ or '').split(chr(10), 2)[2]}\n{load}\n\n{written.markdown(found)}{without}"
    if given.write and given.rounds == ROUNDS:
        written.put("start", "Start-up", body)
    if given.json:
        emit({"start": found})
    else:
        print(body)
    return 0 if all(row["held"] != "no" for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
