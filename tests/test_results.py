from __future__ import annotations

import json

import pytest
import torch

from paraknow import config, files, inject, methods, models, results
from paraknow.errors import InputError, RunError
from paraknow.methods.base import Start
from tests.conftest import SMALL
from tests.methods.test_baselines import assert_untouched, state_of
from tests.test_inject import IDS, random_start

FFN = ("gate", "up", "down")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shaped(student, **sizes: int) -> dict:
    """Random matrices for every layer of a student with other sizes (ffn, heads, kv_heads)."""
    import dataclasses

    other = dataclasses.replace(student.architecture, **sizes)
    modules = (*FFN,) if set(sizes) == {"ffn"} else config.MODULES
    return {
        (layer, module): drawn(*other.shape(module), seed=10 * layer + number)
        for layer in range(other.layers)
        for number, module in enumerate(modules)
    }


STARTS = {
    "adapter": lambda s: random_start(s, tuned=True),
    "checkpoint": lambda s: Start(matrices=shaped(s, ffn=30), tuned=False, examples=5, steps=7, trainable=9),
    "decoder": lambda s: Start(decoder={"weight": 0.25, "shares": [0.5, 1.0]}, tuned=False, examples=2),
}


# -- starts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", STARTS)
def test_a_start_survives_its_file(tiny_pair, tmp_path, kind):
    start, path = STARTS[kind](tiny_pair[1]), tmp_path / "align" / "0.safetensors"
    results.save_start(path, start, facts={"residual": 0.5}, teacher_flops=1e9)
    again, notes = results.read_start(path)
    assert notes == {"facts": {"residual": 0.5}, "teacher_flops": 1e9}
    assert {n: getattr(again, n) for n in results.NUMBERS} == {n: getattr(start, n) for n in results.NUMBERS}
    assert again.factors.keys() == start.factors.keys() and again.matrices.keys() == start.matrices.keys()
    for place, parts in start.factors.items():
        assert all(torch.equal(a, b) for a, b in zip(parts, again.factors[place], strict=True))
    assert all(torch.equal(w, again.matrices[p]) for p, w in start.matrices.items())
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_matrices_keep_their_type_and_factors_are_float32(tmp_path):
    start = Start({(-1, "embed"): (drawn(8, 2).bfloat16(), drawn(2, 4).requires_grad_())})
    start.matrices = {(1, "up"): drawn(4, 3).T.bfloat16()}  # not contiguous either
    results.save_start(tmp_path / "s.safetensors", start)
    again, _ = results.read_start(tmp_path / "s.safetensors")
    b, a = again.factors[(-1, "embed")]
    assert b.dtype == a.dtype == torch.float32 and torch.equal(a, start.factors[(-1, "embed")][1])
    assert torch.equal(again.matrices[(1, "up")], start.matrices[(1, "up")])


def test_factors_that_are_views_of_one_tensor_can_be_saved(tmp_path):
    """Methods may well give several matrices one A."""
    shared = drawn(2, 4)
    start = Start({(0, "gate"): (drawn(6, 2), shared), (0, "up"): (drawn(6, 2, seed=1), shared[:])})
    results.save_start(tmp_path / "s.safetensors", start)
    again, _ = results.read_start(tmp_path / "s.safetensors")
    assert all(torch.equal(again.factors[p][1], shared) for p in start.factors)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_no_numbers_are_found_wherever_they_are(value):
    good, bad = drawn(3, 2), drawn(3, 2)
    bad[1, 1] = value
    assert results.unsound(Start({(0, "q"): (good, good.T)}, matrices={(1, "up"): good})) is None
    assert results.unsound(Start({(0, "q"): (good, good.T), (2, "v"): (good, bad.T)})) == (2, "v")
    assert results.unsound(Start(matrices={(0, "up"): good, (1, "up"): bad})) == (1, "up")


# -- checkpoints ---------------------------------------------------------------------------------------

SIZES = [{"ffn": 40}, {"ffn": 7}, {"heads": 4, "kv_heads": 2}, {"ffn": 31, "heads": 4, "kv_heads": 4}]


@pytest.mark.parametrize("sizes", SIZES)
def test_a_rebuilt_student_is_an_ordinary_checkpoint(tiny_pair, tmp_path, sizes):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, student = tiny_pair
    before, matrices = state_of(student), shaped(student, **sizes)
    old = {n: getattr(student.model.config, n) for n in ("intermediate_size", "num_attention_heads")}
    model = results.rebuilt(student, matrices)
    assert_untouched(student, before)
    assert {n: getattr(student.model.config, n) for n in old} == old
    for (layer, module), weight in matrices.items():
        linear = model.get_submodule(student.architecture.path(module, layer))
        assert torch.equal(linear.weight, weight) and (linear.out_features, linear.in_features) == weight.shape
    logits = inject.probe_logits(model, IDS)
    out = tmp_path / "adapters" / "widen" / "0"
    results.export_checkpoint(student, model, out, {"method": "transport", "added": 3})
    loaded = AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(inject.probe_logits(loaded.eval(), IDS), logits, atol=1e-5, rtol=0)
    assert loaded.config.head_dim == student.architecture.head_dim
    assert AutoTokenizer.from_pretrained(out).get_vocab() == student.tokenizer.get_vocab()
    assert files.read_json(out / "paraknow.json")["added"] == 3 and results.kind(out) == "checkpoint"
    assert [p.name for p in out.parent.iterdir()] == ["0"]


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3", "gemma"])
def test_every_family_can_be_widened(checkpoint, tmp_path, family):
    """Also where heads do not fill the hidden size, or embeddings are tied: only the FFN changes."""
    student = models.load(str(checkpoint(family, seed=1)), device="cpu")
    a = student.architecture
    matrices = {
        (layer, m): torch.cat([w, torch.zeros_like(w)], 1 if m == "down" else 0)
        for layer in range(a.layers)
        for m in FFN
        for w in [student.weight(m, layer)]
    }
    model = results.rebuilt(student, matrices)
    plain = inject.probe_logits(student.model, IDS)  # neurons that write nothing change nothing
    torch.testing.assert_close(inject.probe_logits(model, IDS), plain, atol=1e-5, rtol=1e-5)
    results.export_checkpoint(student, model, tmp_path / "out", {})
    again = models.load(str(tmp_path / "out"), device="cpu")
    assert again.architecture.ffn == 2 * a.ffn and again.architecture.tied == a.tied
    torch.testing.assert_close(inject.probe_logits(again.model, IDS), plain, atol=1e-5, rtol=1e-5)


def without(matrices: dict, *places) -> dict:
    return {p: w for p, w in matrices.items() if p not in places}


def test_matrices_that_do_not_fit_together_are_named(tiny_pair):
    _, student = tiny_pair
    before, wide = state_of(student), shaped(student, ffn=30)
    heads = shaped(student, heads=4, kv_heads=2)
    bad = {
        "up of layer 0": without(wide, (0, "up")),
        "gate of layer 1": without(wide, (1, "gate")),
        "down of layer 1": wide | {(1, "down"): drawn(16, 31)},
        "gate of layer 0": wide | {(0, "gate"): drawn(30, 17)},
        "q of layer 0": heads | {(0, "q"): drawn(33, 16)},
        "o of layer 1": without(heads, (1, "o")),
        "v of layer 0": without(heads, (0, "v")),
    }
    for words, matrices in bad.items():
        with pytest.raises(RunError, match=words):
            results.rebuilt(student, matrices)
    assert_untouched(student, before)


def test_heads_that_cannot_share_are_refused(tiny_pair):
    """Three query heads over two key/value heads."""
    with pytest.raises(RunError, match="heads"):
        results.rebuilt(tiny_pair[1], shaped(tiny_pair[1], heads=3, kv_heads=2))


@pytest.mark.parametrize("module", ["embed", "lm_head"])
def test_embeddings_of_another_size_are_refused(tiny_pair, module):
    _, student = tiny_pair
    layer = student.architecture.layer_of(module, 0)
    with pytest.raises(RunError, match=module):
        results.rebuilt(student, {(layer, module): drawn(512, 17)})
    right = drawn(512, 16)
    model = results.rebuilt(student, {(layer, module): right})
    assert torch.equal(model.get_submodule(student.architecture.path(module, layer)).weight, right)


# -- in use --------------------------------------------------------------------------------------------


def test_every_kind_is_applied_and_leaves_nothing_behind(tiny_pair, tmp_path):
    teacher, student = tiny_pair
    fusion = methods.get("logit_fusion")
    before = [state_of(m) for m in tiny_pair]
    start = random_start(student)
    with inject.attached(student, start) as wrapped:
        wrapped.base_model.set_adapter([inject.MOVING])
        adapted = inject.probe_logits(wrapped, IDS)
        inject.export(wrapped, tmp_path / "both", "x", {})
    untuned = random_start(student, tuned=False)
    with inject.attached(student, untuned) as wrapped:
        inject.export(wrapped, tmp_path / "adapter", "x", {})
    model = results.rebuilt(student, shaped(student, ffn=30))
    results.export_checkpoint(student, model, tmp_path / "checkpoint", {})
    results.export_decoder(tmp_path / "decoder", {"weight": 1.0}, {"method": "logit_fusion"})
    expected = {
        "adapter": adapted,
        "checkpoint": inject.probe_logits(model, IDS),
        "decoder": torch.log_softmax(inject.probe_logits(teacher.model, IDS), -1),
    }
    for kind, logits in expected.items():
        assert results.kind(tmp_path / kind) == kind
        with results.applied(teacher, student, fusion, tmp_path / kind) as applied, torch.no_grad():
            found = applied(input_ids=IDS[None]).logits[0].float()
            if kind == "decoder":
                found = torch.log_softmax(found, -1)
            torch.testing.assert_close(found, logits, atol=1e-4, rtol=0)
        for loaded, state in zip(tiny_pair, before, strict=True):
            assert_untouched(loaded, state)


def test_the_student_is_plain_again_when_what_uses_a_result_fails(tiny_pair, tmp_path):
    teacher, student = tiny_pair
    before = state_of(student)
    with inject.attached(student, random_start(student)) as wrapped:
        inject.export(wrapped, tmp_path / "adapter", "x", {})
    results.export_checkpoint(student, results.rebuilt(student, {}), tmp_path / "checkpoint", {})
    for kind in ("adapter", "checkpoint"):
        with (
            pytest.raises(KeyError),
            results.applied(teacher, student, methods.get("seeking"), tmp_path / kind),
        ):
            raise KeyError("evaluation broke off")
        assert_untouched(student, before)


def test_a_decoder_keeps_its_values_and_knows_its_student(tiny_pair, tmp_path):
    teacher, student = tiny_pair
    results.export_decoder(tmp_path / "d", {"weight": 0.5}, {"method": "logit_fusion"})
    kept = json.loads((tmp_path / "d" / results.DECODER_FILE).read_text())
    assert kept.pop("schema_version") == 1 and kept == {"weight": 0.5}
    with results.applied(teacher, student, methods.get("logit_fusion"), tmp_path / "d") as fused:
        assert fused.values == {"weight": 0.5} and fused.config is student.model.config
        mask = torch.ones(1, len(IDS), dtype=torch.long)
        assert fused(input_ids=IDS[None], attention_mask=mask).logits.shape == (1, len(IDS), 512)
        assert not any(True for _ in fused.parameters() if _.requires_grad)


def test_a_folder_with_nothing_in_it_is_no_result(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "absent"):
        with pytest.raises(RunError, match=f"{folder.name} holds no adapter, no checkpoint and no decoder"):
            results.kind(folder)


def test_an_adapter_and_a_checkpoint_are_checked_in_one_process(tiny_pair, tmp_path):
    _, student = tiny_pair
    with inject.attached(student, random_start(student, tuned=False)) as wrapped:
        inject.export(wrapped, tmp_path / "a", "x", {})
        expected = {tmp_path / "a": inject.probe_logits(wrapped, IDS)}
    model = results.rebuilt(student, shaped(student, ffn=SMALL["intermediate_size"] + 2))
    results.export_checkpoint(student, model, tmp_path / "c", {})
    expected[tmp_path / "c"] = inject.probe_logits(model, IDS)
    found = inject.reload_check(student, IDS, expected, tmp_path)
    assert set(found) == {str(tmp_path / "a"), str(tmp_path / "c")} and max(found.values()) < 1e-4
    assert not (tmp_path / "probe.safetensors").exists()


def test_a_checkpoint_that_changed_on_its_way_is_noticed(tiny_pair, tmp_path, monkeypatch):
    """What the fresh process says is held against the limit, folder by folder."""
    said = [0, "0.00005\n0.4\n", ""]
    monkeypatch.setattr(inject, "_watched", lambda *_: said)
    expected = {tmp_path / name: torch.ones(3, 4) for name in ("same", "other")}
    with pytest.raises(RunError, match="reload check: .*other gives logits that differ by 0.4"):
        inject.reload_check(tiny_pair[1], IDS, expected, tmp_path / "work")
    said[0], said[2] = 1, "Traceback\nOSError: gone\n"
    with pytest.raises(RunError, match="reload check: the fresh process failed: OSError: gone"):
        inject.reload_check(tiny_pair[1], IDS, expected, tmp_path / "work")


def test_adapters_and_checkpoints_are_exported_and_decoders_are_not(tiny_pair, tmp_path):
    _, student = tiny_pair
    with inject.attached(student, random_start(student, tuned=False)) as wrapped:
        inject.export(wrapped, tmp_path / "adapter", "x", {})
        expected = {"adapter": inject.probe_logits(wrapped, IDS)}
    model = results.rebuilt(student, shaped(student, ffn=30))
    results.export_checkpoint(student, model, tmp_path / "checkpoint", {})
    expected["checkpoint"] = inject.probe_logits(model, IDS)
    for kind, logits in expected.items():
        results.merge(student, tmp_path / kind, tmp_path / "out" / kind)
        merged = models.load(str(tmp_path / "out" / kind), device="cpu")
        torch.testing.assert_close(inject.probe_logits(merged.model, IDS), logits, atol=1e-3, rtol=0)
    results.export_decoder(tmp_path / "decoder", {"weight": 0.5}, {})
    with pytest.raises(InputError, match="cannot be exported"):
        results.merge(student, tmp_path / "decoder", tmp_path / "out" / "decoder")
    assert not (tmp_path / "out" / "decoder").exists()
