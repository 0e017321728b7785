from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from paraknow import config, data, inject, methods, models
from paraknow.errors import Cancelled, InputError, RunError
from paraknow.locate import neurons
from paraknow.locate.blocks import Block
from paraknow.methods import _translate as translate
from paraknow.methods import laten
from paraknow.methods.base import Align
from tests.conftest import SMALL
from tests.reference import laten_literal, neurons_literal

PAIRS = [2, 0]  # teacher layers of student layers 0 and 1
QUICK = {"extract_examples": 2, "align_examples": 3, "std": 0.02, "learning_rate": 1e-3}
WHERE = ("gate", "up", "v")


@pytest.fixture(scope="module")
def pair(checkpoint):
    """Grouped queries in both; the teacher has a layer more."""
    teacher = checkpoint("llama", seed=3, num_hidden_layers=3)
    student = checkpoint("llama", seed=4, **SMALL | {"num_attention_heads": 4}, num_key_value_heads=2, head_dim=6)
    return tuple(models.load(str(folder), device="cpu") for folder in (teacher, student))


@pytest.fixture(scope="module")
def task():
    return data.load_task("demo:people")


@pytest.fixture(scope="module")
def aligned(pair, task):
    """aligned(locate={…}, …settings) → what LaTen starts from."""

    def make(
        seed: int = 0, locate: dict | None = None, train=task.train[:40], known=task.align[:12], **changes
    ) -> Align:
        teacher, student = pair
        where, method = config.Locate(**locate or {}), methods.get("laten")
        blocks = [
            Block(module, source, layer, "window", student.architecture.shape(module), 0, 0, 0.0)
            for layer, source in enumerate(PAIRS)
            for module in where.selected()
        ]
        values = method.settings(**QUICK | {"steps": 2} | changes)
        return Align(teacher, student, blocks, where, seed, values, method, train, known)

    return make


@pytest.fixture(scope="module")
def moved(aligned):
    """A result that others look at."""
    align = aligned(gate=True)
    return align, align.method.start(align)


def dense(start) -> dict:
    return {place: b @ a for place, (b, a) in start.factors.items()}


def near(found, expected, share=1e-3):
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=share * float(expected.abs().max()))


# -- the formulas --------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", [False, True])
def test_one_step_equals_the_literal_version(aligned, gate):
    """Loss, norm term, gradients, updated hypernetworks, the Δ that is saved and its score, all in float64."""
    align = aligned(gate=gate, steps=1)
    teacher, student, chosen = align.teacher, align.student, align.settings
    modules = ["v", "o", *["gate"] * gate, "up", "down"]
    examples = laten._examples(align)
    batch = examples.batch(1, chosen.align_examples)
    assert len(batch) == 4 and batch[-1] is examples.student[0]
    counts = {"ffn": 2, "attention": 2, "value": 1}  # a tenth of 24, 24 and 12
    drawn = translate.Hypernetwork(modules, (32, 16), chosen.std, align.seed, "cpu")
    networks = {m: tuple(w[m].detach().double().requires_grad_() for w in (drawn.first, drawn.second)) for m in modules}
    about = (teacher, student, modules, PAIRS, counts)

    one = laten_literal.changes(*about, networks, examples.teacher[:1], examples.student[:1])
    loss, norm = laten_literal.cross_entropy(student, one[0], batch), laten_literal.norm(one[1])
    (loss + chosen.penalty * norm).backward()
    scores = [
        laten.neuron_scores(m, i[:1], "exact", (), align.progress)
        for m, i in ((teacher, examples.teacher), (student, examples.student))
    ]
    matched = translate.match(*({k: s.sum(0) for k, s in model.items()} for model in scores), PAIRS, counts)
    vectors = translate.extract(teacher, modules, PAIRS, matched.teacher)
    for micro in (64, 3):
        for weight in drawn.parameters():
            weight.grad = None
        with translate.frozen(student.model):
            ours = translate.gradients(student, drawn, vectors, matched.student, batch, chosen.penalty, micro)
        assert [float(x) for x in ours] == pytest.approx([loss.item(), norm.item()], rel=1e-5)
        for module in modules:
            near(drawn.first[module].grad, networks[module][0].grad)
            near(drawn.second[module].grad, networks[module][1].grad)

    updated = {
        m: tuple(laten_literal.adamw(w.detach(), w.grad, chosen.learning_rate) for w in networks[m]) for m in modules
    }
    matrices, entries = laten_literal.changes(*about, updated, examples.teacher, examples.student)
    start = align.method.start(align)
    assert len(start.factors) == 2 * len(modules)
    for (layer, module), change in dense(start).items():
        near(change, matrices[laten_literal.path(module, layer)], 5e-3)
    row = start.table[1]
    assert row["cross_entropy"] == pytest.approx(float(loss), rel=1e-5)
    assert row["loss"] == pytest.approx(float(loss + chosen.penalty * norm), rel=1e-5) == start.losses[0]
    literal = laten_literal.cross_entropy(student, matrices, examples.choosing)
    assert row["score"] == pytest.approx(float(literal), rel=1e-5) and float(laten_literal.norm(entries)) > 0


@given(
    scores=st.lists(st.lists(st.integers(-3, 3), min_size=6, max_size=6), min_size=2, max_size=2),
    shift=st.permutations(range(6)),
)
@settings(max_examples=40, deadline=None)
def test_the_best_meet_the_best(scores, shift):
    """Ranks alone count, of equals the first; a teacher whose neurons are renumbered gives the same neurons."""
    table = torch.tensor(scores, dtype=torch.float32)
    values = {"ffn": table, "value": table[:, :4].flip(-1)}
    found = translate.match(values, {k: 2 * v - 1 for k, v in values.items()}, [1, 0], {"ffn": 3, "value": 2})
    for kind, n in (("ffn", 3), ("value", 2)):
        for layer in (0, 1):
            assert found.student[kind][layer].tolist() == laten_literal.best(values[kind][layer], n)
            assert found.teacher[kind][layer].tolist() == laten_literal.best(values[kind][1 - layer], n)
    distinct = table + torch.arange(6) / 10
    renumbered = translate.match({"ffn": distinct[:, list(shift)]}, {"ffn": distinct}, [0, 1], {"ffn": 6})
    back = torch.tensor(shift)[renumbered.teacher["ffn"]]
    assert torch.equal(back, translate.match({"ffn": distinct}, {"ffn": distinct}, [0, 1], {"ffn": 6}).teacher["ffn"])


@given(seed=st.integers(0, 10**6))
@settings(max_examples=8, deadline=None)
def test_hooks_are_the_adapter(pair, seed):
    """Adding Δ by hooks, as exact factors through peft, and to the weights themselves is one thing."""
    _, student = pair
    draw = torch.Generator().manual_seed(seed)
    counts = {"ffn": 5, "attention": 3, "value": 2}
    picked = {
        kind: torch.stack([torch.randperm(size, generator=draw)[: counts[kind]] for _ in range(2)])
        for kind, size in laten.sizes(student.architecture).items()
    }
    deltas = {m: 0.3 * torch.randn(2, counts[k], 16, generator=draw) for m, k in translate.KINDS.items()}
    factors = translate.factors(student, deltas, picked)
    ids = torch.randint(3, 400, (20,), generator=draw)
    weights = {
        f"{student.architecture.path(m, layer)}.weight": student.weight(m, layer) + b @ a
        for (layer, m), (b, a) in factors.items()
    }
    expected = torch.func.functional_call(student.model, weights, kwargs={"input_ids": ids[None]}).logits[0]
    with translate.added(student, deltas, picked):
        torch.testing.assert_close(inject.probe_logits(student.model, ids), expected, atol=1e-4, rtol=1e-4)
    with inject.attached(student, methods.base.Start(factors, tuned=False)) as wrapped:
        torch.testing.assert_close(inject.probe_logits(wrapped, ids), expected, atol=1e-4, rtol=1e-4)
    assert (expected - inject.probe_logits(student.model, ids)).abs().max() > 0.01


def test_rates_rise_over_a_tenth_and_never_waste_a_step():
    def rates(steps):
        weight = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.AdamW([weight], lr=0.5)
        schedule, found = translate.schedule(optimizer, 0.5, steps), []
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            weight.grad = torch.zeros(1)
            optimizer.step()
            schedule.step() if len(found) < steps else None
            assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)  # not cycled
        return found

    long = rates(30)
    assert long[0] == pytest.approx(0.5 / 25) and long[2] == pytest.approx(0.5) and long[-1] < 1e-5
    for steps in (1, 2, 10, 19):
        few = rates(steps)
        assert few[0] == 0.5 and few == sorted(few, reverse=True) and few[-1] > 0


# -- the result ----------------------------------------------------------------------------------------


def test_only_chosen_neurons_change(moved):
    align, start = moved
    wanted = {"v": 1, "o": 2, "gate": 2, "up": 2, "down": 2}
    assert start.factors.keys() == {(layer, m) for layer in (0, 1) for m in wanted} and not start.tuned
    for (layer, module), (b, a) in start.factors.items():
        change, one_hot = b @ a, (b.T if module in WHERE else a)
        assert change.shape == align.student.architecture.shape(module) and b.shape[1] == wanted[module]
        assert torch.equal(one_hot.sum(1), torch.ones(len(one_hot))) and set(one_hot.unique().tolist()) == {0.0, 1.0}
        touched = change.any(1) if module in WHERE else change.any(0)
        assert int(touched.sum()) == wanted[module]
        if module != "up":
            continue
        same = [start.factors[layer, m] for m in ("gate", "down")]
        assert torch.equal(same[0][0], b) and torch.equal(same[1][1], b.T)  # the same neurons in all three


def test_the_table_tells_every_step(aligned):
    align = aligned(steps=3)
    start = align.method.start(align)
    assert [row["step"] for row in start.table] == [0, 1, 2, 3] and start.table[0]["loss"] is None
    chosen = [row for row in start.table if row["chosen"]]
    assert len(chosen) == 1 and chosen[0]["score"] == min(row["score"] for row in start.table[1:])
    assert start.facts["chosen_step"] == chosen[0]["step"] and start.steps == len(start.losses) == 3
    assert start.examples == 3 * 4 and start.trainable == 4 * (32 * 32 + 16 * 32)
    assert start.facts["largest_change"] == pytest.approx(max(float(d.abs().max()) for d in dense(start).values()))
    scored = laten._examples(align).choosing
    with inject.attached(align.student, start), torch.no_grad():
        again = translate.answer_loss(align.student, scored, 5)  # what is saved is what was scored
    assert float(again) == pytest.approx(chosen[0]["score"], rel=1e-5)


def test_what_is_saved_is_what_was_found(moved, tmp_path):
    """Exported, loaded with plain peft, merged: the same logits, and not the student's."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    align, start = moved
    student, ids = align.student, torch.arange(3, 60)
    plain = inject.probe_logits(student.model, ids)
    with inject.attached(student, start) as wrapped:
        memory = inject.probe_logits(wrapped, ids)
        inject.export(wrapped, tmp_path / "adapter", student.checkpoint.spec, {})
    assert (memory - plain).abs().max() > 1e-3
    base = AutoModelForCausalLM.from_pretrained(student.checkpoint.folder)
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(inject.probe_logits(loaded, ids), memory, atol=1e-5, rtol=0)
    inject.merge(student, tmp_path / "adapter", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(inject.probe_logits(merged, ids), memory, atol=1e-4, rtol=0)
    assert torch.equal(inject.probe_logits(student.model, ids), plain)


def test_halves_are_trained_and_saved_alike(pair, aligned):
    """The student in bfloat16: hooks give what peft gives, and the hypernetworks learn."""
    teacher, student = (models.load(str(m.checkpoint.folder), "bfloat16", "cpu") for m in pair)
    align = aligned().other(teacher=teacher, student=student)
    start = align.method.start(align)
    row = start.table[start.facts["chosen_step"]]
    with inject.attached(student, start), torch.no_grad():
        again = translate.answer_loss(student, laten._examples(align).choosing, 64)
    assert float(again) == pytest.approx(row["score"], rel=1e-3) and row["norm"] > 0


# -- the data ------------------------------------------------------------------------------------------


def test_examples_come_from_their_splits(aligned, task):
    align = aligned(extract_examples=5)
    found = laten._examples(align)
    assert len(found.student) == 5 and {i.example for i in found.student} <= set(align.train)
    assert [i.example for i in found.student] == [i.example for i in found.teacher]
    assert {i.example for i in (*found.pool, *found.choosing)} == set(align.known)
    first, second = found.batch(1, 4), found.batch(2, 4)
    assert not {i.example for i in first[:4]} & {i.example for i in second[:4]}
    assert first[4] is found.student[0] and found.batch(6, 4)[4] is found.student[0]
    for without in (aligned(extract_examples=5, known=()), aligned(extract_examples=5, fit_on="train")):
        rest = laten._examples(without)
        assert {i.example for i in rest.pool} == set(align.train) - {i.example for i in rest.student}
    many = aligned(known=task.align, train=task.train)
    assert len(laten._examples(many).choosing) == min(len(task.align), laten.CHOOSING)


def test_examples_that_cannot_serve(aligned, task):
    silent = data.Example("x", (("user", "q"),), "?!")
    assert len(laten._examples(aligned(train=(silent, *task.train[:2]))).student) == 2
    with pytest.raises(InputError, match="no training example has an answer with a letter or digit"):
        laten._examples(aligned(train=(silent,)))
    with pytest.raises(InputError, match="extract_examples: all 2 training examples are located on"):
        laten._examples(aligned(train=task.train[:2], known=()))


# -- the released code's faults ------------------------------------------------------------------------


def test_fourth_root_is_that_and_nothing_else(aligned):
    align = aligned()
    items = laten._examples(align).teacher
    wrong = laten.neuron_scores(align.teacher, items, "exact", ("fourth_root",), align.progress)
    literal = laten_literal.scores(align.teacher, items, power=-0.25)
    for (layer, kind), expected in literal.items():
        near(wrong[kind].sum(0)[layer], expected)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma"])
def test_self_attention_only_is_the_tokens_own_share(checkpoint, task, family):
    """Its own attention probability times its own value, in every head, as eager attention gives them."""
    loaded = models.load(str(checkpoint(family)), device="cpu")
    items = data.encode_all(task.train[:2], loaded.tokenizer, 64, "seeds").items
    found = laten.own_attention(loaded, items)
    eager = models.load(str(checkpoint(family)), device="cpu").model
    eager.set_attn_implementation("eager")
    for row, item in zip(found, items, strict=True):
        ids = item.ids[: neurons.content_position(item.ids, item.answer_start, loaded.tokenizer)]
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


def test_self_attention_only_moves_attention_alone(aligned):
    align = aligned()
    items = laten._examples(align).teacher
    right, wrong = (
        laten.neuron_scores(align.teacher, items, "exact", f, align.progress) for f in ((), ("self_attention_only",))
    )
    assert torch.equal(right["ffn"], wrong["ffn"])
    assert (right["attention"] - wrong["attention"]).abs().max() > 0.1 * right["attention"].abs().max()
    s = neurons_literal.states(align.teacher.model, items[0].ids[:-2])
    assert len(s["u"]) == 3 and align.teacher.model.model.layers[0].self_attn._forward_pre_hooks == {}


def test_rounded_scores_lose_what_is_small(aligned):
    align = aligned()
    items = laten._examples(align).student
    right, wrong = (
        laten.neuron_scores(align.student, items, "exact", f, align.progress) for f in ((), ("rounded_scores",))
    )
    for kind, values in right.items():
        torch.testing.assert_close(wrong[kind], (values * 1e4).round() / 1e4, atol=1e-7, rtol=0)


def test_half_precision_starts_at_zero(aligned):
    values = {"std": 1e-5, "learning_rate": 3e-5}
    right, wrong = (aligned(**values, as_released=f) for f in ((), ("half_precision",)))
    start, fault = right.method.start(right), wrong.method.start(wrong)
    assert start.table[1]["norm"] > 0 and fault.table[1]["norm"] == 0 == fault.table[2]["norm"]
    examples = laten._examples(wrong)
    plain = translate.answer_loss(wrong.student, examples.choosing, 64)
    assert fault.table[0]["score"] == float(plain)  # exactly the student


def test_unmodified_student_saves_the_student(aligned):
    right, wrong = (aligned(as_released=f) for f in ((), ("unmodified_student",)))
    start, fault = right.method.start(right), wrong.method.start(wrong)
    assert fault.table == start.table and "the student itself is saved" in fault.facts["warning"]
    assert not any(d.any() for d in dense(fault).values()) and all(d.any() for d in dense(start).values())


# -- settings and refusals -----------------------------------------------------------------------------


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


def test_counts_and_a_teacher_too_small(pair):
    teacher, student = (m.checkpoint for m in pair)
    assert laten.counts(student.architecture, 0.01) == {"ffn": 1, "attention": 1, "value": 1}
    assert laten.counts(student.architecture, 1.0) == laten.sizes(student.architecture)
    laten.check(teacher, student, laten.LatenSettings(rate=1.0))
    with pytest.raises(
        InputError, match="moves 48 neurons of the student's up matrix, and the teacher's up matrix has 24"
    ):
        laten.check(student, teacher, laten.LatenSettings(rate=1.0))
    laten.check(student, teacher, laten.LatenSettings(rate=0.5))


def test_only_matrices_that_take_part_move(aligned):
    align = aligned(locate={"origins": ("attention",)}, gate=True, rate=1.0)
    start = align.method.start(align)
    assert {m for _, m in start.factors} == {"v", "o"} and start.facts["neurons"] == [12, 24]
    with pytest.raises(InputError, match="locate.modules: method 'laten' moves up, down, v, o"):
        none = aligned(locate={"modules": ("q", "gate")})
        none.method.start(none)


# -- conduct -------------------------------------------------------------------------------------------


def state(loaded):
    model = loaded.model
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    flags = [(p.requires_grad, p.grad) for p in model.parameters()]
    return hooks, flags, [m.training for m in model.modules()]


@pytest.mark.parametrize("fail", [None, "cancel", "break"])
def test_models_are_left_as_found(aligned, monkeypatch, fail):
    """Weights bit by bit, flags, mode, hooks and the global random state; also where it is broken off."""
    align = aligned(as_released=("self_attention_only",))
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


def test_frozen_gives_back_flags_and_mode(pair):
    model = pair[1].model
    first = next(model.parameters())
    first.requires_grad_(True)
    model.train()
    try:
        with translate.frozen(model):
            assert not model.training and not any(p.requires_grad for p in model.parameters())
        assert model.training and first.requires_grad
    finally:
        model.eval().requires_grad_(False)


def test_the_same_seed_gives_the_same_change(aligned):
    first, again, other = (dense(a.method.start(a)) for a in (aligned(), aligned(), aligned(seed=1)))
    assert all(torch.equal(first[p], again[p]) for p in first)
    assert not all(torch.equal(first[p], other[p]) for p in first)


def test_a_loss_that_is_not_finite_stops_it(aligned, monkeypatch):
    align, real, calls = aligned(steps=4), translate.gradients, []

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


def test_a_score_that_is_not_finite_stops_it(aligned, monkeypatch):
    align, real, calls = aligned(steps=4), translate.answer_loss, []

    def scores(student, items, micro, scale=0.0):
        calls.append(scale)
        found = real(student, items, micro, scale)
        return found * float("inf") if calls.count(0.0) == 3 and not scale else found  # after step 2

    monkeypatch.setattr(translate, "answer_loss", scores)
    start = align.method.start(align)
    assert "step 2 of 4" in start.facts["stopped"] and start.table[2]["score"] is None
    assert start.facts["chosen_step"] == 1


def test_progress_counts_to_the_end(aligned):
    seen = []
    align = aligned().other(progress=lambda step, total, message="", **values: seen.append((step, total, message)))
    align.method.start(align)
    steps = [step for step, _, _ in seen]
    assert steps == sorted(steps) and seen[-1][0] == seen[-1][1] and {t for _, t, _ in seen} == {7}
    assert {m for _, _, m in seen} == {"neurons of the teacher", "neurons of the student", "training hypernetworks"}


def test_the_control_draws_other_teacher_neurons(aligned):
    align = aligned()
    real, control = align.method.start(align), methods.get("random_window").start(align)
    for place, (b, a) in real.factors.items():
        other_b, other_a = control.factors[place]
        where = (b, other_b) if place[1] in WHERE else (a, other_a)
        assert torch.equal(*where) and not torch.equal(b @ a, other_b @ other_a)


def test_first_order_locating_is_followed(aligned):
    align = aligned(locate={"neurons": "first_order"})
    items = laten._examples(align).student
    whole = neurons.attribute(align.student, items, "first_order").scores
    found = laten.neuron_scores(align.student, items, "first_order", (), align.progress)
    for (layer, kind), values in whole.items():
        torch.testing.assert_close(found[kind].sum(0)[layer], values, atol=1e-6, rtol=1e-4)
    assert align.method.start(align).factors
