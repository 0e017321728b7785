from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from paraknow import inject
from paraknow.errors import Cancelled, RunError
from paraknow.methods.base import Start
from tests import fresh

IDS = torch.arange(3, 40)


def random_start(student, tuned: bool = True, rank: int = 3, modules=("q", "v", "up", "embed", "lm_head")) -> Start:
    generator = torch.Generator().manual_seed(0)
    factors = {}
    for module in modules:
        layer = student.architecture.layer_of(module, 1)
        n, m = student.weight(module, layer).shape
        b = 0.1 * torch.randn(n, rank, generator=generator)
        factors[(layer, module)] = (b, torch.randn(rank, m, generator=generator))
    return Start(factors, tuned)


def nudge(wrapped) -> None:
    """Move the trained twin as tuning would."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)


@pytest.mark.parametrize("tuned", [True, False])
def test_exported_adapter_is_plain_peft(tiny_pair, tmp_path, tuned):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    _, student = tiny_pair
    out = tmp_path / "adapter"
    with inject.attached(student, random_start(student, tuned)) as wrapped:
        nudge(wrapped)  # export must work on any factors, tuned or not
        inject.export(wrapped, out, "somewhere/student", {"method": "test"})
        logits = inject.probe_logits(wrapped, IDS)
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["r"] == config["lora_alpha"] == (6 if tuned else 3)
    assert config["base_model_name_or_path"] == "somewhere/student"
    assert json.loads((out / "paraknow.json").read_text())["method"] == "test"
    plain = AutoModelForCausalLM.from_pretrained(student.checkpoint.folder)
    loaded = PeftModel.from_pretrained(plain, str(out)).eval()
    torch.testing.assert_close(inject.probe_logits(loaded, IDS), logits, atol=1e-4, rtol=0)
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(inject.probe_logits(merged, IDS), logits, atol=1e-3, rtol=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter"]


def test_an_untuned_start_is_the_change_itself(tiny_pair):
    _, student = tiny_pair
    start = random_start(student, tuned=False, modules=("up",))
    (place, (b, a)), plain = next(iter(start.factors.items())), inject.probe_logits(student.model, IDS)
    with inject.attached(student, start) as wrapped:
        changed = inject.probe_logits(wrapped, IDS)
    weight = student.weight(place[1], place[0])
    before = weight.clone()
    with torch.no_grad():
        weight += b @ a
        torch.testing.assert_close(inject.probe_logits(student.model, IDS), changed, atol=1e-4, rtol=0)
        weight.copy_(before)
    assert not torch.allclose(plain, changed, atol=1e-3)


def test_a_process_that_is_watched_ends_where_progress_raises(monkeypatch):
    monkeypatch.setattr(inject, "WAIT", 0.05)
    code, seen = "import time, sys; print(1, flush=True); print('x', file=sys.stderr, flush=True); time.sleep({})", []
    found = inject._watched([sys.executable, "-c", code.format(0)], 1, lambda *a: seen.append(a))
    assert found == (0, "1\n", "x\n") and seen[-1] == (1, 1)

    def stop(step: int, total: int) -> None:
        if step == 1:
            raise Cancelled("stop")

    began = time.monotonic()
    with pytest.raises(Cancelled):
        inject._watched([sys.executable, "-c", code.format(60)], 2, stop)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("anew", [True, False])
def test_reload_check_in_a_fresh_process(tiny_pair, tmp_path, monkeypatch, anew):
    """In one that imports everything itself, and in the fork that all other tests make do with."""
    _, student = tiny_pair
    if anew:
        monkeypatch.setattr(fresh.Forks, "forked", lambda self, command: command)
    out = tmp_path / "a" / "0"
    with inject.attached(student, random_start(student)) as wrapped:
        nudge(wrapped)
        inject.export(wrapped, out, "x", {})
        logits = inject.probe_logits(wrapped, IDS)
    found = inject.reload_check(student, IDS, {out: logits}, tmp_path)
    assert max(found.values()) <= 1e-4
    if not anew:
        with pytest.raises(RunError, match="differ by"):
            inject.reload_check(student, IDS, {out: logits + 0.01}, tmp_path)
    assert not (tmp_path / "probe.safetensors").exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_students_keep_full_precision_adapters(tmp_path, dtype):
    """The exported change must be the trained one, not one rounded to the student's type."""
    from paraknow import models

    student = models.load("demo:student", dtype, "cpu")
    with inject.attached(student, random_start(student, modules=("up",))) as wrapped:
        nudge(wrapped)
        inject.export(wrapped, tmp_path / "a", "x", {})
        layer = wrapped.get_base_model().model.layers[1].mlp.up_proj
        change = sum(layer.lora_B[n].weight.double() @ layer.lora_A[n].weight.double() for n in layer.lora_A)
    tensors = load_file(tmp_path / "a" / inject.ADAPTER_FILE)
    a, b = (next(t.double() for k, t in tensors.items() if side in k) for side in ("lora_A", "lora_B"))
    assert float((b @ a - change.detach()).norm() / change.norm()) < 1e-5


def test_a_failed_load_leaves_a_plain_student(tiny_pair, tmp_path):
    _, student = tiny_pair
    with inject.attached(student, random_start(student, modules=("q",))) as wrapped:
        inject.export(wrapped, tmp_path / "a", "x", {})
    tensors = load_file(tmp_path / "a" / inject.ADAPTER_FILE)
    save_file({k: v[:, :1].contiguous() for k, v in tensors.items()}, tmp_path / "a" / inject.ADAPTER_FILE)
    names = [n for n, _ in student.model.named_parameters()]
    with pytest.raises(RunError, match="cannot be loaded"), inject.adapted(student, tmp_path / "a"):
        pass
    assert [n for n, _ in student.model.named_parameters()] == names
    assert not any(p.requires_grad for p in student.model.parameters())


def test_a_pickled_adapter_is_not_loaded(tiny_pair, tmp_path):
    _, student = tiny_pair
    out = tmp_path / "adapter"
    with inject.attached(student, random_start(student)) as wrapped:
        inject.export(wrapped, out, "somewhere/student", {})
    torch.save(load_file(out / inject.ADAPTER_FILE), out / "adapter_model.bin")
    (out / inject.ADAPTER_FILE).unlink()
    with pytest.raises(RunError, match="safetensors is missing"), inject.adapted(student, out):
        pass


def test_a_misspelled_key_is_noticed(tiny_pair, tmp_path):
    _, student = tiny_pair
    out = tmp_path / "a"
    with inject.attached(student, random_start(student, modules=("q",))) as wrapped:
        inject.export(wrapped, out, "x", {})
    tensors = load_file(out / inject.ADAPTER_FILE)
    save_file({k.replace("q_proj", "q_prj"): v for k, v in tensors.items()}, out / inject.ADAPTER_FILE)
    with pytest.raises(RunError, match="does not match"), inject.adapted(student, out):
        pass
    assert not any("lora" in n for n, _ in student.model.named_parameters())


def test_merged_checkpoint_is_ordinary(tiny_pair, tmp_path):
    from transformers import AutoModelForCausalLM

    _, student = tiny_pair
    with inject.attached(student, random_start(student)) as wrapped:
        nudge(wrapped)
        inject.export(wrapped, tmp_path / "a", "x", {})
        logits = inject.probe_logits(wrapped, IDS)
    inject.merge(student, tmp_path / "a", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(inject.probe_logits(merged, IDS), logits, atol=1e-3, rtol=0)
    assert (tmp_path / "merged" / "tokenizer.json").is_file()


def test_student_is_restored_after_a_failure(tiny_pair):
    _, student = tiny_pair
    plain = inject.probe_logits(student.model, IDS)
    with pytest.raises(ZeroDivisionError), inject.attached(student, random_start(student)):
        raise ZeroDivisionError
    assert torch.equal(inject.probe_logits(student.model, IDS), plain)
    assert not any(p.requires_grad for p in student.model.parameters())


def test_the_reload_process_uses_nothing_of_ours():
    code = "import paraknow.reload, sys; print([m for m in sys.modules if m.startswith('paraknow')])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "inject" not in found and "torch" not in found
