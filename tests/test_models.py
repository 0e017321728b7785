from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from paraknow import checkpoints, config, models
from paraknow.architecture import FAMILIES, from_config
from paraknow.errors import InputError, ResourceError
from paraknow.methods.base import Align


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_architecture_agrees_with_the_modules(checkpoint, family):
    loaded = models.load(str(checkpoint(family)), device="cpu")
    a = loaded.architecture
    for layer in range(a.layers):
        for module in a.matrices:
            assert tuple(loaded.weight(module, layer).shape) == a.shape(module)
    names = dict(loaded.model.named_parameters())
    places = {a.place(name) for name in names}
    assert len(places) == len(names), "two parameters share a place"
    for module in config.MODULES:
        assert a.place(f"{a.path(module, 1)}.weight") == (1, module)
    assert a.place("model.embed_tokens.weight") == (-1, "embed")
    assert loaded.checkpoint.parameters == sum(p.numel() for p in names.values())
    assert loaded.checkpoint.largest == max(p.numel() for p in names.values())
    assert a.tied == (family == "gemma") and a.kv_heads < a.heads


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_are_loaded_in_the_type_asked_for(checkpoint, dtype):
    folder = checkpoint("qwen2")
    loaded = models.load(str(folder), dtype, "cpu")
    stored = load_file(folder / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(loaded.weight("up", 0), stored.to(models.DTYPES[dtype]))
    assert not any(p.requires_grad for p in loaded.model.parameters()) and not loaded.model.training


def test_missing_matrices_are_refused(checkpoint, tmp_path):
    import shutil

    from safetensors.torch import save_file

    folder = shutil.copytree(checkpoint("llama"), tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack model\.layers\.1\.mlp\.down_proj"):
        models.load(str(folder), device="cpu")


def test_no_device():
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ResourceError, match="no CUDA device"):
        models.load("demo:student", device="cuda")
    assert models.pick_device("auto").type == "cpu"


def test_a_changed_byte_changes_the_hash(checkpoint, tmp_path):
    import os
    import shutil

    folder = shutil.copytree(checkpoint("llama"), tmp_path / "m")
    before = checkpoints.weights_hash(checkpoints.find(str(folder)))
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(1, 1))
    assert checkpoints.weights_hash(checkpoints.find(str(folder))) != before


def test_vocabularies_are_compared(checkpoint):
    demo = [checkpoints.find(f"demo:{n}") for n in ("teacher", "student")]
    assert checkpoints.same_vocabulary(*demo)
    assert not checkpoints.same_vocabulary(demo[0], checkpoints.find(str(checkpoint("llama", vocab_size=600))))


def test_missing_sizes_are_named():
    with pytest.raises(InputError, match="no 'intermediate_size'"):
        from_config({"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}, "m")


class Hub:
    """A hub that answers from memory."""

    def __init__(self, monkeypatch, sizes: dict[str, int], folder):
        from huggingface_hub.errors import LocalEntryNotFoundError

        self.downloads: list[tuple] = []

        def snapshot(repository, revision=None, allow_patterns=(), local_files_only=False):
            if local_files_only:
                raise LocalEntryNotFoundError("not here")
            assert not any(p.endswith((".bin", ".py", ".pt")) for p in allow_patterns)
            self.downloads.append((repository, revision))
            return str(folder)

        class Api:
            def model_info(self, repository, revision=None, files_metadata=False):
                from types import SimpleNamespace

                return SimpleNamespace(siblings=[SimpleNamespace(rfilename=n, size=s) for n, s in sizes.items()])

        monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
        monkeypatch.setattr("huggingface_hub.HfApi", Api)


def test_hub_models_say_their_size_before_they_come(checkpoint, monkeypatch, capsys):
    hub = Hub(monkeypatch, {"model.safetensors": 3 * 2**30, "config.json": 100}, checkpoint("llama"))
    found = checkpoints.find("some/model@v2")
    assert found.architecture.layers == 2 and hub.downloads == [("some/model", "v2")]
    assert "Downloading some/model@v2: 3.0 GiB" in capsys.readouterr().err
    assert found.title == "model"


def test_hub_models_that_cannot_come(checkpoint, monkeypatch):
    hub = Hub(monkeypatch, {"pytorch_model.bin": 5}, checkpoint("llama"))
    with pytest.raises(InputError, match="no safetensors files; pickles are not loaded"):
        checkpoints.find("some/model")
    hub = Hub(monkeypatch, {"model.safetensors": 2**60}, checkpoint("llama"))
    with pytest.raises(InputError, match="GiB of disk"):
        checkpoints.find("some/model")
    assert not hub.downloads


def test_a_qwen_pair_with_biases_goes_all_the_way(checkpoint):
    """Another family than the demo's, query/key norms and biases included, from locating to an adapter."""
    from paraknow import data, inject, methods
    from paraknow.locate.located import locate

    small = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    teacher = models.load(str(checkpoint("qwen3")), "bfloat16", "cpu")
    student = models.load(str(checkpoint("qwen2", **small)), "bfloat16", "cpu")
    settings = config.Locate(seeds=2, max_length=64, structure="rows_columns")
    found = locate(teacher, student, [data.load_task("demo:people")], settings)
    method = methods.get("seeking")
    start = method.start(Align(teacher, student, found.blocks, settings, 0, method.settings(rank=4), method))
    ids = torch.arange(3, 30)
    plain = inject.probe_logits(student.model, ids)
    with inject.attached(student, start) as wrapped:
        assert float((inject.probe_logits(wrapped, ids) - plain).abs().max()) < 0.25
        assert {p.dtype for p in wrapped.parameters() if p.requires_grad} == {torch.float32}
