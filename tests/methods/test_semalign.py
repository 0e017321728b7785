from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paraknow import config, data, inject, methods
from paraknow.errors import InputError, RunError
from paraknow.locate.blocks import Block
from paraknow.methods import _semantics as semantics
from paraknow.methods import semalign
from paraknow.methods.base import Align
from tests.reference import semalign_literal as literal

METHOD = semalign.METHOD


@pytest.fixture
def align(tiny_pair):
    teacher, student = tiny_pair
    task = data.load_task("demo:people")
    shape = student.architecture.shape
    layers = range(student.architecture.layers)
    blocks = [Block(m, k, k, "window", shape(m), 0, 0) for k in layers for m in config.MODULES]

    def make(**changes) -> Align:
        chosen = METHOD.settings(**{"rank": 4, "epochs": 2, "batch_size": 8, **changes})
        more = {"train": task.train[:16], "known": task.align, "tune": config.Tune(max_length=64)}
        return Align(teacher, student, blocks, config.Locate(seeds=4), 0, chosen, METHOD, **more)

    return make


def test_the_map_is_that_of_the_pseudo_inverse(tiny_pair):
    heads = [m.model.lm_head.weight.detach() for m in tiny_pair]
    for head in heads:
        found = semantics.unit_inverse(head).numpy()
        np.testing.assert_allclose(found, literal.unit_columns(head.double().numpy()), atol=1e-9)
    torch.testing.assert_close(semantics.random_frame(16, 50, 3).norm(dim=0), torch.ones(50).double())


@given(teacher=st.integers(1, 12), student=st.integers(1, 12), draw=st.data())
@settings(deadline=None)
def test_pairing_is_the_papers(teacher, student, draw):
    student = min(student, teacher)
    attributed = draw.draw(st.lists(st.integers(0, teacher - 1), unique=True, min_size=1))
    found = semantics.pairing(teacher, student, attributed)
    expected = literal.pairing(teacher, student, [x + 1 for x in attributed])
    assert {k + 1: [x + 1 for x in layers] for k, layers in found.items()} == expected
    assert sorted(x for layers in found.values() for x in layers) == sorted(attributed)
    for layer in range(student):
        mixed = semantics.fractional(teacher, student, layer)
        assert math.isclose(sum(w for _, w in mixed), 1) and all(0 <= k < teacher for k, _ in mixed)
        depth = sum((k + 1) * w for k, w in mixed)
        assert math.isclose(depth, max(1, (layer + 1) * teacher / student))


def test_the_fitted_map_finds_a_planted_one():
    generator = torch.Generator().manual_seed(0)
    planted = torch.linalg.qr(torch.randn(12, 8, generator=generator))[0].T.double()
    x = torch.randn(400, 12, generator=generator).double()
    x[:, 8:] = 0
    y = x @ planted.T
    found = semantics.fitted(x, y)
    target = torch.nn.functional.normalize(y, dim=1)
    assert torch.nn.functional.cosine_similarity(x @ found.T, target).min() > 0.9


def test_layer_scores_are_gradient_times_activation(tiny_pair, align):
    teacher = tiny_pair[0]
    items = align().encode(align().train[:2], teacher)
    found = semantics.layer_scores(teacher, items)
    expected = torch.zeros(teacher.architecture.layers, dtype=torch.float64)
    for item in items:  # a change of h by a factor 1 + t at one place: its derivative is gradient × activation there
        kept = {}
        ids, mask, ahead = semantics.batch_of([item], 0, teacher.device)
        embedded = teacher.model.get_input_embeddings()(ids).detach().requires_grad_()
        with torch.enable_grad(), semantics.sublayer_outputs(teacher, range(len(expected)), kept):
            logits = teacher.model(inputs_embeds=embedded, attention_mask=mask, use_cache=False).logits[0]
            wanted = torch.tensor(item.ids[item.answer_start :])
            loss = torch.nn.functional.cross_entropy(logits[item.answer_start - 1 : -1], wanted)
        for (layer, _), h in kept.items():
            (slope,) = torch.autograd.grad(loss, h, retain_graph=True)
            expected[layer] += (slope * h)[ahead].abs().sum().double().detach()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-8)
    assert not teacher.model.get_input_embeddings()._forward_hooks


def test_one_batchs_loss_is_the_literal_one(align):
    made = align()
    items = made.encode(made.train[:3], made.student)
    sources = [(0, 0.5), (1, 0.5)]
    blocks = [b for b in made.blocks if b.module in semalign.MODULES]
    from paraknow.methods.base import Start

    start = Start(inject.peft_start(made.other(blocks=blocks), "gaussian"))
    with inject.attached(made.student, start) as wrapped:
        maps = semalign._maps(made, wrapped, 1, sources, items)
        batch = semantics.batch_of(items, 0, made.student.device)
        theirs, mine = semalign._read(made, wrapped, 1, [0, 1], *batch[:2])
        found, _ = semalign.loss_of(1, sources, maps, theirs, mine, batch)
    ids, _, ahead = batch
    rows = [(r, p) for r in range(len(ids)) for p in range(ids.shape[1]) if ahead[r, p]]
    pick = lambda x: np.stack([x[r, p].detach().double().numpy() for r, p in rows])  # noqa: E731
    outputs = [(pick(mine[(1, m)]), [pick(theirs[(k, m)]) for k in (0, 1)]) for m in ("o", "down")]
    frames = [
        literal.unit_columns(m.model.lm_head.weight.detach().double().numpy()) for m in (made.student, made.teacher)
    ]
    expected = literal.loss(
        outputs, frames[0] @ frames[1].T, pick(mine[(-1, "logits")]), [int(ids[r, p + 1]) for r, p in rows]
    )
    assert float(found.detach()) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "changes", [{}, {"map": "fitted", "layers": 1}, {"map": "random_frame", "pairing": "interpolate"}]
)
def test_training_lowers_the_loss_and_leaves_both_models_alone(align, changes):
    made = align(learning_rate=1e-2, epochs=4, **changes)
    weights = [{n: p.clone() for n, p in m.model.named_parameters()} for m in (made.teacher, made.student)]
    random = torch.get_rng_state()
    one, other = METHOD.start(made), METHOD.start(made)
    assert torch.equal(random, torch.get_rng_state())
    assert not one.tuned and one.steps == len(one.losses) == 8 * len(one.table) and one.trainable > 0
    assert all(row["last_loss"] < row["first_loss"] for row in one.table)
    for place, (b, a) in one.factors.items():
        assert place[1] in semalign.MODULES and b.shape[1] == 4 and b.any()
        assert torch.equal(b, other.factors[place][0]) and torch.equal(a, other.factors[place][1])
    for loaded, before in zip((made.teacher, made.student), weights, strict=True):
        assert {n for n, _ in loaded.model.named_parameters()} == set(before)
        assert all(torch.equal(p, before[n]) and not p.requires_grad for n, p in loaded.model.named_parameters())
        assert not any(m._forward_hooks for m in loaded.model.modules())


def test_only_the_layer_that_learns_moves(align, monkeypatch):
    made, seen = align(epochs=1), []
    before = semalign._teach_layer

    def watch(align, wrapped, layer, *rest):
        state = {n: p.detach().clone() for n, p in wrapped.named_parameters() if "lora" in n}
        stopped = before(align, wrapped, layer, *rest)
        moved = {n for n, p in wrapped.named_parameters() if "lora" in n and not torch.equal(p, state[n])}
        seen.append((layer, moved))
        return stopped

    monkeypatch.setattr(semalign, "_teach_layer", watch)
    METHOD.start(made)
    assert [layer for layer, _ in seen] == [0, 1]
    assert all(moved and all(f".layers.{layer}." in n for n in moved) for layer, moved in seen)


def test_a_loss_that_is_not_finite_keeps_the_epoch_before(align, monkeypatch):
    made, calls, real = align(epochs=2, learning_rate=1e-2), [], semalign.loss_of

    def broken(*arguments):
        calls.append(1)
        loss, cosine = real(*arguments)
        return (loss * float("nan") if len(calls) == 4 else loss), cosine

    monkeypatch.setattr(semalign, "loss_of", broken)
    found = METHOD.start(made)
    assert "epoch 2 of layer 0" in found.facts["stopped"] and len(found.table) == 1 and len(found.losses) == 3
    monkeypatch.setattr(semalign, "loss_of", lambda *a: (real(*a)[0] * float("nan"), torch.zeros(())))
    with pytest.raises(RunError, match="first step"):
        METHOD.start(made)
    assert not any("lora" in n for n, _ in made.student.model.named_parameters())


def test_the_adapter_loads_with_plain_peft_and_merges(align, tmp_path):
    made = align(learning_rate=1e-2)
    found = METHOD.start(made)
    ids = torch.arange(3, 40)
    plain = inject.probe_logits(made.student.model, ids)
    with inject.attached(made.student, found) as wrapped:
        moved = inject.probe_logits(wrapped, ids)
        inject.export(wrapped, tmp_path / "adapter", made.student.checkpoint.spec, {})
    assert not torch.allclose(moved, plain, atol=1e-3)
    with inject.adapted(made.student, tmp_path / "adapter") as loaded:
        torch.testing.assert_close(inject.probe_logits(loaded, ids), moved, atol=1e-4, rtol=0)
        merged = loaded.merge_and_unload()
        torch.testing.assert_close(inject.probe_logits(merged, ids), moved, atol=1e-4, rtol=0)


def test_shuffled_teachers_teach_other_layers(align):
    made = align(epochs=1)
    own = {row["student_layer"]: row["teacher_layers"] for row in METHOD.start(made).table}
    other = {row["student_layer"]: row["teacher_layers"] for row in methods.get("shuffled_teacher").start(made).table}
    assert own.keys() == other.keys() and all(own[k] != other[k] for k in own)


def test_refusals(align, checkpoint):
    made = align()
    with pytest.raises(InputError, match="more than the teacher's 2 layers"):
        METHOD.check(made.teacher.checkpoint, made.student.checkpoint, METHOD.settings(layers=3))
    with pytest.raises(InputError, match="none of them takes part"):
        METHOD.start(made.other(locate=config.Locate(modules=("q", "k"))))
