from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paraknow import data, inject, methods, models
from paraknow.errors import InputError
from paraknow.methods import _translate as translate
from paraknow.methods import laten
from tests.methods.conftest import PAIRS
from tests.reference import laten_literal

WHERE = ("gate", "up", "v")


@pytest.fixture(scope="module")
def moved(for_laten):
    """A result that others look at."""
    align = for_laten(gate=True)
    return align, align.method.start(align)


def dense(start) -> dict:
    return {place: b @ a for place, (b, a) in start.factors.items()}


def near(found, expected, share=1e-3):
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=share * float(expected.abs().max()))


# -- the formulas -------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", [False, True])
def test_one_step_equals_the_literal_version(for_laten, gate):
    """Loss, norm term, gradients, updated hypernetworks, the Δ that is saved and its score, all in float64."""
    align = for_laten(gate=gate, steps=1)
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
        m: tuple(laten_literal.adamw(w.detach(), [w.grad], chosen.learning_rate) for w in networks[m]) for m in modules
    }
    matrices, entries = laten_literal.changes(*about, updated, examples.teacher, examples.student)
    start = align.method.start(align)
    assert len(start.factors) == 2 * len(modules)
    for (layer, module), change in dense(start).items():
        near(change, matrices[laten_literal.path(module, layer)], 5e-3)
    row = start.table[1]
    assert row["cross_entropy"] == pytest.approx(loss.item(), rel=1e-5)
    assert row["loss"] == pytest.approx((loss + chosen.penalty * norm).item(), rel=1e-5) == start.losses[0]
    literal = laten_literal.cross_entropy(student, matrices, examples.choosing)
    assert row["score"] == pytest.approx(float(literal), rel=1e-5) and float(laten_literal.norm(entries)) > 0


def test_the_optimiser_is_latens_adamw():
    """Three steps at a rate where decay and both averages show."""
    network = translate.Hypernetwork(["up", "o"], (5, 3), 1.0, 0, "cpu")
    draw = torch.Generator().manual_seed(1)
    before = [w.detach().double() for w in network.parameters()]
    gradients = [[torch.randn(w.shape, generator=draw) for w in before] for _ in range(3)]
    optimizer = translate.optimiser(network, 0.1)
    for step in gradients:
        for weight, gradient in zip(network.parameters(), step, strict=True):
            weight.grad = gradient
        optimizer.step()
    for number, (weight, start) in enumerate(zip(network.parameters(), before, strict=True)):
        expected = laten_literal.adamw(start, [step[number].double() for step in gradients], 0.1)
        near(weight.detach(), expected, 1e-5)


def test_hypernetworks_start_as_said():
    """N(0, std), one pair of matrices per module, the same by seed, no bias; ReLU between."""
    networks = [translate.Hypernetwork(["up", "o"], (64, 48), 1e-5, seed, "cpu") for seed in (0, 0, 1)]
    first, again, other = ([w.detach() for w in n.parameters()] for n in networks)
    assert [tuple(w.shape) for w in first] == [(64, 64), (64, 64), (48, 64), (48, 64)]
    for weight, same, different in zip(first, again, other, strict=True):
        assert torch.equal(weight, same) and not torch.equal(weight, different) and weight.dtype == torch.float32
        assert float(weight.std()) == pytest.approx(1e-5, rel=0.05) and abs(float(weight.mean())) < 1e-6
    x = torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(2))
    found = networks[0]({"up": x})["up"]
    torch.testing.assert_close(found, (x @ first[0].T).clamp(min=0) @ first[2].T)
    torch.testing.assert_close(networks[0]({"up": 3 * x})["up"], 3 * found)


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
def test_hooks_are_the_adapter(laten_pair, seed):
    """Adding Δ by hooks, as exact factors through peft, and to the weights themselves is one thing."""
    _, student = laten_pair
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


# -- the result ---------------------------------------------------------------------------------------


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


def test_the_table_tells_every_step(for_laten):
    align = for_laten(steps=3)
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


def test_halves_are_trained_and_saved_alike(laten_pair, for_laten):
    """The student in bfloat16: hooks give what peft gives, and the hypernetworks learn."""
    teacher, student = (models.load(str(m.checkpoint.folder), "bfloat16", "cpu") for m in laten_pair)
    align = for_laten().other(teacher=teacher, student=student)
    start = align.method.start(align)
    row = start.table[start.facts["chosen_step"]]
    with inject.attached(student, start), torch.no_grad():
        again = translate.answer_loss(student, laten._examples(align).choosing, 64)
    assert float(again) == pytest.approx(row["score"], rel=1e-3) and row["norm"] > 0


# -- the data -----------------------------------------------------------------------------------------


def test_examples_come_from_their_splits(for_laten, people):
    align = for_laten(extract_examples=5)
    found = laten._examples(align)
    assert len(found.student) == 5 and {i.example for i in found.student} <= set(align.train)
    assert [i.example for i in found.student] == [i.example for i in found.teacher]
    assert {i.example for i in (*found.pool, *found.choosing)} == set(align.known)
    first, second = found.batch(1, 4), found.batch(2, 4)
    assert not {i.example for i in first[:4]} & {i.example for i in second[:4]}
    assert first[4] is found.student[0] and found.batch(6, 4)[4] is found.student[0]
    for without in (for_laten(extract_examples=5, known=()), for_laten(extract_examples=5, fit_on="train")):
        rest = laten._examples(without)
        assert {i.example for i in rest.pool} == set(align.train) - {i.example for i in rest.student}
    many = for_laten(known=people.align, train=people.train)
    assert len(laten._examples(many).choosing) == min(len(people.align), laten.CHOOSING)


def test_examples_that_cannot_serve(for_laten, people):
    silent = data.Example("x", (("user", "q"),), "?!")
    assert len(laten._examples(for_laten(train=(silent, *people.train[:2]))).student) == 2
    with pytest.raises(InputError, match="no training example has an answer with a letter or digit"):
        laten._examples(for_laten(train=(silent,)))
    with pytest.raises(InputError, match="extract_examples: all 2 training examples are located on"):
        laten._examples(for_laten(train=people.train[:2], known=()))
