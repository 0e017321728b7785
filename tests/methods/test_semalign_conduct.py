"""SemAlign's training, what it leaves behind, what it refuses and its controls; the formulas are in test_semalign."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from paraknow import config, inject, methods, models, results
from paraknow.errors import Cancelled, InputError, RunError
from paraknow.methods import _layerwise as layerwise
from paraknow.methods import _semantics as semantics
from paraknow.methods import semalign
from tests.conftest import SMALL
from tests.methods.test_baselines import assert_untouched, state_of
from tests.methods.test_semalign import METHOD, maker, two_models
from tests.similarity.test_points import letters


@pytest.fixture(scope="module")
def pair(checkpoint):
    return two_models(checkpoint)


@pytest.fixture(scope="module")
def align_for(pair):
    return maker(pair)


# -- training --------------------------------------------------------------------------------------------


def test_layers_are_trained_one_after_the_other(align_for, pair, monkeypatch):
    """Each in its own steps, the earlier ones as they were left; the same order of batches for every map."""
    orders = []

    def run(**changes):
        seen, real = [], layerwise.Aligner.gradients

        def gradients(self, layer, batch):
            with torch.no_grad():
                state = [[p.clone() for p in self.moving(n)] for n in sorted(self.pairing)]
            seen.append((layer, tuple(t.student.ids for t in batch), state))
            return real(self, layer, batch)

        monkeypatch.setattr(layerwise.Aligner, "gradients", gradients)
        start = METHOD.start(align_for(epochs=2, **changes))
        monkeypatch.setattr(layerwise.Aligner, "gradients", real)
        orders.append([batch for _, batch, _ in seen])
        return start, seen

    start, seen = run()
    assert [layer for layer, _, _ in seen] == [0] * 6 + [1] * 6
    assert [len(batch) for _, batch, _ in seen] == [4, 4, 2] * 4
    for epoch in range(4):
        assert len({ids for _, batch, _ in seen[3 * epoch : 3 * epoch + 3] for ids in batch}) == 10
    first, second = ([state[n] for _, _, state in seen] for n in (0, 1))
    assert all(torch.equal(a, b) for state in second[:7] for a, b in zip(state, second[0], strict=True))
    assert all(torch.equal(a, b) for state in first[6:] for a, b in zip(state, first[6], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first[0], first[6], strict=True))
    assert start.steps == len(start.losses) == 12 and start.examples == 40
    assert start.trainable == sum(b.numel() + a.numel() for b, a in start.factors.values())
    assert set(start.factors) == {(n, m) for n in (0, 1) for m in ("v", "o", "up", "down")} and not start.tuned
    assert all(b.any() for b, _ in start.factors.values())
    run(map="random_frame", pairing="interpolate", rank=2)
    run(seed=1)
    assert orders[0] == orders[1] != orders[2]


def test_the_table_tells_of_every_layer(align_for):
    start = METHOD.start(align_for(epochs=20))
    assert [row["student_layer"] for row in start.table] == [0, 1]
    assert [row["teacher_layers"] for row in start.table] == ["0", "1, 2"]
    for number, row in enumerate(start.table):
        own = [loss for loss, layer in zip(start.losses, start.loss_layers, strict=True) if layer == number]
        assert len(own) == 60
        assert (row["first_loss"], row["last_loss"]) == (own[0], own[-1]) and sum(own[-3:]) < sum(own[:3])
        assert row["cos_after"] > row["cos_before"], "it comes closer on examples it was not located on"
    assert start.facts["attributed"] == [0, 1, 2] and len(start.facts["layer_scores"]) == 3
    assert start.facts["cos_after"] > start.facts["cos_before"]


def test_only_attributed_layers_are_followed(align_for):
    whole = METHOD.start(align_for())
    scores = whole.facts["layer_scores"]
    start = METHOD.start(align_for(layers=1))
    assert start.facts["attributed"] == [scores.index(max(scores))] and start.facts["layer_scores"] == scores
    assert {n for n, _ in start.factors} == {row["student_layer"] for row in start.table}
    assert start.steps == 3 and len(start.table) == 1


def test_only_matrices_that_take_part_are_trained(align_for):
    start = METHOD.start(align_for(locate={"origins": ("ffn",)}))
    assert {m for _, m in start.factors} == {"up", "down"} and start.facts["modules"] == ["up", "down"]
    with pytest.raises(InputError, match="locate.modules: method 'semalign' trains up, down, v, o"):
        METHOD.start(align_for(locate={"modules": ("q", "gate")}))
    with pytest.raises(InputError, match="method.rank: 13 is above the shorter side of the student's v matrix"):
        METHOD.start(align_for(rank=13))


def test_the_start_is_plain_lora(align_for):
    start = semalign.plain_lora(align_for(rank=8), [0, 1], ["up", "v"])
    assert not any(b.any() for b, _ in start.factors.values()) and not start.tuned
    drawn = torch.cat([a.flatten() for _, a in start.factors.values()])
    assert float(drawn.std()) == pytest.approx(1 / 8, rel=0.15)


@pytest.mark.parametrize(
    ("family", "dtype"), [("gemma", "bfloat16"), ("qwen2", "bfloat16"), ("qwen3", "float32"), ("llama", "float16")]
)
def test_other_families(checkpoint, align_for, family, dtype):
    """Tied heads, biases and query norms; half precision reads and trains as float32 does."""
    folders = checkpoint(family, seed=1), checkpoint(family, seed=2, **SMALL, num_key_value_heads=1)
    ours = tuple(models.load(str(folder), device="cpu", dtype=dtype) for folder in folders)
    before = [state_of(m) for m in ours]
    start = METHOD.start(align_for(models=ours))
    assert results.unsound(start) is None and all(b.dtype == torch.float32 for b, _ in start.factors.values())
    for loaded, old in zip(ours, before, strict=True):
        assert_untouched(loaded, old)


def test_the_result_is_an_adapter_like_any_other(align_for, pair, tmp_path):
    """Exported, loaded on the plain student and merged, it gives the logits it had in memory."""
    student, ids = pair[1], torch.arange(3, 40)
    start, plain = METHOD.start(align_for(epochs=3)), inject.probe_logits(student.model, ids)
    with inject.attached(student, start) as wrapped:
        moved = inject.probe_logits(wrapped, ids)
        inject.export(wrapped, tmp_path / "adapter", student.checkpoint.spec, {})
    assert not torch.allclose(moved, plain, atol=1e-3)
    with inject.adapted(student, tmp_path / "adapter") as loaded:
        torch.testing.assert_close(inject.probe_logits(loaded, ids), moved, atol=1e-4, rtol=0)
    changed = models.load(student.checkpoint, device="cpu")
    with torch.no_grad():
        for (layer, module), (b, a) in start.factors.items():
            changed.weight(module, layer).add_(b @ a)
    torch.testing.assert_close(inject.probe_logits(changed.model, ids), moved, atol=1e-4, rtol=0)


# -- what goes wrong -------------------------------------------------------------------------------------


def fails_at(monkeypatch, step: int, name: str = "gradients"):
    """The loss of a batch (or the one measured after an epoch) is not a number at the `step`-th call, from 1."""
    real, calls = getattr(layerwise.Aligner, name), []

    def made(self, *given):
        calls.append(1)
        found = real(self, *given)
        if len(calls) != step:
            return found
        return (found[0], float("nan")) if name == "measure" else found * float("nan")

    monkeypatch.setattr(layerwise.Aligner, name, made)
    return lambda: monkeypatch.setattr(layerwise.Aligner, name, real)


def same(first, second, layers) -> bool:
    places = [p for p in first.factors if p[0] in layers]
    return all(torch.equal(x, y) for p in places for x, y in zip(first.factors[p], second.factors[p], strict=True))


@pytest.mark.parametrize(
    ("name", "call", "epochs", "step", "layer"),
    [
        ("gradients", 5, 2, 5, 0),  # the second step of the first layer's second epoch
        ("gradients", 4, 2, 4, 0),  # the first step of that epoch
        ("gradients", 4, 1, 4, 1),  # the first step of the second layer
        ("gradients", 6, 1, 6, 1),  # the last step of all
        ("measure", 3, 2, 7, 0),  # measured before, after one epoch, after two: the last update broke it
    ],
)
def test_a_loss_that_is_not_finite_brings_back_the_last_epoch(align_for, monkeypatch, name, call, epochs, step, layer):
    one_epoch = METHOD.start(align_for())
    undo = fails_at(monkeypatch, call, name)
    start = METHOD.start(align_for(epochs=epochs))
    undo()
    assert f"stopped at step {step} of {6 * epochs} (student layer {layer})" in start.facts["stopped"]
    assert start.facts["kept_step"] == 3 and start.steps == len(start.losses) == step - 1
    assert same(start, one_epoch, [0])
    assert not any(b.any() for (n, _), (b, _) in start.factors.items() if n == 1), "nothing half-trained is kept"
    assert start.table[0]["cos_after"] == one_epoch.table[0]["cos_after"]


@pytest.mark.parametrize("step", [1, 2])
def test_nothing_finite_is_no_result(align_for, pair, monkeypatch, step):
    before = [state_of(m) for m in pair]
    fails_at(monkeypatch, step)
    with pytest.raises(RunError, match=f"semalign: the loss.* at step {step} of 6.*before any epoch was finished"):
        METHOD.start(align_for())
    for loaded, old in zip(pair, before, strict=True):
        assert_untouched(loaded, old)


@pytest.mark.parametrize("fail", ["cancel", "loss", "teacher", "map"])
def test_models_are_left_as_found_where_it_breaks_off(align_for, pair, monkeypatch, fail):
    before, state = [state_of(m) for m in pair], torch.get_rng_state()
    align = align_for()

    def broken(*_, **__):
        raise ZeroDivisionError

    if fail == "cancel":

        def stop(step, total, message="", **values):
            if step > total / 2:
                raise Cancelled("stop")

        align = align.other(progress=stop)
    where = {"loss": (layerwise, "answer_loss"), "teacher": (layerwise, "teacher_rows"), "map": (semantics, "inverse")}
    if fail in where:
        monkeypatch.setattr(*where[fail], broken)
    with pytest.raises(Cancelled if fail == "cancel" else ZeroDivisionError):
        METHOD.start(align)
    for loaded, old in zip(pair, before, strict=True):
        assert_untouched(loaded, old)
    assert torch.equal(torch.get_rng_state(), state) and torch.is_grad_enabled()


def test_progress_counts_to_the_end(align_for):
    for changes in ({}, {"layers": 1}):
        seen: list = []

        def report(step, total, message="", into=seen, **values):
            into.append((step, total, message, values))

        METHOD.start(align_for(**changes).other(progress=report))
        steps = [step for step, *_ in seen]
        assert steps == sorted(set(steps)) and seen[-1][:2] == (8, 8) and {total for _, total, *_ in seen} == {8}
        assert {m for _, _, m, _ in seen} == {"scoring the teacher's layers", "aligning layer after layer"}
        assert all("loss" in values for _, _, message, values in seen if "aligning" in message)


# -- what is refused, controls ---------------------------------------------------------------------------


def test_maps_by_vocabulary_need_one_vocabulary(checkpoint, pair):
    other = models.load(str(checkpoint("llama", vocab_size=600)), device="cpu").checkpoint
    for how in ("vocabulary", "random_frame"):
        with pytest.raises(InputError, match=f"method.map: {how} of method 'semalign'.*use map: fitted, or .*laten"):
            METHOD.check(other, pair[1].checkpoint, METHOD.settings(map=how))
    METHOD.check(other, pair[1].checkpoint, METHOD.settings(map="fitted"))
    METHOD.check(pair[0].checkpoint, pair[1].checkpoint, METHOD.settings(layers=3))
    with pytest.raises(InputError, match="method.layers: 4 is more than the teacher's 3 layers"):
        METHOD.check(pair[0].checkpoint, pair[1].checkpoint, METHOD.settings(layers=4))


def test_the_shuffled_control_leads_every_layer_elsewhere(align_for):
    own, control = METHOD.start(align_for()), methods.get("shuffled_teacher").start(align_for())
    assert [r["teacher_layers"] for r in own.table] == ["0", "1, 2"]
    assert [r["teacher_layers"] for r in control.table] == ["1, 2", "0"]
    assert control.losses != own.losses and control.steps == own.steps
    with pytest.raises(InputError, match="controls: shuffled_teacher needs at least two trained student layers"):
        methods.get("shuffled_teacher").start(align_for(layers=1))


def test_the_random_control_is_a_random_map(align_for, pair):
    control, own = methods.get("random_window").start(align_for()), METHOD.start(align_for(map="random_frame"))
    assert same(control, own, [0, 1]) and control.facts["map"] == "random_frame"
    other = replace(pair[0], tokenizer=letters())  # two vocabularies: beside a fitted map it stands all the same
    align = align_for(models=(other, pair[1]), map="fitted").other(tune=config.Tune(max_length=256))
    assert methods.get("random_window").start(align).facts["map"] == "random_frame"


@pytest.mark.parametrize("name", ["noise", "self"])
def test_other_controls_work_beside_it(align_for, name):
    start = methods.get(name).start(align_for(layers=3))
    assert start.factors.keys() == METHOD.start(align_for()).factors.keys() and not start.tuned


# -- two tokenizers ---------------------------------------------------------------------------------------


def test_two_tokenizers_can_be_aligned_by_a_fitted_map(align_for, pair):
    other = replace(pair[0], tokenizer=letters())
    align = align_for(models=(other, pair[1]), map="fitted").other(tune=config.Tune(max_length=256))
    before = [state_of(m) for m in pair]
    start = METHOD.start(align)
    assert results.unsound(start) is None and start.steps == 6 and start.facts["map"] == "fitted"
    for loaded, old in zip(pair, before, strict=True):
        assert_untouched(loaded, old)
    slow = replace(other, tokenizer=Slow(letters()))
    with pytest.raises(InputError, match="'semalign': the tokenizer Slow gives no character offsets.*use seeking"):
        METHOD.start(align.other(teacher=slow))


class Slow:
    """A tokenizer that does not say which characters its tokens are."""

    is_fast = False

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, *given, **named):
        return self.inner(*given, **named)
