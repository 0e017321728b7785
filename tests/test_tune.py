from __future__ import annotations

import pytest
import torch

from paraknow import config, data, inject, tune
from paraknow.errors import Cancelled, RunError
from tests.test_inject import random_start


@pytest.fixture(scope="module")
def items(tiny_pair):
    _, student = tiny_pair
    return data.encode_all(data.load_task("demo:people").train[:24], student.tokenizer, 64, "tuning").items


def losses(student, items, settings, seed=0):
    with inject.attached(student, random_start(student)) as wrapped:
        return tune.fine_tune(wrapped, items, settings, seed)


def test_learns_and_repeats(tiny_pair, items):
    _, student = tiny_pair
    settings = config.Tune(epochs=6, batch_size=8, learning_rate=1e-2)
    first, second = (losses(student, items, settings) for _ in range(2))
    assert first.losses == second.losses
    assert first.losses[-1] < first.losses[0] - 0.5
    assert first.examples == 6 * len(items) and len(first.losses) == tune.steps_of(len(items), settings)
    assert losses(student, items, settings, seed=1).losses != first.losses


def test_first_loss_is_the_literal_mean_over_answer_tokens(tiny_pair, items):
    _, student = tiny_pair
    settings = config.Tune(epochs=1, batch_size=len(items))
    found = losses(student, items, settings).losses[0]
    total, count = 0.0, 0
    with torch.no_grad():
        for item in items:
            logits = student.model(input_ids=torch.tensor([item.ids])).logits[0].double().log_softmax(-1)
            for position in range(item.answer_start, len(item.ids)):
                total -= float(logits[position - 1, item.ids[position]])
                count += 1
    assert found == pytest.approx(total / count, rel=1e-4)


def test_micro_batches_change_nothing(tiny_pair, items):
    _, student = tiny_pair
    whole = losses(student, items, config.Tune(epochs=2, batch_size=12, micro_batch=12, learning_rate=1e-2))
    parts = losses(student, items, config.Tune(epochs=2, batch_size=12, micro_batch=5, learning_rate=1e-2))
    assert parts.losses == pytest.approx(whole.losses, rel=1e-4)


def test_nan_names_the_step(tiny_pair, items):
    _, student = tiny_pair
    with inject.attached(student, random_start(student)) as wrapped:

        def break_it(step: int, total: int, message: str = "", **_: float) -> None:
            if step == 2:
                next(p for p in wrapped.parameters() if p.requires_grad).data.fill_(float("nan"))

        with pytest.raises(RunError, match="step 3 of 6"):
            tune.fine_tune(wrapped, items, config.Tune(epochs=2, batch_size=8), 0, progress=break_it)


def test_cancel_leaves_a_plain_student(tiny_pair, items):
    _, student = tiny_pair

    def stop(*_: object, **__: object) -> None:
        raise Cancelled("stop")

    with pytest.raises(Cancelled), inject.attached(student, random_start(student)) as wrapped:
        tune.fine_tune(wrapped, items, config.Tune(), 0, progress=stop)
    assert not any(p.requires_grad for p in student.model.parameters())
