"""`python -m benchmarks.ratios [NAME …] [--json]`: our code against rivals on this machine's CPU, as ratios.

With --write they go into the part "ratios" of docs/performance.md, single ones in their own places. On a GPU: gpu.py.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the worker sets it, before torch is imported

import torch

from benchmarks import adapters, comparing, evaluating, factoring, locating, training, written
from benchmarks.measure import Ratio
from paraknow.errors import RunError
from paraknow.screen import emit, table

TITLE = "Our code against rivals"
HEAD = """Both sides run in one process, by turns, after one round to warm up; the side that begins changes from round
to round. Given is the median of the rounds' ratios, with the least and the most of them, and the median of the same
ratios by CPU time. Memory is of tensors held at once beyond the models' weights, as torch's profiler counts it. Models
are random Llamas of 10 or 35 million parameters, where nothing else is said."""

Benchmark = Callable[[torch.device], list[Ratio]]


BENCHMARKS: dict[str, tuple[str, Benchmark]] = {
    "sensitivity": ("Sensitivity over bare passes", locating.sensitivity_cost),
    "literal": ("Sensitivity over its literal version", locating.literal_sensitivity_cost),
    "blocks": ("Choice of blocks", locating.block_choice),
    "factors": ("Factors of a block", factoring.factor_cost),
    "neurons": ("Attribution to neurons", locating.attribution),
    "cka": ("CKA", comparing.cka_cost),
    "laten": ("LaTen", training.laten_cost),
    "tuning": ("Fine-tuning", training.tuning_cost),
    "adapters": ("Adapters on the disk", adapters.adapter_cost),
    "evaluation": ("Evaluation", evaluating.evaluation_cost),
}

COLUMNS = ("what", "against", "ratio", "of", "least to most", "rounds", "by CPU time", "limit", "held")


def shown(row: Mapping[str, Any]) -> dict[str, str]:
    """One ratio's row as people read it."""
    rounds = row["rounds"]
    spread = f"{_figures(min(rounds))} to {_figures(max(rounds))}" if len(rounds) > 1 else "–"
    side = "rival / ours" if row["at_least"] else "ours / rival"
    held = "yes" if row["held"] else "NO"
    cells = (
        row["what"],
        row["rival"],
        _figures(row["value"]),
        "an error" if row["error"] else side,
        spread,
        str(len(rounds)),
        "–" if row["cpu"] is None else _figures(row["cpu"]),
        row["limit"],
        "–" if row["limit"] == "–" else held,
    )
    return dict(zip(COLUMNS, cells, strict=True))


def _figures(value: float) -> str:
    """Three significant digits, no exponent for what is large."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def markdown(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Rows by benchmark as the part of the page: what is compared, the ratios, and what costs where ours loses."""
    parts = [HEAD]
    for name, rows in results.items():
        title, benchmark = BENCHMARKS[name]
        about = " ".join((inspect.getdoc(benchmark) or "").split())
        parts.append(f"### {title} (`{name}`)\n\n{about}\n\n{written.markdown([shown(row) for row in rows])}")
        lost = [row for row in rows if row["loses"]]
        if lost:
            parts.append("\n".join(f"- {lost_sentence(row)}" for row in lost))
    return "\n\n".join(parts)


def joined(made: str) -> str:
    """What was measured now in place of what the page holds of the same names; of the others what it holds."""
    old, new = (re.split(r"^(?=### )", text, flags=re.MULTILINE) for text in (written.held("ratios"), made))
    title = re.compile(r"`(\w+)`\)$", re.MULTILINE)
    sections = {found[1]: text.strip() for text in (*old[1:], *new[1:]) if (found := title.search(text))}
    return "\n\n".join([new[0].strip(), *(sections[name] for name in BENCHMARKS if name in sections)])


def lost_sentence(row: Mapping[str, Any]) -> str:
    """That ours takes more than the rival, and why where that is known."""
    more = f" What it does beside: {row['more']}." if row["more"] else ""
    times = 1 / row["value"] if row["at_least"] else row["value"]
    return f"{row['what']}: ours takes {_figures(times)} times as much as {row['rival']}.{more}"


def measure(names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Rows by benchmark, one after the other. Raises RunError where both sides' results differ."""
    results = {}
    for name in names:
        began = time.perf_counter()
        results[name] = [ratio.row() for ratio in BENCHMARKS[name][1](torch.device("cpu"))]
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """0: all limits held; 1: one did not; 2: no such benchmark; 4: both sides' results differ; 130: cancelled."""
    parser = written.options(__doc__, "ratios")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BENCHMARKS)}; all by default")
    arguments = parser.parse_args(argv)
    if unknown := [name for name in arguments.names if name not in BENCHMARKS]:
        print(f"benchmarks.ratios: no such ratio: {unknown[0]}; there are {', '.join(BENCHMARKS)}.", file=sys.stderr)
        return 2
    try:
        results = measure(list(dict.fromkeys(arguments.names)) or list(BENCHMARKS))
    except RunError as error:
        print(f"benchmarks.ratios: {error}", file=sys.stderr)
        return 4
    except KeyboardInterrupt:
        return 130
    rows = [{"benchmark": name, **row} for name, found in results.items() for row in found]
    if arguments.write:
        written.put("ratios", TITLE, joined(markdown(results)))
    if arguments.json:
        emit({"ratios": rows})
    else:
        table([shown(row) for row in rows], "Ratios")
    return 0 if all(row["held"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
