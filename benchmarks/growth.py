"""`python -m benchmarks.growth [NAME …] [--json]`: how cost grows as layers, width, examples and tokens are doubled.

Each is doubled three times while the others stay. Processor time on one thread, the four sizes by turns, several
rounds; the exponent is the slope of a least-squares line through the rounds' medians in logarithms, its range that of
the rounds one by one. It is flagged where it exceeds the expected one by more than 0.3. At small sizes what does not
grow weighs in, so that an exponent may be smaller than expected.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the worker sets it, before torch is imported

import numpy as np
import torch

from benchmarks import written
from benchmarks.models import llama, seeds
from paraknow import config, inject, tune
from paraknow.locate.blocks import best_window, factor
from paraknow.locate.neurons import attribute
from paraknow.locate.sensitivity import sensitivity
from paraknow.methods.base import Start
from paraknow.screen import emit, table
from paraknow.similarity.cka import Stream

CPU = torch.device("cpu")
FACTORS = (1, 2, 4, 8)
ROUNDS = 3
SLACK = 0.3
VOCABULARY = 512
SIZES = {"layers": 2, "width": 128, "examples": 4, "tokens": 32}  # of the smallest; width 256 where it stays
OUTPUTS = {"layers": 2, "width": 128, "examples": 1, "rows of a batch": 128}  # CKA's smallest; examples in batches


@dataclass(frozen=True)
class Growth:
    """How one cost grows with one size, and how it should."""

    what: str
    grown: str
    exponent: float
    low: float
    high: float
    expected: float
    why: str

    @property
    def held(self) -> bool:
        return self.exponent <= self.expected + SLACK

    def row(self) -> dict[str, Any]:
        """For a table."""
        return {
            "what": self.what,
            "doubled": self.grown,
            "exponent": f"{self.exponent:.2f}" + ("" if self.held else " (too large)"),
            "rounds": f"{self.low:.2f} to {self.high:.2f}",
            "expected": f"{self.expected:g}",
            "why": self.why,
        }


def slope(sizes: Sequence[float], times: Sequence[float]) -> float:
    """k of the least-squares line log time = k·log size + c."""
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def measured(works: Sequence[Callable[[], Any]], rounds: int = ROUNDS) -> np.ndarray:
    """Processor seconds (rounds, works), by turns, after each was called once."""
    for work in works:
        work()
    found = np.empty((rounds, len(works)))
    for line in found:
        for k, work in enumerate(works):
            began = time.process_time()
            work()
            line[k] = time.process_time() - began
    return found


def grown(what: str, size: str, make: Callable[[int], Callable[[], Any]], expected: float, why: str) -> Growth:
    """`make(f)` gives the work at f times the smallest size."""
    times = measured([make(f) for f in FACTORS])
    each = [slope(FACTORS, line) for line in times]
    return Growth(what, size, slope(FACTORS, np.median(times, 0).tolist()), min(each), max(each), expected, why)


def _given(size: str, f: int) -> tuple[Any, list[Any]]:
    """A model and examples with `size` f times as large."""
    at = {name: least * (f if name == size else 1) for name, least in SIZES.items()}
    width = at["width"] if size == "width" else 256
    sizes = {"hidden_size": width, "intermediate_size": width * 11 // 4, "num_hidden_layers": at["layers"]}
    loaded = llama(CPU, **sizes, vocab_size=VOCABULARY)
    return loaded, seeds(at["examples"], at["tokens"], VOCABULARY)


MATRICES = "products with (d, d) matrices; nearer to 1 where what is done per entry of (d) weighs in"
READ = "every token meets every weight; attention's square is small at 256 tokens"


def sensitivities() -> Iterator[Growth]:
    def make(size: str) -> Callable[[int], Callable[[], Any]]:
        def work(f: int) -> Callable[[], Any]:
            loaded, items = _given(size, f)
            return lambda: sensitivity(loaded, items)

        return work

    for size, expected, why in (
        ("layers", 1, "each is read once"),
        ("width", 2, MATRICES),
        ("examples", 1, "each by itself"),
        ("tokens", 1, READ),
    ):
        yield grown("sensitivity", size, make(size), expected, why)


def attributions(how: str) -> Iterator[Growth]:
    def make(size: str) -> Callable[[int], Callable[[], Any]]:
        def work(f: int) -> Callable[[], Any]:
            loaded, items = _given(size, f)
            return lambda: attribute(loaded, items, how)

        return work

    neurons = "neurons × width × vocabulary" if how == "exact" else "products of (d, d) and (V, d)"
    for size, expected, why in (
        ("layers", 1, "each by itself"),
        ("width", 2, neurons),
        ("examples", 1, "each by itself"),
        ("tokens", 1, "tokens are only read; one of each example is scored"),
    ):
        yield grown(f"attribution, {how.replace('_', ' ')}", size, make(size), expected, why)


def steps() -> Iterator[Growth]:
    def make(size: str) -> Callable[[int], Callable[[], Any]]:
        def work(f: int) -> Callable[[], Any]:
            loaded, items = _given(size, f)
            drawn, a = torch.Generator().manual_seed(0), loaded.architecture
            start = Start(
                {
                    (layer, m): (
                        0.01 * torch.randn(a.shape(m)[0], 8, generator=drawn),
                        0.01 * torch.randn(8, a.shape(m)[1], generator=drawn),
                    )
                    for layer in range(a.layers)
                    for m in config.MODULES
                }
            )
            settings = config.Tune(epochs=4, batch_size=len(items), micro_batch=len(items))

            def run() -> None:
                with inject.attached(loaded, start) as wrapped:
                    tune.fine_tune(wrapped, items, settings, 0)

            return run

        return work

    for size, expected, why in (
        ("layers", 1, "each is read once"),
        ("width", 2, MATRICES),
        ("examples", 1, "each is read once"),
        ("tokens", 1, READ),
    ):
        yield grown("tuning, four steps", size, make(size), expected, why)


def blocks() -> Iterator[Growth]:
    drawn = torch.Generator().manual_seed(0)

    def window(f: int) -> Callable[[], Any]:
        scores = torch.rand(1024, 1024 * f, generator=drawn)  # larger than caches at once
        return lambda: best_window(scores, 512, 512 * f)

    def parts(f: int) -> Callable[[], Any]:
        block = torch.randn(256, 256 * f, generator=drawn)
        return lambda: factor(block, 16)

    yield grown("block choice", "entries", window, 1, "running sums: every entry a fixed number of times")
    yield grown("factor, rank 16", "entries", parts, 1, "SVD of the shorter side's size; the longer one is only read")


def likeness() -> Iterator[Growth]:
    def make(size: str) -> Callable[[int], Callable[[], Any]]:
        def work(f: int) -> Callable[[], Any]:
            drawn = torch.Generator().manual_seed(0)
            layers, width, batches, rows = (n * (f if name == size else 1) for name, n in OUTPUTS.items())
            sides = [[torch.randn(rows, width, generator=drawn) for _ in range(layers)] for _ in range(2)]

            def run() -> None:
                stream = Stream(layers, layers)
                for _ in range(batches):
                    stream.add(*sides)
                stream.result()

            return run

        return work

    for size, expected, why in (
        ("layers", 2, "every layer of one model against every layer of the other"),
        ("width", 1, "Gram matrices: rows² × features; nothing else reads features"),
        ("examples", 1, "more batches of as many rows"),
        ("rows of a batch", 2, "Gram matrices of rows²; examples beyond a batch begin another one"),
    ):
        yield grown("CKA", size, make(size), expected, why)


COSTS: dict[str, Callable[[], Iterator[Growth]]] = {
    "sensitivity": sensitivities,
    "blocks": blocks,
    "exact": lambda: attributions("exact"),
    "first_order": lambda: attributions("first_order"),
    "cka": likeness,
    "tuning": steps,
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = written.options(__doc__, "growth")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(COSTS)}; all by default")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.names) - set(COSTS):
        print(f"benchmarks.growth: no such cost: {', '.join(sorted(unknown))}.", file=sys.stderr)
        return 2
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = []
        for name in arguments.names or COSTS:
            for growth in COSTS[name]():
                print(f"{growth.what}, {growth.grown}: {growth.exponent:.2f}", file=sys.stderr, flush=True)
                found.append(growth)
    finally:
        torch.set_num_threads(threads)
    rows = [growth.row() for growth in found]
    if arguments.json:
        emit({"growth": [{**vars(g), "held": g.held} for g in found]})
    else:
        table(rows, "Growth")
    if arguments.write and not arguments.names:
        written.put("growth", "How cost grows", ABOUT + written.markdown(rows))
    return 0 if all(growth.held for growth in found) else 1


ABOUT = """Each size is doubled three times while the others stay. The exponent is that of processor time on one thread
(least squares in logarithms over the rounds' medians); the range is that of single rounds. One that exceeds the
expected by more than 0.3 is marked.

"""

if __name__ == "__main__":
    sys.exit(main())
