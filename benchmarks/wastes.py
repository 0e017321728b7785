"""`python -m benchmarks.wastes [--json]`: what was removed, as it was before, against what is there now.

The rivals are the literal former versions, by turns with ours in one process on one thread; ratios of processor time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.measure import Ratio
from paraknow import config, data, inject, models, tune
from paraknow.evaluate import harness, shared_prompts
from paraknow.methods.base import Start
from paraknow.screen import emit, table
from paraknow.similarity import cka


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

    def before(*changes: Any) -> Callable[[], None]:
        def work() -> None:
            with ExitStack() as stack:
                for change in changes:
                    stack.enter_context(change())
                run("before")

        return work

    adapters = partial(patch.object, inject, "join", lambda *_: None)
    head = partial(patch.object, tune, "answers_alone", all_logits)
    found = [
        ratio("a step of tuning: both adapters at once", lambda: run("ours"), before(adapters)),
        ratio("a step of tuning: the head for answers alone", lambda: run("ours"), before(head)),
        ratio("a step of tuning: both", lambda: run("ours"), before(adapters, head)),
    ]
    torch.testing.assert_close(torch.tensor(losses["ours"]), torch.tensor(losses["before"]), rtol=1e-4, atol=0)
    return found


# -- similarity --------------------------------------------------------------------------------------------


def permuting() -> list[Ratio]:
    """The null of CKA by torch's indexing, rows first and then columns, which took two fifths of the stage."""
    drawn = torch.Generator().manual_seed(0)
    sides = [[torch.randn(512, 96, generator=drawn) for _ in range(layers)] for layers in (6, 4)]
    found: dict[str, np.ndarray] = {}

    def run(name: str) -> None:
        stream = cka.Stream(6, 4)
        stream.add(*sides)
        found[name] = stream.result().null

    def before() -> None:
        with patch.object(cka, "permuted", lambda grams, order: grams[:, order][:, :, order]):
            run("before")

    made = [ratio("CKA of a batch with its null", lambda: run("ours"), before)]
    if not np.array_equal(found["ours"], found["before"]):
        raise AssertionError("the two nulls differ")
    return made


# -- evaluation --------------------------------------------------------------------------------------------


def evaluating(questions: int = 60) -> list[Ratio]:
    """The demo's questions with 20 candidates: all of a batch as long as its longest, every text encoded by itself."""
    student, found = models.load("demo:student", device="cpu"), {}
    suites = {"demo:people": data.load_task("demo:people").test[:questions]}

    def run(name: str) -> None:
        found[name] = np.array(harness.evaluate(student, suites, 256).candidate_logprobs.tolist())

    def before() -> None:
        with patch.object(shared_prompts, "LEAST_ON_CPU", 10**9), patch.object(harness, "ENCODED", 0):
            harness.forget()
            run("before")

    made = [ratio(f"evaluating {questions} questions", lambda: run("ours"), before)]
    np.testing.assert_allclose(found["ours"], found["before"], atol=1e-3, rtol=1e-5)
    return made


WASTES: dict[str, Callable[[], list[Ratio]]] = {"tuning": tuning, "similarity": permuting, "evaluation": evaluating}


def ratios() -> list[Ratio]:
    """All of them, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [found for measured in WASTES.values() for found in measured()]
    finally:
        torch.set_num_threads(threads)


def shown(found: Sequence[Ratio]) -> list[dict[str, Any]]:
    """Rows of a table."""
    return [
        {"what": r.what, "before / after": f"{r.value:.2f}", "rounds": " ".join(f"{x:.2f}" for x in r.rounds)}
        for r in found
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wastes", description=__doc__)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    found = ratios()
    if arguments.json:
        emit({"wastes": [r.row() for r in found]})
    else:
        table(shown(found), "Wastes")
    return 0 if all(r.held for r in found) else 1


if __name__ == "__main__":
    sys.exit(main())
