"""`python -m benchmarks [NAME …] [--json]`: ratios against rivals on this machine's CPU; see gpu.py for a GPU."""

from __future__ import annotations

import argparse
import os
import sys

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the worker sets it, before torch is imported

import torch

from benchmarks import comparing, evaluating, locating
from paraknow.screen import emit, table

CPU = torch.device("cpu")
BENCHMARKS = {
    "sensitivity": lambda: locating.sensitivity_cost(CPU),
    "blocks": lambda: locating.block_choice(CPU),
    "neurons": lambda: locating.attribution(CPU, 5),
    "cka": lambda: comparing.cka_cost(CPU),
    "evaluation": lambda: evaluating.evaluation_cost(CPU),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHMARKS):
        print(f"benchmarks: no such benchmark: {', '.join(sorted(unknown))}.", file=sys.stderr)
        return 2
    rows = [r.row() for name in arguments.names or BENCHMARKS for r in BENCHMARKS[name]()]
    if arguments.json:
        emit({"benchmarks": rows})
    else:
        shown = [{**r, "rounds": " ".join(f"{x:.3g}" for x in r["rounds"])} for r in rows]
        table([{k: r[k] for k in ("what", "rival", "value", "limit", "held", "rounds")} for r in shown], "Ratios")
    return 0 if all(r["held"] for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
