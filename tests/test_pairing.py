"""Two models side by side from their files alone: facts, what differs, what is refused, what cannot be read."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paraknow import checkpoints, cli, described, dryrun, pairing, recipes, resources
from paraknow.architecture import from_config
from paraknow.errors import InputError

DEMO = ("demo:teacher", "demo:student")


def copy_of(name: str, folder: Path) -> Path:
    return Path(shutil.copytree(resources.demo_model(name), folder))


def test_facts_are_those_of_the_files():
    found = pairing.look(*DEMO)
    a = checkpoints.find("demo:teacher").architecture
    assert (found.teacher.layers, found.teacher.hidden, found.teacher.ffn) == (a.layers, a.hidden, a.ffn)
    assert found.teacher.dtype == "bfloat16" and found.teacher.source == "files"
    weights = resources.demo_model("teacher").glob("*.safetensors")
    assert found.teacher.bytes == sum(f.stat().st_size for f in weights)
    assert "layers" in found.differing and "vocabulary" not in found.differing
    assert found.tokenizer == {"same": True, "shared": 512, "same_ids": 512}
    assert {b["module"]: b["share"] for b in found.blocks}["down"] == 0.25
    assert set(found.memory) == {"load", "locate", "similarity", "align", "tune", "evaluate"}
    assert list(found.refused) == ["oracle"] and "built here" in found.lineage
    assert json.dumps(found.as_dict())


def test_a_pair_the_wrong_way_round_is_refused_as_a_whole():
    found = pairing.look(*DEMO[::-1])
    assert "fewer than the student's" in found.refused[pairing.ANY] and "other way round" in " ".join(found.notes)
    assert all(not b["fits"] and b["share"] is None for b in found.blocks)


def test_public_pairs_are_known_from_the_table():
    found = pairing.look("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.2-1B@main", dtype="bfloat16")
    assert found.teacher.source == described.TABLE and found.teacher.dtype is None and found.tokenizer["same"]
    assert "one lineage" in found.lineage and "tied" in found.differing
    assert "tied" in found.refused[pairing.EMBEDDINGS]
    assert "Not known" in pairing.look("demo:equal", "demo:sibling").lineage


def test_parameters_by_config_are_those_of_the_built_model(checkpoint):
    for family in ("llama", "mistral", "qwen2", "qwen3", "gemma"):
        folder = checkpoint(family)
        values = json.loads((folder / "config.json").read_text())
        assert pairing.counted(from_config(values, family), values) == checkpoints.find(str(folder)).parameters
    for spec, entry in recipes.model_configs().items():
        found = pairing.counted(from_config(entry["config"], spec), entry["config"])
        assert found == dryrun.on_meta(json.dumps(entry["config"], sort_keys=True))[1]


def test_tokenizers_that_share_tokens_are_counted(tmp_path):
    other = copy_of("student", tmp_path / "m")
    content = json.loads((other / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    names = sorted(vocabulary, key=vocabulary.get)
    vocabulary[names[300]], vocabulary[names[301]] = vocabulary[names[301]], vocabulary[names[300]]
    vocabulary["new"] = vocabulary.pop(names[302])
    (other / "tokenizer.json").write_text(json.dumps(content))
    found = pairing.look("demo:teacher", str(other))
    assert found.tokenizer == {"same": False, "shared": 511, "same_ids": 509}
    assert "semalign" in found.refused and any("read text differently" in n for n in found.notes)


# -- what cannot be read -----------------------------------------------------------------------------------


def broken(tmp_path: Path, how: str) -> Path:
    """A copy of the demo teacher that is broken in one way."""
    folder = copy_of("teacher", tmp_path / "m")
    weights, config = folder / "model.safetensors", folder / "config.json"
    values = json.loads(config.read_text())
    if how == "half a file":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif how == "shard missing":
        names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        weights.rename(folder / names["a"])
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    elif how == "broken index":
        (folder / "model.safetensors.index.json").write_text("[]")
    elif how == "pickles":
        weights.rename(folder / "pytorch_model.bin")
    elif how == "odd header":
        text = json.dumps({"a": {"shape": "x"}}).encode()
        weights.write_bytes(struct.pack("<Q", len(text)) + text)
    elif how == "broken JSON":
        config.write_text("{")
    elif how == "no table":
        config.write_text("[1]")
    elif how == "quantised":
        config.write_text(json.dumps({**values, "quantization_config": {"quant_method": "gptq"}}))
    elif how == "family":
        config.write_text(json.dumps({**values, "model_type": "gpt2"}))
    elif how == "sizes":
        config.write_text(json.dumps({**values, "num_attention_heads": 0, "head_dim": None}))
    elif how == "no tokenizer":
        for file in folder.glob("*token*"):
            file.unlink()
    elif how == "template":
        (folder / "tokenizer_config.json").write_text("{")
    return folder


WRONG = {
    "half a file": "the download has not ended",
    "shard missing": "model-00002-of-00002.safetensors is missing; the download has not ended",
    "broken index": "index.json cannot be read",
    "pickles": "only pickled weights",
    "odd header": "does not describe tensors",
    "broken JSON": "config.json cannot be read",
    "no table": "is no table of settings",
    "quantised": "gptq",
    "family": "'gpt2' is not supported; supported are Llama",
    "sizes": "is no whole number above 0",
    "no tokenizer": "has no tokenizer",
    "template": "tokenizer_config.json cannot be read",
}


@pytest.mark.parametrize("how", WRONG)
def test_what_cannot_be_read_is_said_in_a_sentence(tmp_path, capsys, how):
    folder = broken(tmp_path, how)
    with pytest.raises(SystemExit) as stop:
        cli.main(["models", str(folder), "demo:student"])
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and WRONG[how] in line and "Traceback" not in line


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["hidden_size", "num_attention_heads", "num_hidden_layers", "head_dim", "vocab_size"]),
        st.none() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.integers(), max_size=2),
    )
)
def test_any_config_is_an_architecture_or_a_sentence(changes):
    values = json.loads((resources.demo_model("teacher") / "config.json").read_text())
    try:
        assert from_config({**values, **changes}, "model 'x'").layers > 0
    except InputError as error:
        assert "config.json" in str(error)


# -- the hub ---------------------------------------------------------------------------------------------


def test_nothing_is_downloaded_to_look(monkeypatch):
    monkeypatch.setattr(checkpoints, "_download", lambda spec: pytest.fail("asked a hub"))
    with pytest.raises(InputError, match="nothing is downloaded to look"):
        pairing.look("someone/model", "demo:student")


def test_fetching_brings_no_weights_and_says_what_is_wrong(monkeypatch, tmp_path, checkpoint):
    from types import SimpleNamespace

    from huggingface_hub.errors import GatedRepoError

    asked, files = [], {"config.json": 900, "tokenizer.json": 10**6, "model.safetensors": 10**10}

    def snapshot(repository, revision=None, allow_patterns=None, **more):
        asked.append((repository, revision, allow_patterns))
        return str(tmp_path)

    class Api:
        def model_info(self, repository, revision=None, files_metadata=False):
            if "gated" in repository:
                raise GatedRepoError("no", response=SimpleNamespace(headers={}, request=None, status_code=403))
            return SimpleNamespace(siblings=[SimpleNamespace(rfilename=n, size=s) for n, s in files.items()])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    described.fetch("some/model@v2")
    assert asked[0][:2] == ("some/model", "v2") and not any("safetensors" in p for p in asked[0][2])
    with pytest.raises(InputError, match="is gated: accept its licence"):
        described.fetch("some/gated")
    files["tokenizer.json"] = 10**9
    with pytest.raises(InputError, match="at most 200"):
        described.fetch("some/model")
    monkeypatch.undo()
    with pytest.raises(InputError, match="the hub cannot be reached"):
        described.fetch("some/model")


# -- the command line ------------------------------------------------------------------------------------


def test_the_command_prints_the_same(capsys):
    with pytest.raises(SystemExit):
        cli.main(["models", *DEMO, "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["schema_version"] == 1 and [m["spec"] for m in printed["models"]] == list(DEMO)
    found = json.loads(json.dumps(pairing.look(*DEMO).as_dict()))
    assert {**printed["pair"], "free": 0} == {**found, "free": 0}
    with pytest.raises(SystemExit):
        cli.main(["models", *DEMO])
    text = capsys.readouterr().out
    assert "It fits" in text and "cloned pair" in text and "Lineage" in text
    with pytest.raises(SystemExit) as stop:
        cli.main(["models", *DEMO, "--dtype", "int8"])
    assert stop.value.code == 2 and "--dtype 'int8': choose one of" in capsys.readouterr().err
