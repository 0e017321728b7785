"""`python -m benchmarks.wastes [--json]`: what was removed, as it was before, against what is there now.

The rivals are the literal former versions, by turns with ours in one process on one thread; ratios of processor time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.measure import Ratio
from paraknow import config, data, inject, models, tune
from paraknow.methods.base import Start
from paraknow.screen import emit, table


def processor(work: Callable[[], Any]) -> float:
    """Seconds of processor time of one call."""
    began = time.process_time()
    work()
    return time.process_time() - began


def ratio(what: str, ours: Callable[[], Any], before: Callable[[], Any], rounds: int = 5) -> Ratio:
    """Processor time of the former version over ours."""
    ours()
    before()
    values = [processor(before) / processor(ours) for _ in range(rounds)]
    return Ratio(what, "as it was before", statistics.median(values), 1.0, True, values)


# -- tuning ------------------------------------------------------------------------------------------------


@contextmanager
def all_logits(model: Any, labels: torch.Tensor) -> Iterator[None]:
    """In place of `tune.answers_alone`: every token goes through the head, answers are chosen afterwards."""
    row, column = (labels[:, 1:] != -100).nonzero(as_tuple=True)

    def choose(_: Any, __: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits.float()[row, column][None]

    handle = model.get_output_embeddings().register_forward_hook(choose)
    try:
        yield
    finally:
        handle.remove()


def tuning(steps: int = 2) -> list[Ratio]:
    """A step of tuning on the demo's student: adapters one by one as peft computes them, and logits of every token."""
    student = models.load("demo:student", device="cpu")
    a, settings = student.architecture, config.Tune(epochs=1, max_length=64)
    drawn = torch.Generator().manual_seed(0)
    factors = {
        (layer, module): tuple(torch.randn(*s, generator=drawn) * 0.02 for s in ((n, 16), (16, m)))
        for layer in range(a.layers)
        for module in config.MODULES
        for n, m in [a.shape(module)]
    }
    examples = data.load_task("demo:people").train[: steps * settings.batch_size]
    items = data.encode_all(examples, student.tokenizer, settings.max_length, "tuning").items
    losses: dict[str, list[float]] = {}

    def run(name: str) -> None:
        with inject.attached(student, Start(factors)) as wrapped:  # type: ignore[arg-type]
            losses[name] = tune.fine_tune(wrapped, items, settings, 0).losses

    def before(*names: str) -> Callable[[], None]:
        def work() -> None:
            kept = inject.join, tune.answers_alone
            try:
                if "adapters" in names:
                    inject.join = lambda *_: None
                if "head" in names:
                    tune.answers_alone = all_logits
                run("before")
            finally:
                inject.join, tune.answers_alone = kept

        return work

    found = [
        ratio("a step of tuning: both adapters at once", lambda: run("ours"), before("adapters")),
        ratio("a step of tuning: the head for answers alone", lambda: run("ours"), before("head")),
        ratio("a step of tuning: both", lambda: run("ours"), before("adapters", "head")),
    ]
    torch.testing.assert_close(torch.tensor(losses["ours"]), torch.tensor(losses["before"]), rtol=1e-4, atol=0)
    return found


WASTES: dict[str, Callable[[], list[Ratio]]] = {"tuning": tuning}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wastes", description=__doc__)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = [r.row() for measured in WASTES.values() for r in measured()]
    if arguments.json:
        emit({"wastes": rows})
    else:
        table(
            [
                {
                    "what": r["what"],
                    "before / now": f"{r['value']:.2f}",
                    "rounds": " ".join(f"{x:.2f}" for x in r["rounds"]),
                }
                for r in rows
            ],
            "Wastes",
        )
    return 0 if all(r["held"] for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
