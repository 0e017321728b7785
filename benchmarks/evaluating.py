"""Evaluation of the demo suites against lm-eval's own evaluation of the same requests; and what is kept."""

from __future__ import annotations

import logging
import os
from contextlib import redirect_stderr
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.measure import Ratio, slow_down
from paraknow import data, models
from paraknow.evaluate import harness, kept

SUITES = ("demo:people", "demo:sum", "demo:reverse", "demo:sort")
BATCH = 128


def evaluation_cost(device: torch.device) -> list[Ratio]:
    """The built-in student on the demo's four suites, in memory, against lm-eval's `simple_evaluate` of the same tasks
    with the same batch size and its samples kept. Then the second evaluation of an unchanged model, whose results are
    read from the disk, against evaluating it; hashing its files included.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    loaded = models.load("demo:student", device=device.type)
    suites = {name: data.load_task(name).test for name in SUITES}
    jobs = {
        f"{name}-{kind}".replace(":", "-"): (kind, docs)
        for name, examples in suites.items()
        for kind, docs in harness.documents(examples, loaded.tokenizer).items()
    }

    def theirs() -> None:
        model = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=BATCH)
        tasks = [harness.make_task(key, kind, docs) for key, (kind, docs) in jobs.items()]
        with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):  # its bars
            simple_evaluate(model=model, tasks=tasks, log_samples=True)

    def ours() -> None:
        harness.forget()  # texts that were encoded before: a model's first evaluation is what is measured
        harness.evaluate(loaded, suites, BATCH)

    made = [
        slow_down(
            "evaluation of the demo suites",
            "lm-eval's simple_evaluate",
            ours,
            theirs,
            1.3,
            3,
        )
    ]
    with TemporaryDirectory() as folder:
        place = Path(folder)
        kept.measure(loaded, suites, (), BATCH, place)
        made.append(
            slow_down(
                "second evaluation of an unchanged model",
                "evaluating it",
                lambda: kept.measure(loaded, suites, (), BATCH, place),
                lambda: harness.evaluate(loaded, suites, BATCH),
                0.3,
                3,
            )
        )
    return made
