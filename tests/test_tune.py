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


def test_an_objective_takes_the_place_of_the_loss(tiny_pair, items):
    """The literal one gives the same run; a weighted one is averaged over answer tokens too."""
    _, student = tiny_pair
    settings = config.Tune(epochs=1, batch_size=12, micro_batch=5, learning_rate=1e-2)
    plain = losses(student, items, settings)

    def literal(ids, mask, labels, logits):
        tokens = tune.answers(labels)
        assert ids.shape == mask.shape == labels.shape and logits.shape[:1] == tokens.shape
        return -logits.log_softmax(-1)[torch.arange(len(tokens)), tokens].sum()

    def run(objective):
        with inject.attached(student, random_start(student)) as wrapped:
            return tune.fine_tune(wrapped, items, settings, 0, objective=objective)

    assert run(literal).losses == pytest.approx(plain.losses, rel=1e-4)
    assert run(lambda *given: 3 * literal(*given)).losses[0] == pytest.approx(3 * plain.losses[0], rel=1e-4)


def test_only_what_predicts_an_answer_goes_through_the_head(tiny_pair, items):
    _, student = tiny_pair
    ids, mask, labels = (torch.tensor(x) for x in data.padded(items[:5]))
    head, seen = student.model.get_output_embeddings(), []
    with torch.no_grad():
        whole = student.model(input_ids=ids, attention_mask=mask).logits[:, :-1][labels[:, 1:] != -100]
        watch = head.register_forward_hook(lambda _, given, made: seen.append(given[0].shape[:2]))
        with tune.answers_alone(student.model, labels):
            found = student.model(input_ids=ids, attention_mask=mask).logits[0]
        watch.remove()
        assert student.model(input_ids=ids).logits.shape[:2] == ids.shape  # and afterwards all of it again
    assert seen == [(1, len(whole))] and len(whole) == sum(len(i.ids) - i.answer_start for i in items[:5])
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)
    assert torch.equal(tune.answers(labels), torch.tensor([t for i in items[:5] for t in i.ids[i.answer_start :]]))


def tuned_with(student, items, monkeypatch, script, epochs):
    """A run of 3 steps an epoch whose losses read as `script` says; with the weights after every step."""
    real, calls, states = tune._backward, [], []

    def scripted(*given):
        calls.append(real(*given))
        return torch.tensor(float(script[len(calls) - 1]))

    with inject.attached(student, random_start(student)) as wrapped:
        moving = [p for p in wrapped.parameters() if p.requires_grad]

        def snapshot(*_: object, **__: object) -> None:
            states.append([p.detach().clone() for p in moving])

        snapshot()
        monkeypatch.setattr(tune, "_backward", scripted)
        found = tune.fine_tune(wrapped, items, config.Tune(epochs=epochs, batch_size=8), 0, progress=snapshot)
        assert all(p.grad is None for p in moving)
        same = [all(map(torch.equal, state, moving)) for state in states]
    monkeypatch.setattr(tune, "_backward", real)
    return found, same


NAN = float("nan")


@pytest.mark.parametrize(
    ("script", "stopped", "kept", "lengths"),
    [
        # falling, then nothing finite: the last good state is put back
        ([3, 2, 1, NAN, 1, 1], 4, 2, 3),
        # falling, then above the first loss and three times the best for five steps
        ([3, 2, 1.5, 1, 0.8, 0.6, 0.5, 0.4, 0.4, *[9] * 12], 15, 8, 15),
        # the rise begins too late to last five steps, but the run ends in it
        ([3, 2, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 9, 9, 9], 12, 7, 12),
        # one bad batch, a slow rise below the first loss, a shock at the beginning: none of them runs away
        ([3, 2, 1, 0.5, 0.5, 9, 0.5, 0.5, 0.5], None, 9, 9),
        ([3, 0.5, 0.5, 0.5, 1, 1.5, 2, 2.5, 2.5, 2.5, 2.5, 2.5], None, 12, 12),
        ([3, 8, 8, 3, 2, 1], None, 6, 6),
        # small losses on text that is known already
        ([1e-3, 1e-3, 1e-4, 5e-3, 9e-3, 2e-2, 3e-2, 3e-2, 3e-2, 3e-2, 3e-2, 3e-2], None, 12, 12),
    ],
)
def test_a_loss_that_runs_away_stops_and_the_best_state_is_put_back(
    tiny_pair, items, monkeypatch, script, stopped, kept, lengths
):
    _, student = tiny_pair
    found, same = tuned_with(student, items, monkeypatch, script, len(script) // 3)
    assert (found.stopped, found.kept_step, len(found.losses)) == (stopped, kept, lengths)
    assert found.steps == (stopped - 1 if stopped else lengths)
    assert found.examples == 8 * found.steps
    assert same[kept] and same.count(True) == 1
    assert (found.warning is None) == (stopped is None)
    if stopped:
        assert f"stopped at step {stopped} and the weights after {kept} steps were put back" in found.warning


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ([NAN, 1, 1], "the loss or its gradient is NaN or infinite at step 1 of 3.$"),
        ([3, 5, float("inf")], "infinite at step 3 of 3 before any step made it smaller; a smaller learning rate"),
        ([3, 20, 20, 20, 20, 20, 20, 20, 20], "the loss runs away at step 6 of 9 before any step made it smaller"),
    ],
)
def test_without_a_better_state_the_step_is_named(tiny_pair, items, monkeypatch, script, message):
    _, student = tiny_pair
    with pytest.raises(RunError, match=message):
        tuned_with(student, items, monkeypatch, script, len(script) // 3)
    assert not any(p.requires_grad for p in student.model.parameters())


def test_weights_that_turn_nan_are_replaced(tiny_pair, items):
    """A real run: the third step reads weights that an overflow has spoilt."""
    _, student = tiny_pair
    with inject.attached(student, random_start(student)) as wrapped:
        moving = [p for p in wrapped.parameters() if p.requires_grad]

        def spoil(step: int, total: int, message: str = "", **_: float) -> None:
            if step == 9:
                moving[0].data.fill_(float("nan"))

        settings = config.Tune(epochs=4, batch_size=8, learning_rate=1e-2)
        found = tune.fine_tune(wrapped, items, settings, 0, progress=spoil)
        assert found.stopped == 10 and 0 < found.kept_step < 10 and len(found.losses) == found.steps == 9
        assert all(bool(torch.isfinite(p).all()) for p in moving)


def test_cancel_leaves_a_plain_student(tiny_pair, items):
    _, student = tiny_pair

    def stop(*_: object, **__: object) -> None:
        raise Cancelled("stop")

    with pytest.raises(Cancelled), inject.attached(student, random_start(student)) as wrapped:
        tune.fine_tune(wrapped, items, config.Tune(), 0, progress=stop)
    assert not any(p.requires_grad for p in student.model.parameters())
