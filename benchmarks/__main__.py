"""`python -m benchmarks [PART …] [--json]`, or `make bench`: what is measured of speed and memory, part by part.

Every part is a module beside this one with a command of its own, `python -m benchmarks.PART [--write] [--json]`; here
all write what they measured into docs/performance.md (`scale`: docs/scale.md). Each runs in a process of its own, so
that none inherits another's memory or threads.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from paraknow.screen import emit, table

PARTS = ("ratios", "growth", "profiles", "pages", "start", "memory", "groups", "scale", "gpu")
NOTHING_TO_MEASURE = 3  # a part's exit code where the machine lacks what it measures
WORDS = {
    0: "done",
    1: "a limit was not held, or it broke off",
    NOTHING_TO_MEASURE: "nothing to measure on this machine",
}


def run(part: str, as_json: bool) -> tuple[int, dict[str, Any] | None]:
    """One part's exit code and, where it was asked for, the object that it printed; None where it printed none."""
    command = [sys.executable, "-m", f"benchmarks.{part}", "--write", *["--json"] * as_json]
    # as the worker sets it: threads that wait by spinning would count as work
    environment = {"GOMP_SPINCOUNT": "1000", **os.environ}
    done = subprocess.run(command, stdout=subprocess.PIPE if as_json else None, text=True, env=environment)
    try:
        printed = json.loads(done.stdout) if as_json else None
    except ValueError:
        return done.returncode or 4, None
    return done.returncode, printed if isinstance(printed, dict) else None


def main(argv: Sequence[str] | None = None) -> int:
    """0: parts done or nothing to measure; 1: one failed or a limit was not held; 2: no such part; 130: cancelled."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--json", action="store_true", help="print one JSON object with all that the parts print")
    arguments = parser.parse_args(argv)
    if unknown := [part for part in arguments.parts if part not in PARTS]:
        print(f"benchmarks: there is no part {unknown[0]!r}; the parts are {', '.join(PARTS)}.", file=sys.stderr)
        return 2
    rows, printed = [], {}
    for part in dict.fromkeys(arguments.parts or PARTS):
        print(f"benchmarks: {part}", file=sys.stderr, flush=True)
        began = time.perf_counter()
        try:
            code, printed[part] = run(part, arguments.json)
        except KeyboardInterrupt:
            print(f"benchmarks: broken off in {part}.", file=sys.stderr)
            return 130
        rows.append({"part": part, "code": code, "seconds": round(time.perf_counter() - began, 1)})
    if arguments.json:
        emit({"parts": rows, "printed": printed})
    else:
        table([{**row, "code": WORDS.get(row["code"], f"failed ({row['code']})")} for row in rows], "Parts")
    return 0 if all(row["code"] in (0, NOTHING_TO_MEASURE) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
