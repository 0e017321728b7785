from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from paraknow import inject, methods
from paraknow.errors import InputError, RunError
from paraknow.methods import block_scales
from paraknow.methods.base import Start
from tests.methods.test_baselines import IDS, align_for, assert_untouched, state_of

PLACES = [(-1, "embed"), (2, "lm_head"), (0, "q"), (1, "v"), (1, "up"), (0, "down")]


def some_factors(student, places=PLACES, rank: int = 3):
    generator = torch.Generator().manual_seed(0)
    factors = {}
    for layer, module in places:
        n, m = student.weight(module, layer).shape
        factors[(layer, module)] = (
            0.1 * torch.randn(n, rank, generator=generator),
            torch.randn(rank, m, generator=generator),
        )
    return factors


def gradients(align, places) -> dict:
    """∂ℓ/∂W in float64, ℓ the mean cross-entropy per answer token over align.known, one example at a time."""
    model = copy.deepcopy(align.student.model).double().requires_grad_(True)
    items = align.encode(align.known, align.student)
    tokens = sum(len(item.ids) - item.answer_start for item in items)
    for item in items:
        found = model(input_ids=torch.tensor([item.ids])).logits[0].log_softmax(-1)
        (-sum(found[p - 1, item.ids[p]] for p in range(item.answer_start, len(item.ids))) / tokens).backward()
    return {p: model.get_submodule(align.student.architecture.path(p[1], p[0])).weight.grad for p in places}


def scripted(monkeypatch, factors, **more) -> None:
    """Let `of: seeking` mean a method that gives these factors."""
    made = Start(factors, **more)
    fake = replace(methods.get("seeking"), start=lambda align: made)
    monkeypatch.setattr(methods, "get", lambda name, real=methods.get: fake if name == "seeking" else real(name))


def test_scaled_models_are_the_student_plus_scaled_changes(tiny_pair):
    student = tiny_pair[1]
    before, plain, factors = state_of(student), inject.probe_logits(student.model, IDS), some_factors(student)
    with block_scales.scaled(student, factors, torch.zeros(len(PLACES))):
        assert torch.equal(inject.probe_logits(student.model, IDS), plain)
    scales = torch.linspace(-1, 1.5, len(PLACES))
    with block_scales.scaled(student, factors, scales):
        found = inject.probe_logits(student.model, IDS)
    assert_untouched(student, before)
    changed = copy.deepcopy(student.model)
    for s, ((layer, module), (b, a)) in zip(scales, factors.items(), strict=True):
        changed.get_submodule(student.architecture.path(module, layer)).weight.data += s * (b @ a)
    torch.testing.assert_close(found, inject.probe_logits(changed, IDS), atol=1e-3, rtol=1e-4)
    with pytest.raises(ZeroDivisionError), block_scales.scaled(student, factors, scales):
        raise ZeroDivisionError
    assert_untouched(student, before)


def test_a_scales_gradient_is_the_weights_along_the_change(tiny_pair):
    """∂ℓ/∂s at s = 0 is ⟨∂ℓ/∂W, B·A⟩, matrix by matrix."""
    from paraknow import tune
    from paraknow.methods import _peft

    align = align_for(tiny_pair, "block_scales", origins=("all",))
    factors = some_factors(align.student)
    scales = torch.zeros(len(PLACES), requires_grad=True)
    items = align.encode(align.known, align.student)
    tokens = sum(len(item.ids) - item.answer_start for item in items)
    given = _peft.inputs(items, align)
    with block_scales.scaled(align.student, factors, scales):
        with tune.answers_alone(align.student.model, given["labels"]):
            logits = _peft.forward(align.student.model, given)[0]
        (tune.cross_entropy(given["input_ids"], given["attention_mask"], given["labels"], logits) / tokens).backward()
    literal = gradients(align, PLACES)
    expected = [float((literal[p] * (b @ a).double()).sum()) for p, (b, a) in factors.items()]
    assert scales.grad is not None
    torch.testing.assert_close(scales.grad.double(), torch.tensor(expected).double(), atol=1e-4, rtol=1e-3)


def test_scales_are_fitted_to_another_methods_blocks(tiny_pair, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    align = align_for(tiny_pair, "block_scales", epochs=6)
    align = align.other(tune=align.tune.model_copy(update={"batch_size": 8}))
    before, state = [state_of(m) for m in tiny_pair], torch.get_rng_state()
    start = align.method.start(align)
    assert torch.equal(state, torch.get_rng_state())
    for loaded, weights in zip(tiny_pair, before, strict=True):
        assert_untouched(loaded, weights)
    moved = methods.get("seeking").start(align).factors
    assert not start.tuned and start.trainable == len(moved) == 14 == len(start.table)
    assert start.steps == len(start.losses) == 6 and start.examples == 48
    assert start.losses[-1] < start.losses[0]
    for row in start.table:
        place = (row["layer"], row["module"])
        (b, a), (whole_b, whole_a) = start.factors[place], moved[place]
        torch.testing.assert_close(b @ a, row["scale"] * (whole_b @ whole_a), atol=1e-5, rtol=1e-4)
        assert row["norm"] == pytest.approx(float((b @ a).norm()), rel=1e-3) and row["scale"] != 0
    assert start.facts["of"] == "seeking" and "warning" not in start.facts
    assert align.method.start(align).table == start.table
    with inject.attached(align.student, start) as wrapped:
        logits = inject.probe_logits(wrapped, IDS)
        inject.export(wrapped, tmp_path / "a", "x", {})
    loaded = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(align.student.checkpoint.folder), str(tmp_path / "a")
    ).eval()
    torch.testing.assert_close(inject.probe_logits(loaded, IDS), logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(inject.probe_logits(loaded.merge_and_unload(), IDS), logits, atol=1e-3, rtol=0)


def test_what_helps_gets_a_positive_scale_and_what_harms_a_negative_one(tiny_pair, monkeypatch):
    align = align_for(tiny_pair, "block_scales", epochs=2, rank=8)
    places = [(0, "up"), (1, "up"), (0, "q"), (1, "o")]
    factors, expected = {}, []
    for sign, (place, gradient) in zip((1, -1, 1, -1), gradients(align, places).items(), strict=True):
        u, s, vh = torch.linalg.svd((-sign * gradient).float(), full_matrices=False)
        factors[place] = ((u * s / s[0]).contiguous(), vh.contiguous())
        expected.append(sign)
    scripted(monkeypatch, factors)
    start = align.method.start(align)
    assert [1 if row["scale"] > 0 else -1 for row in start.table] == expected


def test_known_text_is_used_unless_training_text_is_asked_for(tiny_pair):
    align = align_for(tiny_pair, "block_scales", epochs=1)
    known, train, none = (
        align.method.start(a).losses
        for a in (
            align,
            align.other(settings=align.settings.model_copy(update={"fit_on": "train"})),
            align.other(known=()),
        )
    )
    assert known != train and train == none


def test_a_student_that_knows_the_text_already_is_warned_about(tiny_pair, monkeypatch):
    monkeypatch.setattr(block_scales, "NOTHING_TO_LEARN", 100.0)
    align = align_for(tiny_pair, "block_scales", epochs=1)
    assert "already answers" in align.method.start(align).facts["warning"]


def test_what_the_scaled_method_used_counts_too(tiny_pair, monkeypatch):
    align = align_for(tiny_pair, "block_scales", epochs=1)
    scripted(monkeypatch, some_factors(align.student), examples=5, steps=7, trainable=1000)
    start = align.method.start(align)
    assert (start.examples, start.steps, start.trainable) == (8 + 5, 2 + 7, len(PLACES))


def test_noise_is_scaled_in_the_same_way(tiny_pair):
    align = align_for(tiny_pair, "block_scales", epochs=1)
    real, control = align.method.start(align), methods.get("noise").start(align)
    assert not control.tuned and control.trainable == 14 and control.steps == real.steps
    moved = methods.get("seeking").start(align).factors
    for row, own in zip(control.table, real.table, strict=True):
        place = (row["layer"], row["module"])
        b, a = control.factors[place]
        size = float((moved[place][0] @ moved[place][1]).norm())
        assert row["norm"] == pytest.approx(abs(row["scale"]) * size, rel=1e-3)
        assert (
            not torch.allclose(b @ a, real.factors[place][0] @ real.factors[place][1]) and own["layer"] == row["layer"]
        )


@pytest.mark.parametrize(
    ("of", "message"),
    [
        ("block_scales", "cannot scale itself"),
        ("zero", "is a control"),
        ("noise", "is a control"),
        ("oracle", "is a control"),
        ("logit_fusion", "changes no weights"),
        ("seking", "did you mean 'seeking'"),
    ],
)
def test_what_cannot_be_scaled_is_refused_before_a_run(tiny_pair, of, message):
    align = align_for(tiny_pair, "block_scales", of=of)
    pair = [loaded.checkpoint for loaded in tiny_pair]
    with pytest.raises(InputError, match=message):
        align.method.check(*pair, align.settings)
    with pytest.raises(InputError, match=message):
        align.method.start(align)


@pytest.mark.parametrize(
    ("of", "message"),
    [("sft", "'sft' gives no factors"), ("gaussian", "'gaussian' starts at zero"), ("eva", "'eva' starts at zero")],
)
def test_what_turns_out_to_be_nothing_to_scale_is_refused(tiny_pair, of, message):
    align = align_for(tiny_pair, "block_scales", of=of)
    align.method.check(*(loaded.checkpoint for loaded in tiny_pair), align.settings)
    with pytest.raises(InputError, match=message):
        align.method.start(align)


def test_the_scaled_methods_own_refusal_comes_first(tiny_pair, checkpoint):
    from paraknow import checkpoints

    align = align_for(tiny_pair, "block_scales", of="distillation")
    other = checkpoints.find(str(checkpoint("llama", vocab_size=600)))
    with pytest.raises(InputError, match="one vocabulary"):
        align.method.check(other, align.student.checkpoint, align.settings)


def test_changes_that_are_not_finite_end_the_run_and_leave_the_student(tiny_pair, monkeypatch):
    align = align_for(tiny_pair, "block_scales")
    before, factors = state_of(align.student), some_factors(align.student)
    factors[(0, "q")][0][0, 0] = float("nan")
    scripted(monkeypatch, factors)
    with pytest.raises(RunError, match="NaN or infinite at step 1 of"):
        align.method.start(align)
    assert_untouched(align.student, before)
