from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from paraknow import data, methods, models
from paraknow.errors import Cancelled, InputError, RunError
from paraknow.locate import neurons
from paraknow.locate.states import content_position
from paraknow.methods import _translate as translate
from paraknow.methods import laten
from tests.methods.test_laten import WHERE, dense, near
from tests.reference import laten_literal, neurons_literal

# -- the released code's faults -----------------------------------------------------------------------


def test_fourth_root_is_that_and_nothing_else(for_laten):
    align = for_laten()
    items = laten._examples(align).teacher
    wrong = laten.neuron_scores(align.teacher, items, "exact", ("fourth_root",), align.progress)
    literal = laten_literal.scores(align.teacher, items, power=-0.25)
    for (layer, kind), expected in literal.items():
        near(wrong[kind].sum(0)[layer], expected)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma"])
def test_self_attention_only_is_the_tokens_own_share(checkpoint, people, family):
    """Its own attention probability times its own value, in every head, as eager attention gives them."""
    loaded = models.load(str(checkpoint(family)), device="cpu")
    items = data.encode_all(people.train[:2], loaded.tokenizer, 64, "seeds").items
    found = laten.own_attention(loaded, items)
    eager = models.load(str(checkpoint(family)), device="cpu").model
    eager.set_attn_implementation("eager")
    for row, item in zip(found, items, strict=True):
        ids = item.ids[: content_position(item.ids, item.answer_start, loaded.tokenizer)]
        values: list[torch.Tensor] = []

        def keep(_, __, out, into=values):
            into.append(out[0, -1])

        handles = [b.self_attn.v_proj.register_forward_hook(keep) for b in eager.model.layers]
        with torch.no_grad():
            shares = eager(input_ids=torch.tensor([ids]), output_attentions=True).attentions
        for handle in handles:
            handle.remove()
        for layer, (share, value) in enumerate(zip(shares, values, strict=True)):
            heads = value.reshape(2, 1, 8).expand(2, 2, 8).reshape(4, 8) * share[0, :, -1, -1, None]
            torch.testing.assert_close(row[layer], heads.flatten(), atol=1e-5, rtol=1e-4)


def test_self_attention_only_moves_attention_alone(for_laten):
    align = for_laten()
    items = laten._examples(align).teacher
    right, wrong = (
        laten.neuron_scores(align.teacher, items, "exact", f, align.progress) for f in ((), ("self_attention_only",))
    )
    assert torch.equal(right["ffn"], wrong["ffn"])
    assert (right["attention"] - wrong["attention"]).abs().max() > 0.1 * right["attention"].abs().max()
    s = neurons_literal.states(align.teacher.model, items[0].ids[:-2])
    assert len(s["u"]) == 3 and align.teacher.model.model.layers[0].self_attn._forward_pre_hooks == {}


def test_rounded_scores_lose_what_is_small(for_laten):
    align = for_laten()
    items = laten._examples(align).student
    right, wrong = (
        laten.neuron_scores(align.student, items, "exact", f, align.progress) for f in ((), ("rounded_scores",))
    )
    for kind, values in right.items():
        torch.testing.assert_close(wrong[kind], (values * 1e4).round() / 1e4, atol=1e-7, rtol=0)


def test_half_precision_starts_at_zero(for_laten):
    values = {"std": 1e-5, "learning_rate": 3e-5}
    right, wrong = (for_laten(**values, as_released=f) for f in ((), ("half_precision",)))
    start, fault = right.method.start(right), wrong.method.start(wrong)
    assert start.table[1]["norm"] > 0 and fault.table[1]["norm"] == 0 == fault.table[2]["norm"]
    examples = laten._examples(wrong)
    plain = translate.answer_loss(wrong.student, examples.choosing, 64)
    assert fault.table[0]["score"] == float(plain)  # exactly the student


def test_unmodified_student_saves_the_student(for_laten):
    right, wrong = (for_laten(as_released=f) for f in ((), ("unmodified_student",)))
    start, fault = right.method.start(right), wrong.method.start(wrong)
    assert fault.table == start.table and "the student itself is saved" in fault.facts["warning"]
    assert not any(d.any() for d in dense(fault).values()) and all(d.any() for d in dense(start).values())


# -- settings and refusals ----------------------------------------------------------------------------


def test_settings_are_the_papers_and_described():
    chosen = laten.LatenSettings()
    assert (chosen.rate, chosen.gate, chosen.align_examples) == (0.1, False, 15)
    assert (chosen.learning_rate, chosen.penalty, chosen.std) == (3e-5, 1000, 1e-5) and 2 <= chosen.steps <= 8
    assert all(
        "LaTen" in (f.description or "") or "paper" in (f.description or "")
        for f in laten.LatenSettings.model_fields.values()
    )
    for rate in (0, 1.01, float("nan")):
        with pytest.raises(ValidationError):
            laten.LatenSettings(rate=rate)
    with pytest.raises(ValidationError):
        laten.LatenSettings(as_released=("tenth_root",))


def test_counts_and_a_teacher_too_small(laten_pair):
    teacher, student = (m.checkpoint for m in laten_pair)
    assert laten.counts(student.architecture, 0.01) == {"ffn": 1, "attention": 1, "value": 1}
    assert laten.counts(student.architecture, 1.0) == laten.sizes(student.architecture)
    laten.check(teacher, student, laten.LatenSettings(rate=1.0))
    with pytest.raises(
        InputError, match="moves 48 neurons of the student's up matrix, and the teacher's up matrix has 24"
    ):
        laten.check(student, teacher, laten.LatenSettings(rate=1.0))
    laten.check(student, teacher, laten.LatenSettings(rate=0.5))


def test_only_matrices_that_take_part_move(for_laten):
    align = for_laten(locate={"origins": ("attention",)}, gate=True, rate=1.0)
    start = align.method.start(align)
    assert {m for _, m in start.factors} == {"v", "o"} and start.facts["neurons"] == [12, 24]
    with pytest.raises(InputError, match="locate.modules: method 'laten' moves up, down, v, o"):
        none = for_laten(locate={"modules": ("q", "gate")})
        none.method.start(none)


# -- conduct ------------------------------------------------------------------------------------------


def state(loaded):
    model = loaded.model
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    flags = [(p.requires_grad, p.grad) for p in model.parameters()]
    return hooks, flags, [m.training for m in model.modules()]


@pytest.mark.parametrize("fail", [None, "cancel", "break"])
def test_models_are_left_as_found(for_laten, monkeypatch, fail):
    """Weights bit by bit, flags, mode, hooks and the global random state; also where it is broken off."""
    align = for_laten(as_released=("self_attention_only",))
    before = [({n: p.clone() for n, p in m.model.named_parameters()}, state(m)) for m in (align.teacher, align.student)]
    random = torch.get_rng_state()
    if fail == "cancel":

        def stop(step, total, message="", **values):
            if values:
                raise Cancelled("stop")

        align = align.other(progress=stop)
    if fail == "break":
        monkeypatch.setattr(torch.nn.functional, "cross_entropy", lambda *_, **__: 1 / 0)
    if fail:
        with pytest.raises(Cancelled if fail == "cancel" else ZeroDivisionError):
            align.method.start(align)
    else:
        align.method.start(align)
    for loaded, (weights, about) in zip((align.teacher, align.student), before, strict=True):
        assert all(torch.equal(p, weights[n]) for n, p in loaded.model.named_parameters()) and state(loaded) == about
    assert torch.equal(random, torch.get_rng_state())


def test_frozen_gives_back_flags_and_mode(laten_pair):
    model = laten_pair[1].model
    first = next(model.parameters())
    first.requires_grad_(True)
    model.train()
    try:
        with translate.frozen(model):
            assert not model.training and not any(p.requires_grad for p in model.parameters())
        assert model.training and first.requires_grad
    finally:
        model.eval().requires_grad_(False)


def test_the_same_seed_gives_the_same_change(for_laten):
    first, again, other = (dense(a.method.start(a)) for a in (for_laten(), for_laten(), for_laten(seed=1)))
    assert all(torch.equal(first[p], again[p]) for p in first)
    assert not all(torch.equal(first[p], other[p]) for p in first)


def test_a_loss_that_is_not_finite_stops_it(for_laten, monkeypatch):
    align, real, calls = for_laten(steps=4), translate.gradients, []

    def fails_at(step):
        calls.clear()

        def gradients(*given):
            calls.append(1)
            loss, norm = real(*given)
            return (loss * float("nan") if len(calls) == step else loss), norm

        return gradients

    monkeypatch.setattr(translate, "gradients", fails_at(3))
    start = align.method.start(align)
    assert "stopped at step 3 of 4" in start.facts["stopped"] and len(start.losses) == 2 == start.steps
    assert [row["step"] for row in start.table] == [0, 1, 2] and sum(row["chosen"] for row in start.table) == 1
    monkeypatch.setattr(translate, "gradients", fails_at(1))
    with pytest.raises(RunError, match="NaN or infinite at step 1 of 4"):
        align.method.start(align)


def test_a_score_that_is_not_finite_stops_it(for_laten, monkeypatch):
    align, real, calls = for_laten(steps=4), translate.answer_loss, []

    def scores(student, items, micro, scale=0.0):
        calls.append(scale)
        found = real(student, items, micro, scale)
        return found * float("inf") if calls.count(0.0) == 3 and not scale else found  # after step 2

    monkeypatch.setattr(translate, "answer_loss", scores)
    start = align.method.start(align)
    assert "step 2 of 4" in start.facts["stopped"] and start.table[2]["score"] is None
    assert start.facts["chosen_step"] == 1


def test_progress_counts_to_the_end(for_laten):
    seen = []
    align = for_laten().other(progress=lambda step, total, message="", **values: seen.append((step, total, message)))
    align.method.start(align)
    steps = [step for step, _, _ in seen]
    assert steps == sorted(steps) and seen[-1][0] == seen[-1][1] and {t for _, t, _ in seen} == {7}
    assert {m for _, _, m in seen} == {"neurons of the teacher", "neurons of the student", "training hypernetworks"}


@pytest.mark.parametrize("name", ["noise", "shuffled_teacher", "self"])
def test_other_controls_work_beside_it(for_laten, name):
    align = for_laten(steps=1)
    start = methods.get(name).start(align)
    assert start.factors.keys() == align.method.start(align).factors.keys() and not start.tuned


def test_the_control_draws_other_teacher_neurons(for_laten):
    align = for_laten()
    real, control = align.method.start(align), methods.get("random_window").start(align)
    for place, (b, a) in real.factors.items():
        other_b, other_a = control.factors[place]
        where = (b, other_b) if place[1] in WHERE else (a, other_a)
        assert torch.equal(*where) and not torch.equal(b @ a, other_b @ other_a)


def test_first_order_locating_is_followed(for_laten):
    align = for_laten(locate={"neurons": "first_order"})
    items = laten._examples(align).student
    whole = neurons.attribute(align.student, items, "first_order").scores
    found = laten.neuron_scores(align.student, items, "first_order", (), align.progress)
    for (layer, kind), values in whole.items():
        torch.testing.assert_close(found[kind].sum(0)[layer], values, atol=1e-6, rtol=1e-4)
    assert align.method.start(align).factors
