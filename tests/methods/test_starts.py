from __future__ import annotations

import pytest
import torch

from paraknow import config, data, inject, methods, models
from paraknow.errors import InputError
from paraknow.locate.located import locate
from paraknow.methods.base import Align

RANK = 4
STRUCTURES = ("window", "rows_columns", "random_window", "random_entries")


@pytest.fixture(scope="module")
def aligned(tiny_pair):
    """aligned(structure=…, origins=…) → what a method starts from on the tiny random pair."""
    teacher, student = tiny_pair
    task = data.load_task("demo:people")

    def make(seed: int = 0, **changes) -> Align:
        settings = config.Locate(seeds=2, max_length=64, **changes)
        found = locate(teacher, student, [task], settings)
        examined = methods.get("seeking")
        return Align(teacher, student, found.blocks, settings, seed, examined.settings(rank=RANK), examined)

    return make


def start_of(name: str, align: Align):
    return methods.get(name).start(align)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_seeking_factors_the_located_blocks(aligned, structure):
    align = aligned(structure=structure)
    start = start_of("seeking", align)
    assert start.tuned and len(start.factors) == 7 * align.student.architecture.layers
    for block in align.blocks:
        b, a = start.factors[(block.student_layer, block.module)]
        exact = block.cut(align.teacher.weight(block.module, block.teacher_layer)).double()
        u, s, vh = torch.linalg.svd(exact)
        best = (u[:, :RANK] * s[:RANK]) @ vh[:RANK]
        torch.testing.assert_close((b @ a).double(), best, atol=1e-4, rtol=1e-3)


def test_noise_has_the_methods_spectrum_and_other_directions(aligned):
    align = aligned()
    real, noise = start_of("seeking", align), start_of("noise", align)
    assert noise.tuned
    for place, (b, a) in real.factors.items():
        other_b, other_a = noise.factors[place]
        expected, found = (torch.linalg.svdvals(x)[:RANK] for x in (b @ a, other_b @ other_a))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
        overlap = torch.linalg.svdvals(torch.linalg.qr(b)[0].T @ torch.linalg.qr(other_b)[0])
        assert float(overlap.min()) < 0.95


def test_random_window_moves_every_block_but_keeps_layers(aligned):
    align = aligned()
    real, control = start_of("seeking", align), start_of("random_window", align)
    assert real.factors.keys() == control.factors.keys()
    same = [torch.allclose(real.factors[p][0], control.factors[p][0]) for p in real.factors]
    assert sum(same) < len(same) / 2
    again = start_of("random_window", align)
    assert all(torch.equal(control.factors[p][0], again.factors[p][0]) for p in control.factors)


def test_zero_moves_nothing(aligned):
    start = start_of("zero", aligned())
    assert not start.tuned and not any(b.any() or a.any() for b, a in start.factors.values())


@pytest.mark.parametrize("name", ["gaussian", "pissa"])
def test_peft_starts_are_pefts_own(aligned, name):
    align = aligned()
    state = torch.get_rng_state()
    start = start_of(name, align)
    assert torch.equal(state, torch.get_rng_state())
    for (layer, module), (b, a) in start.factors.items():
        weight = align.student.weight(module, layer)
        assert b.shape == (weight.shape[0], RANK) and a.shape == (RANK, weight.shape[1])
        if name == "gaussian":
            assert not b.any() and a.any()
        else:
            u, s, vh = torch.linalg.svd(weight, full_matrices=False)
            torch.testing.assert_close(b @ a, (u[:, :RANK] * s[:RANK]) @ vh[:RANK], atol=1e-4, rtol=1e-3)
    assert not hasattr(align.student.model, "peft_config")


@pytest.mark.parametrize("name", ["seeking", "noise", "random_window", "gaussian", "pissa"])
@pytest.mark.parametrize("origins", [("attention", "ffn"), ("all",)])
def test_every_tuned_start_is_the_student_exactly(aligned, name, origins):
    align = aligned(origins=origins)
    ids = torch.arange(3, 40)
    model = align.student.model
    weights = {n: p.clone() for n, p in model.named_parameters()}
    plain = inject.probe_logits(model, ids)
    start = start_of(name, align)
    with inject.attached(align.student, start) as wrapped:
        torch.testing.assert_close(inject.probe_logits(wrapped, ids), plain, atol=1e-4, rtol=0)
        trainable = {n for n, p in wrapped.named_parameters() if p.requires_grad}
        assert trainable and all(f".{inject.MOVING}" in n for n in trainable)
    assert torch.equal(inject.probe_logits(model, ids), plain)
    assert {n for n, _ in model.named_parameters()} == set(weights)
    assert all(torch.equal(p, weights[n]) and not p.requires_grad for n, p in model.named_parameters())


def test_oracle_is_refused_off_the_clone_pair(aligned):
    with pytest.raises(InputError, match="cloned pair"):
        start_of("oracle", aligned())


def test_oracle_turns_the_student_into_the_clone_teacher():
    teacher, student = (models.load(f"demo:{n}", device="cpu") for n in ("clone-teacher", "student"))
    examined = methods.get("oracle")
    start = examined.start(Align(teacher, student, [], config.Locate(), 0, examined.settings(), examined))
    ids = torch.arange(3, 60)
    with inject.attached(student, start) as wrapped:
        torch.testing.assert_close(
            inject.probe_logits(wrapped, ids), inject.probe_logits(teacher.model, ids), atol=5e-3, rtol=1e-3
        )


def test_every_method_says_what_it_is():
    for name, method in methods.catalogue().items():
        assert method.name == name and method.title and method.reference and method.cost
        assert method.start.__doc__
