from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paraknow import checkpoints, inject, methods, tune
from paraknow.errors import InputError
from paraknow.methods import logit_fusion
from paraknow.methods._teaching import soft_loss
from paraknow.methods.base import Start
from paraknow.methods.masked_distillation import surer
from tests.methods.test_baselines import IDS, align_for, assert_untouched, state_of
from tests.reference import distillation_literal as literal

NAMES = ["distillation", "masked_distillation"]


def drawn(seed: int, rows: int = 6, vocabulary: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Teacher's and student's logits (rows, V) and tokens (rows,)."""
    generator = torch.Generator().manual_seed(seed)
    teacher, student = (3 * torch.randn(rows, vocabulary, generator=generator) for _ in range(2))
    return teacher, student, torch.randint(vocabulary, (rows,), generator=generator)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.5, 1.0, 4.0]), st.sampled_from([0.0, 0.3, 1.0]))
def test_loss_and_mask_are_the_literal_ones(seed, temperature, mix):
    teacher, student, tokens = drawn(seed)
    rows = list(zip(teacher.tolist(), student.tolist(), tokens.tolist(), strict=True))
    expected = sum(literal.loss(t, s, y, temperature, mix) for t, s, y in rows)
    assert float(soft_loss(teacher, student, tokens, temperature, mix)) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    for sure_of in ("answer", "top"):
        mask = surer(teacher, student, tokens, sure_of).tolist()
        assert [t if m else s for m, (t, s, _) in zip(mask, rows, strict=True)] == [
            literal.target(t, s, y, sure_of) for t, s, y in rows
        ]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(-50, 50), st.sampled_from([0.5, 1.0, 4.0]))
def test_loss_is_at_least_0_and_shifts_of_logits_change_nothing(seed, shift, temperature):
    teacher, student, tokens = drawn(seed)
    found = float(soft_loss(teacher, student, tokens, temperature, 0.0))
    assert found > 0
    assert float(soft_loss(teacher + shift, student - shift, tokens, temperature, 0.0)) == pytest.approx(
        found, rel=1e-3, abs=1e-3
    )
    assert abs(float(soft_loss(teacher, teacher + shift, tokens, temperature, 0.0))) < 1e-3
    for sure_of in ("answer", "top"):
        assert not surer(teacher, teacher, tokens, sure_of).any()  # a tie leaves the student


@pytest.mark.parametrize(
    ("name", "more"), [("distillation", {}), *(("masked_distillation", {"sure_of": s}) for s in ("answer", "top"))]
)
def test_the_first_loss_is_the_literal_mean_over_answer_tokens(tiny_pair, name, more):
    align = align_for(tiny_pair, name, temperature=3.0, mix=0.2, **more)
    start = align.method.start(align)
    items = align.encode(align.train, align.student)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0)).tolist()[:4]
    batch = [items[i] for i in order]
    sides = (literal.answers(loaded.model, batch) for loaded in (align.teacher, align.student))
    values, taught = [], 0
    for (teacher, token), (student, _) in zip(*sides, strict=True):
        target = teacher if name == "distillation" else literal.target(teacher, student, token, more["sure_of"])
        taught += target is teacher
        values.append(literal.loss(target, student, token, 3.0, 0.2))
    assert start.losses[0] == pytest.approx(sum(values) / len(values), rel=1e-4)
    assert ("taught" in start.facts) == bool(more) and 0 <= start.facts.get("taught", 0) <= 1


@pytest.mark.parametrize("name", NAMES)
def test_a_trained_adapter_comes_back_and_both_models_stay(tiny_pair, tmp_path, name):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    align = align_for(tiny_pair, name, origins=("all",))
    align = align.other(tune=align.tune.model_copy(update={"epochs": 10}))
    before, state = [state_of(m) for m in tiny_pair], torch.get_rng_state()
    start = align.method.start(align)
    assert torch.equal(state, torch.get_rng_state())
    for loaded, weights in zip(tiny_pair, before, strict=True):
        assert_untouched(loaded, weights)
    assert not start.tuned and not start.matrices and start.decoder is None
    assert start.steps == len(start.losses) == 20 and start.examples == 80
    assert start.trainable == sum(b.numel() + a.numel() for b, a in start.factors.values())
    assert all(b.any() and b.shape[1] == a.shape[0] == 4 for b, a in start.factors.values())
    assert sum(start.losses[-4:]) < 0.9 * sum(start.losses[:4])
    again = align.method.start(align)
    assert again.losses == start.losses
    assert all(torch.equal(b, again.factors[p][0]) for p, (b, _) in start.factors.items())
    with inject.attached(align.student, start) as wrapped:
        logits = inject.probe_logits(wrapped, IDS)
        inject.export(wrapped, tmp_path / "a", "x", {})
    loaded = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(align.student.checkpoint.folder), str(tmp_path / "a")
    ).eval()
    torch.testing.assert_close(inject.probe_logits(loaded, IDS), logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(inject.probe_logits(loaded.merge_and_unload(), IDS), logits, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_without_the_teacher_it_is_plain_fine_tuning(tiny_pair, name):
    """mix = 1: the factors of a LoRA that fine_tune trains from the same start."""
    align = align_for(tiny_pair, name, mix=1.0)
    found = align.method.start(align)
    start = Start(inject.peft_start(align, "gaussian"))
    with inject.attached(align.student, start) as wrapped:
        items = align.encode(align.train, align.student)
        tuned = tune.fine_tune(wrapped, items, align.tune, align.seed)
        layer = wrapped.get_base_model().model.layers[1].mlp.up_proj
        expected = layer.lora_B[inject.MOVING].weight.detach().clone()
    assert found.losses == pytest.approx(tuned.losses, rel=1e-5)
    torch.testing.assert_close(found.factors[(1, "up")][0], expected, atol=1e-4, rtol=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_the_student_learns_nothing_from_itself(tiny_pair, name):
    student = tiny_pair[1]
    align = align_for((student, student), name)
    start = align.method.start(align)
    assert max(map(abs, start.losses)) < 0.05  # AdamW takes rounding for a gradient, and is led back
    assert name == "distillation" or start.facts["taught"] == 0


def test_the_mask_keeps_the_student_where_the_teacher_is_never_surer(tiny_pair, monkeypatch):
    from paraknow.methods import masked_distillation

    align = align_for(tiny_pair, "masked_distillation")
    monkeypatch.setattr(masked_distillation, "surer", lambda t, s, y, of: torch.zeros_like(y, dtype=torch.bool))
    assert align.method.start(align).losses[0] < 1e-5
    monkeypatch.setattr(masked_distillation, "surer", lambda t, s, y, of: torch.ones_like(y, dtype=torch.bool))
    masked, plain = (a.method.start(a) for a in (align, align_for(tiny_pair, "distillation")))
    assert masked.losses == plain.losses and masked.facts["taught"] == 1


@pytest.mark.parametrize("name", [*NAMES, "logit_fusion"])
def test_one_vocabulary_is_needed(checkpoint, name):
    one, other = checkpoints.find(str(checkpoint("llama"))), checkpoints.find(str(checkpoint("llama", vocab_size=600)))
    method = methods.get(name)
    assert method.check is not None
    method.check(one, one, method.settings())
    with pytest.raises(InputError, match=rf"{name}.*one vocabulary.*use sft, seeking or laten"):
        method.check(other, one, method.settings())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.1, 0.5, 0.9]))
def test_fusion_reaches_its_share_of_the_divergence(seed, share):
    teacher, student, _ = drawn(seed)
    found = logit_fusion.decode(teacher, student, {"share": share})
    for t, s, z in zip(teacher.tolist(), student.tolist(), found.tolist(), strict=True):
        assert literal.softmax(z) == pytest.approx(literal.softmax(literal.fused(t, s, share)), abs=1e-4)
        base = literal.softmax(s)
        whole = literal.divergence(literal.softmax(t), base)
        assert literal.divergence(literal.softmax(z), base) == pytest.approx(share * whole, rel=1e-3, abs=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(-30, 30))
def test_fusion_at_its_ends_and_under_shifts(seed, shift):
    teacher, student, _ = drawn(seed)
    probabilities = logit_fusion.decode(teacher, student, {"share": 0.5}).softmax(-1)
    moved = logit_fusion.decode(teacher + shift, student - shift, {"share": 0.5}).softmax(-1)
    torch.testing.assert_close(moved, probabilities, atol=1e-3, rtol=0)
    whole = logit_fusion.decode(teacher, student, {"share": 1.0})
    torch.testing.assert_close(whole, teacher, atol=1e-3, rtol=0)
    torch.testing.assert_close(logit_fusion.decode(student, student, {"share": 0.5}), student)
    torch.testing.assert_close(logit_fusion.decode(teacher, student, {"weight": 0.25}), 0.75 * student + 0.25 * teacher)
    ordered = [logit_fusion.weights(teacher - student, student, x) for x in (0.1, 0.4, 0.8)]
    assert bool((ordered[0] <= ordered[1]).all() and (ordered[1] <= ordered[2]).all())


def test_fusion_takes_any_shape_and_half_precision():
    teacher, student, _ = drawn(0)
    flat = logit_fusion.decode(teacher, student, {"share": 0.5})
    assert torch.equal(
        logit_fusion.decode(teacher.view(2, 3, 9), student.view(2, 3, 9), {"share": 0.5}).view(6, 9), flat
    )
    half = logit_fusion.decode(teacher.bfloat16(), student.bfloat16(), {"share": 0.5})
    assert half.dtype == torch.float32 and bool(torch.isfinite(half).all())


@pytest.mark.parametrize(("given", "values"), [({}, {"share": 0.5}), ({"weight": 0.25}, {"weight": 0.25})])
def test_fusion_changes_no_weights(tiny_pair, given, values):
    align = align_for(tiny_pair, "logit_fusion", **given)
    start = align.method.start(align)
    assert start.decoder == json.loads(json.dumps(values)) and not start.tuned
    assert not start.factors and not start.matrices and not start.trainable
    assert align.method.decode is logit_fusion.decode
