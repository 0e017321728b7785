"""Layers that wait elsewhere: on a CPU in files, which goes the same ways as host memory beside a GPU."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch.multiprocessing.reductions import StorageWeakRef

from paraknow import config, data, inject, methods, models, placing, reload, tune
from paraknow.errors import ResourceError
from paraknow.locate.located import locate
from paraknow.locate.neurons import attribute
from paraknow.locate.sensitivity import sensitivity
from paraknow.methods.base import Align, Start
from paraknow.similarity.activations import rows_of, untrained_pair
from tests.conftest import SMALL

IDS = torch.arange(3, 30)[None]
FEW = {"examples": 4, "extract_examples": 2, "align_examples": 2, "steps": 2, "epochs": 1, "rows": 64, "rank": 4}


@pytest.fixture(scope="module")
def pair(checkpoint):
    """A teacher and a student, each as it is and with its layers in files."""
    small = {**SMALL, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
    specs = (str(checkpoint("llama")), str(checkpoint("llama", seed=1, **small)))
    plain, placed = ([models.load(s, device="cpu", placement=how) for s in specs] for how in ("device", "offload"))
    return plain, placed


@pytest.fixture(scope="module")
def people():
    return data.load_task("demo:people")


def items(loaded, task):
    return data.encode_all(task.train[:4], loaded.tokenizer, 64, "seeds").items


def test_weights_lie_in_files_without_names(pair, tmp_path, monkeypatch):
    (plain, _), (placed, _) = pair
    assert placed.layers == ("disk", "disk") and placing.is_placed(placed.model) and not placing.is_placed(plain.model)
    monkeypatch.setattr(placing, "scratch", lambda: tmp_path)
    copied = placing.place(copy.deepcopy(plain.model), torch.device("cpu"), ("disk", "cpu"))
    assert not list(tmp_path.iterdir())
    for one, other in zip(plain.model.parameters(), copied.parameters(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(plain.model(IDS).logits, copied(IDS).logits)
    monkeypatch.setattr(placing.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10}))
    with pytest.raises(ResourceError, match="are to wait in .* set TMPDIR"):
        placing.place(copy.deepcopy(plain.model), torch.device("cpu"), ("disk", "disk"))


@torch.no_grad()
def test_forward_text_copies_and_files_are_the_models_own(pair, tmp_path):
    (plain, _), (placed, _) = pair
    wanted = plain.model(IDS).logits
    assert torch.equal(placed.model(IDS).logits, wanted)
    written = [m.model.generate(IDS, max_new_tokens=4, do_sample=False) for m in (plain, placed)]
    assert torch.equal(*written)
    copied = copy.deepcopy(placed.model)
    copied.model.layers[0].mlp.up_proj.weight.zero_()
    assert not torch.equal(copied(IDS).logits, wanted) and torch.equal(placed.model(IDS).logits, wanted)
    placed.model.save_pretrained(tmp_path)
    placed.tokenizer.save_pretrained(tmp_path)
    assert torch.equal(models.load(str(tmp_path), device="cpu", placement=placed.layers).model(IDS).logits, wanted)


def test_a_backward_pass_keeps_no_weights(pair, monkeypatch):
    placed, call, brought = pair[1][0].model, torch.func.functional_call, []

    def noted(inner, copies, *more):
        brought.extend(StorageWeakRef(tensor.untyped_storage()) for tensor in copies.values())
        return call(inner, copies, *more)

    monkeypatch.setattr(torch.func, "functional_call", noted)
    with models.gradients_on(placed):
        loss = placed(IDS).logits.sum()
        matrices = sum(p.ndim == 2 for p in placed.model.layers.parameters())
        assert sum(ref.expired() for ref in brought) >= matrices  # and norms, which are kept, are small
        loss.backward()
        assert all(p.grad is not None and p.grad.device == p.device for p in placed.parameters())


def test_locating_and_comparing_find_the_same(pair, people):
    (plain, student), (placed, small) = pair
    found = [sensitivity(m, items(m, people), halves=True) for m in (plain, placed)]
    assert found[0].losses == found[1].losses
    assert all(torch.equal(found[1].maps[place], values) for place, values in found[0].maps.items())
    scored = [attribute(m, items(m, people)).scores for m in (plain, placed)]
    assert all(torch.equal(scored[1][key], values) for key, values in scored[0].items())
    rows = [rows_of(m, IDS.tolist(), [[3, 9]]) for m in (plain, placed)]
    assert all(torch.equal(rows[1][key], values) for key, values in rows[0].items())
    bare = []
    for both in ((plain, student), (placed, small)):
        with untrained_pair(*both) as made, torch.no_grad():
            bare.append(made[0].model(IDS).logits)
            assert made[0].layers == both[0].layers
    assert torch.equal(*bare)


@pytest.fixture(scope="module")
def aligns(pair, people):
    """What methods start from, for the plain and for the placed pair."""
    settings = config.Locate(seeds=2, max_length=64)
    steps = config.Tune(epochs=1, batch_size=4, micro_batch=4, max_length=64)
    examined = methods.get("seeking")
    located = locate(*pair[0], [people], settings)
    about = (located.blocks, settings, 0, examined.settings(rank=4), examined)
    more = {"neurons": located.neurons, "ffn_sensitivity": located.ffn, "tune": steps}
    return [Align(*both, *about, train=people.train[:8], known=people.align[:24], **more) for both in pair]


@pytest.mark.parametrize("name", sorted(n for n, m in methods.catalogue().items() if not m.needs_clone))
def test_every_method_makes_the_same_start(aligns, name):
    method, made = methods.get(name), []
    if method.paradigm != "control":
        few = {k: v for k, v in FEW.items() if k in method.settings.model_fields}
        aligns = [replace(a, method=method, settings=method.settings(**few)) for a in aligns]
    for align in aligns:
        torch.manual_seed(0)
        made.append(method.start(align))
    assert made[0].decoder == made[1].decoder
    assert made[0].factors.keys() == made[1].factors.keys() and made[0].matrices.keys() == made[1].matrices.keys()
    for place, (b, a) in made[0].factors.items():
        other_b, other_a = made[1].factors[place]
        torch.testing.assert_close(other_b @ other_a, b @ a)
    for place, matrix in made[0].matrices.items():
        torch.testing.assert_close(made[1].matrices[place], matrix)


def test_tuning_and_the_reload_check(aligns, pair, people, tmp_path, capsys):
    start, logits = methods.get("seeking").start(aligns[0]), []
    folder, student = tmp_path / "adapter", pair[1][1]
    for loaded in (pair[0][1], student):
        with inject.attached(loaded, Start(start.factors)) as wrapped:
            tune.fine_tune(wrapped, items(loaded, people), config.Tune(epochs=2, max_length=64), 0)
            logits.append(inject.probe_logits(wrapped, IDS[0]))
            inject.export(wrapped, folder, student.checkpoint.spec, {})
    torch.testing.assert_close(*logits)
    probe = tmp_path / "probe.safetensors"
    save_file({"ids": IDS[0], "0": logits[1]}, probe)
    layers = ",".join(student.layers)
    reload.main([str(student.checkpoint.folder), "float32", "cpu", layers, str(probe), str(folder)])
    assert json.loads(capsys.readouterr().out) < 1e-4


def test_as_many_stay_as_there_is_room_for(pair):
    plain = pair[0][0]
    size = sum(p.numel() * 4 for p in plain.model.parameters())
    cpu = torch.device("cpu")
    assert placing.homes(plain.model, cpu, "auto", {"cpu": 2 * size}) == ["cpu", "cpu"]
    assert placing.homes(plain.model, cpu, "auto", {"cpu": 0}) == ["disk", "disk"]
    assert placing.homes(plain.model, cpu, "auto", {0: 2 * size, "cpu": size}) == ["cuda:0", "cuda:0"]
    assert placing.homes(plain.model, cpu, "auto", {0: 0, 1: 2 * size, "cpu": size}) == ["cuda:1", "cuda:1"]
