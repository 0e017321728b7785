"""Transport: its own controls, what it refuses, and how it leaves the models."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from paraknow import config, methods, models, results
from paraknow.errors import Cancelled, InputError
from paraknow.methods._carry import learnt_size
from paraknow.similarity import maps
from tests.methods.test_baselines import assert_untouched, state_of
from tests.methods.test_transport import PAIRS, align_for, close, logits_of, pair, start_of
from tests.reference import transport_literal as literal

__all__ = ["pair"]  # a fixture


# -- controls ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", [False, True])
def test_noise_keeps_every_neurons_size_and_no_direction(pair, attention):
    align = align_for(*pair, PAIRS, attention=attention)
    real, noise = start_of(align), start_of(align, "noise")
    assert real.matrices.keys() == noise.matrices.keys() and not noise.tuned
    for place, weight in real.matrices.items():
        one, other = (w.T if place[1] in ("down", "o") else w for w in (weight, noise.matrices[place]))
        torch.testing.assert_close(one.norm(dim=1), other.norm(dim=1), atol=1e-5, rtol=1e-5)
        cosines = torch.nn.functional.cosine_similarity(one, other)
        assert float(cosines.abs().mean()) < 0.5 and float(cosines.abs().max()) < 0.99
    again = start_of(align, "noise")
    assert all(torch.equal(w, again.matrices[p]) for p, w in noise.matrices.items())


@pytest.mark.parametrize("mode", ["widen", "replace"])
def test_random_window_moves_as_many_other_neurons(pair, mode):
    align = align_for(*pair, PAIRS, mode=mode, neurons=6)
    real, other = start_of(align), start_of(align, "random_window")
    assert [r["neurons"] for r in other.table] == [6, 6] and [r["teacher_layer"] for r in other.table] == PAIRS
    for kind in ("factors", "matrices"):
        assert getattr(real, kind).keys() == getattr(other, kind).keys()
    sizes = [sum(p.numel() for p in results.rebuilt(align.student, s.matrices).parameters()) for s in (real, other)]
    assert sizes[0] == sizes[1]
    assert not torch.equal(logits_of(align, real), logits_of(align, other))


def test_random_window_draws_neurons_of_the_teacher_without_repetition(pair):
    from paraknow.methods import transport

    align = align_for(*pair, PAIRS, mode="widen", neurons=48, chosen_by="random")
    drawn = [transport.choose(align, layer, 48).tolist() for layer in PAIRS]
    assert all(sorted(d) == list(range(48)) for d in drawn) and drawn[0] != drawn[1]
    other = align_for(*pair, PAIRS, seed=1, mode="widen", neurons=48, chosen_by="random")
    assert transport.choose(other, 0, 48).tolist() != drawn[1]


@pytest.mark.parametrize("settings", [{}, {"mode": "widen", "neurons": 4}, {"pairing": "kin"}])
def test_shuffled_teacher_moves_the_same_layers_none_to_its_place(pair, settings):
    align = align_for(*pair, PAIRS, **settings)
    pairs = [[r["teacher_layer"] for r in start_of(align, n).table] for n in ("transport", "shuffled_teacher")]
    assert sorted(pairs[0]) == sorted(pairs[1]) and all(a != b for a, b in zip(*pairs, strict=True))


# -- refusals and conduct ------------------------------------------------------------------------------


def refusal(pair, **settings) -> str:
    method = methods.get("transport")
    with pytest.raises(InputError) as error:
        method.check(pair[0].checkpoint, pair[1].checkpoint, method.settings(**settings))
    return str(error.value)


def test_what_cannot_work_is_refused_before_anything_is_read(pair, checkpoint):
    assert "48 neurons of a layer of the teacher" in refusal(pair, mode="widen", neurons=49)
    assert "24 neurons of a layer of the student" in refusal(pair, mode="replace", neurons=25)
    assert "not 32 and 16" in refusal(pair, maps="identity")
    assert "shorter side" in refusal(pair, mode="regress", neurons=17)
    assert "method.attention" in refusal(pair, mode="widen", neurons=4, attention=True)
    assert "method.heal" in refusal(pair, mode="replace", neurons=4, heal=3)
    assert "method.learn" in refusal(pair, mode="widen", neurons=4, learn=3)
    for family in ("qwen2", "qwen3", "gemma"):
        other = models.load(str(checkpoint(family, seed=1)), device="cpu")
        for both in ((other, pair[1]), (pair[0], other)):
            assert "method.attention" in refusal(both, attention=True)
    uneven = models.load(str(checkpoint("llama", seed=6, head_dim=6)), device="cpu")
    assert "heads of 6 and 8" in refusal((uneven, pair[1]), attention=True)
    method = methods.get("transport")
    for settings in ({}, {"mode": "widen", "neurons": 30}, {"mode": "replace", "neurons": 24}, {"attention": True}):
        method.check(pair[0].checkpoint, pair[1].checkpoint, method.settings(**settings))


def test_other_vocabularies_are_refused_where_they_matter(pair, checkpoint):
    other = models.load(str(checkpoint("llama", seed=2, vocab_size=600)), device="cpu")
    assert "vocabulary" in refusal((other, pair[1]), maps="vocabulary")
    assert "vocabulary" in refusal((other, pair[1]), pairing="kin")


def test_heads_that_turn_at_another_speed_are_refused(pair, tmp_path):
    """A carried query and key would meet other angles than they learned."""
    folder = shutil.copytree(pair[0].checkpoint.folder, tmp_path / "fast")
    values = json.loads((folder / "config.json").read_text())
    values["rope_parameters"] = {"rope_type": "default", "rope_theta": 500000.0}
    (folder / "config.json").write_text(json.dumps(values))
    fast = models.load(str(folder), device="cpu")
    assert "method.attention" in refusal((fast, pair[1]), attention=True)


def test_heads_that_do_not_divide_the_students_width_are_refused(pair, checkpoint):
    """transformers loads no such Llama."""
    folder = checkpoint("llama", seed=6, hidden_size=24, num_attention_heads=3, num_key_value_heads=3)
    three = models.load(str(folder), device="cpu")
    assert "method.attention" in refusal((three, pair[1]), attention=True)


def test_neurons_of_another_activation_are_refused(pair, checkpoint):
    """Gemma's GELU cannot be had from a Llama's SiLU by carrying weights."""
    gemma = models.load(str(checkpoint("gemma", seed=1)), device="cpu")
    assert "activation" in refusal((gemma, pair[1]))


def test_regress_uses_the_models_own_activation(checkpoint):
    """A Gemma as its own teacher wants no change at all."""
    gemma = models.load(str(checkpoint("gemma", seed=1)), device="cpu")
    start = start_of(align_for(gemma, gemma, maps="identity", mode="regress", neurons=4))
    assert all((b @ a).abs().max() < 1e-5 for b, a in start.factors.values())


def test_text_and_scores_that_are_missing_are_named(pair):
    with pytest.raises(InputError, match="align split"):
        start_of(align_for(*pair, PAIRS, known=()))
    align = align_for(*pair, PAIRS, mode="widen", neurons=3, chosen_by="attribution")
    with pytest.raises(InputError, match=r"locate\.neurons"):
        start_of(align.other(neurons=None))
    start_of(align_for(*pair, PAIRS, mode="widen", neurons=3).other(neurons=None))  # sensitivity does without


CASES = [{}, {"attention": True, "refit": True}, {"mode": "replace", "neurons": 3}, {"mode": "regress", "neurons": 2},
         {"heal": 4}, {"learn": 3}]  # fmt: skip


@pytest.mark.parametrize("settings", CASES)
@pytest.mark.parametrize("broken", ["", "map", "cancelled", "forward"])
def test_models_and_chance_are_left_as_found(pair, settings, broken, monkeypatch):
    align = align_for(*pair, PAIRS, **settings)
    before, state = [state_of(m) for m in pair], torch.get_rng_state()

    def fail(*_, **__):
        raise Cancelled("stopped")

    if broken == "map":
        monkeypatch.setitem(maps.MAPS, "procrustes", fail)
    if broken == "cancelled":
        align = align.other(progress=fail)
    if broken == "forward":
        monkeypatch.setattr(pair[1].model.model.layers[1].mlp, "forward", fail)
    if broken:
        with pytest.raises(Cancelled):
            start_of(align)
    else:
        first, second = start_of(align), start_of(align)
        for kind in ("factors", "matrices"):
            one, other = getattr(first, kind), getattr(second, kind)
            for place in one:
                pairs = zip(one[place], other[place], strict=True)
                assert all(torch.equal(a, b) for a, b in pairs)
    for loaded, state_before in zip(pair, before, strict=True):
        assert_untouched(loaded, state_before)
    assert torch.equal(torch.get_rng_state(), state) and torch.is_grad_enabled()


def test_maps_read_no_more_text_than_asked(pair):
    """`rows` bounds the tokens; whole examples are read, at least one."""
    from paraknow.methods import transport

    align = align_for(*pair, PAIRS, rows=64)
    found = transport.known_points(align)
    assert sum(len(p.offsets) for p in found) <= 64 and 1 <= len(found) < 12
    start = start_of(align)
    assert all(-1 < row["fit_in"] <= 1 and row["neurons"] == 48 for row in start.table)


@pytest.mark.parametrize("attention", [False, True])
def test_learning_moves_the_maps_and_not_the_neurons(pair, attention):
    """What comes out is still the teacher's own neurons, all of a layer through one map, one that fits better."""
    align = align_for(*pair, PAIRS, learn=9, attention=attention)
    before = [state_of(m) for m in pair]
    plain, learnt = (start_of(align_for(*pair, PAIRS, learn=n, attention=attention)) for n in (0, 9))
    for loaded, state in zip(pair, before, strict=True):
        assert_untouched(loaded, state)
    assert plain.steps == 0 and learnt.steps == len(learnt.losses) == 9 and learnt.losses[-1] < learnt.losses[0]
    assert set(learnt.matrices) == set(plain.matrices)
    for layer, source in enumerate(PAIRS):
        gate, up = (literal.matrix(pair[0].model, source, m) for m in ("gate", "up"))
        n = np.linalg.lstsq(gate, learnt.matrices[(layer, "gate")].double().numpy(), rcond=None)[0]
        assert len(gate) > gate.shape[1]
        close(learnt.matrices[(layer, "up")], up @ n)
        assert (learnt.matrices[(layer, "gate")] - plain.matrices[(layer, "gate")]).abs().max() > 1e-4
    again = start_of(align)
    assert all(torch.equal(w, again.matrices[p]) for p, w in learnt.matrices.items())
    assert learnt.trainable == learnt_size(*(m.checkpoint.architecture for m in pair))


def test_learning_starts_from_the_fitted_maps(pair):
    """At a rate of nearly nothing, the plain swap comes out."""
    still = config.Tune(max_length=64, batch_size=4, micro_batch=4, learning_rate=1e-12)
    plain, learnt = (start_of(align_for(*pair, PAIRS, learn=n, attention=True, tune=still)) for n in (0, 3))
    for place, weight in plain.matrices.items():
        close(learnt.matrices[place], weight.double().numpy())
