"""Every bad input of the command line: refused before the first stage, one sentence, nothing written."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from paraknow import cli, data, devices, resources, tune

QUICK = {
    "pair": {"teacher": "demo:teacher", "student": "demo:student"},
    "task": "demo:people",
    "method": {"name": "seeking", "rank": 4},
    "controls": ["zero"],
    "locate": {"seeds": 2, "max_length": 64},
    "similarity": {"examples": 16, "tokens": 1, "permutations": 2, "resamples": 100, "untrained": False},
    "tune": {"epochs": 1, "max_length": 64},
    "evaluate": {"limit": 2},
}


@pytest.fixture
def refused(tmp_path, runs, capsys):
    """refused(changes) runs a config and returns the one sentence on stderr, after checking the rest."""

    def run(code: int = 2, arguments: list[str] | None = None, **changes) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({**QUICK, **changes}))
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments or ["run", str(path)])
        captured = capsys.readouterr()
        assert stop.value.code == code, captured.err
        lines = captured.err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("paraknow: "), captured.err
        assert captured.out == ""
        assert not runs.exists() or not list(runs.iterdir())
        return lines[0]

    return run


def pair(teacher: Path | str = "demo:teacher", student: Path | str = "demo:student") -> dict:
    return {"pair": {"teacher": str(teacher), "student": str(student)}}


def copy_of(name: str, folder: Path) -> Path:
    return Path(shutil.copytree(resources.demo_model(name), folder))


def test_unknown_key(refused):
    assert "unknown key 'locate.seed'; did you mean 'seeds'" in refused(locate={"seed": 3})


def test_missing_folder(refused, tmp_path):
    assert "no such folder" in refused(**pair(tmp_path / "nowhere"))
    assert "there is no demo model 'techer'" in refused(**pair("demo:techer"))


def test_hub_out_of_reach(refused):
    assert "the hub cannot be reached" in refused(**pair("nobody/nothing"))


def test_folder_without_safetensors(refused, tmp_path):
    folder = copy_of("teacher", tmp_path / "m")
    (folder / "model.safetensors").unlink()
    assert "holds no safetensors" in refused(**pair(folder))
    (folder / "config.json").unlink()
    assert "no config.json" in refused(**pair(folder))


def test_pickle_checkpoint(refused, tmp_path):
    folder = copy_of("teacher", tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "only pickled weights" in refused(**pair(folder))


def test_truncated_safetensors(refused, tmp_path):
    folder = copy_of("teacher", tmp_path / "m")
    (folder / "model.safetensors").write_bytes(b"\x00" * 5)
    assert "not a readable safetensors file" in refused(**pair(folder))


def change_config(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_unsupported_family_and_quantised(refused, tmp_path):
    folder = copy_of("teacher", tmp_path / "m")
    change_config(folder, model_type="mamba")
    assert "family 'mamba' is not supported; supported are Llama, Mistral, Qwen2, Qwen3, Gemma" in refused(
        **pair(folder)
    )
    change_config(folder, model_type="llama", quantization_config={"quant_method": "gptq"})
    assert "quantised checkpoints (gptq)" in refused(**pair(folder))


def test_teacher_smaller_in_one_matrix(refused, checkpoint):
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4}
    teacher = checkpoint("llama", hidden_size=64, intermediate_size=40, **sizes)
    student = checkpoint("llama", hidden_size=32, intermediate_size=48, **sizes)
    sentence = refused(**pair(teacher, student))
    assert (
        "teacher's gate matrix (40, 64) is smaller than the student's (48, 32); locate.modules can leave it out"
        in sentence
    )


def test_teacher_with_fewer_layers(refused, checkpoint):
    assert "the teacher has 1 layers, fewer than" in refused(
        **pair(checkpoint("llama", num_hidden_layers=1), checkpoint("llama"))
    )


def test_rank_above_the_smallest_side(refused):
    assert "method.rank: 4000 is above the shorter side of the student's" in refused(
        method={"name": "seeking", "rank": 4000}
    )


def test_embeddings_with_different_vocabularies(refused, checkpoint):
    teacher = checkpoint("llama", hidden_size=64, vocab_size=600)
    student = checkpoint("llama")
    assert "one vocabulary" in refused(**pair(teacher, student), locate={"origins": ["embedding"], "seeds": 2})
    tied = checkpoint("gemma")
    assert "tied to lm_head" in refused(**pair(tied, tied), locate={"origins": ["all"], "seeds": 2})


def test_bad_17th_line_and_empty_answer(refused, tmp_path):
    rows = [json.dumps({"question": f"q{i}", "answer": "a"}) for i in range(30)]
    path = tmp_path / "facts.jsonl"
    path.write_text("\n".join([*rows[:16], "{oops", *rows[17:]]))
    assert "facts.jsonl, line 17: not valid JSON" in refused(task=str(path))
    path.write_text("\n".join([*rows, '{"question": "q", "answer": ""}']))
    assert "line 31: the answer is empty" in refused(task=str(path))


def test_one_example_cannot_compare_models(refused, tmp_path):
    folder = tmp_path / "facts"
    folder.mkdir()
    for split, count in (("train", 1), ("align", 4), ("test", 4)):
        rows = [{"question": f"{split} {i}", "answer": "a"} for i in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert "the train split of" in (sentence := refused(task=str(folder)))
    assert "has 1 example, and comparing two models needs at least 4" in sentence
    assert "needs at least 4" in refused(task=str(folder), arguments=["similarity", str(tmp_path / "config.yaml")])


def test_similarity_settings(refused):
    assert "'similarity.examples': input should be greater than or equal to 4" in refused(similarity={"examples": 1})
    assert "unknown key 'similarity.token'; did you mean 'tokens'" in refused(similarity={"token": 1})
    assert "'similarity.parts" in refused(similarity={"parts": ["kca"]})


def test_oracle_off_the_clone_pair(refused):
    assert "needs a cloned pair" in refused(method="oracle")


def test_no_such_device(refused):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert "no CUDA device" in refused(3, device="cuda")


def test_not_enough_memory(refused, monkeypatch):
    monkeypatch.setattr(devices, "free_bytes", lambda device: ("cpu", 10_000_000))
    sentence = refused(3)
    assert "stage needs about" in sentence and "10 MiB are free" in sentence and "no settings fit: with" in sentence


def test_port_in_use(refused):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port} is in use" in refused(arguments=["app", "--port", str(port)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "give a config file"),
        (["run", "none.yaml"], "cannot be read"),
        (["run", "x.yaml", "--until", "lunch"], "--until 'lunch'"),
        (["run", "--resume", "nothing"], "no run named 'nothing'"),
        (["runs", "show", "nothing"], "no run named"),
        (["runs", "cancel", "nothing"], "no run named"),
        (["export", "nothing", "--merged", "x"], "no run named"),
        (["demo", "build", "--size", "huge"], "--size 'huge'"),
        (["runn"], "No such command"),
        (["run", "--setting", "x"], "No such option"),
        (["models", "demo:nobody"], "there is no demo model"),
    ],
)
def test_bad_arguments(refused, arguments, message):
    assert message in refused(arguments=arguments)


def test_resume_takes_no_settings(refused, tmp_path):
    assert "leave every other setting out" in refused(arguments=["run", str(tmp_path / "config.yaml"), "--resume", "x"])


def test_a_runs_folder_that_is_a_file(refused, tmp_path, monkeypatch, runs):
    path = tmp_path / "file"
    path.write_text("x")
    monkeypatch.setenv("PARAKNOW_RUNS", str(path))
    assert "File exists" in refused() or "Not a directory" in refused()


@pytest.fixture
def failed(tmp_path, runs, capsys):
    """failed(changes) runs a config that breaks on its way: exit 4, the state kept, and returns the sentence."""

    def run(**changes) -> tuple[str, Path]:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({**QUICK, **changes}))
        with pytest.raises(SystemExit) as stop:
            cli.main(["run", str(path)])
        sentence = capsys.readouterr().err.strip().splitlines()[-1]
        assert stop.value.code == 4, sentence
        folder = next(path for path in runs.iterdir() if path.name[0] != ".")
        status = json.loads((folder / "status.json").read_text())
        assert status["state"] == "failed" and status["error"] in sentence
        return sentence, folder

    return run


def test_nan_weights_name_the_matrix(failed, tmp_path):
    folder = copy_of("teacher", tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "model.layers.1.mlp.up_proj.weight hold NaN" in failed(**pair(folder))[0]


def test_diverging_loss_names_the_step_and_can_be_resumed(failed, monkeypatch, capsys):
    real, calls = tune._backward, []

    def diverging(model, *rest):
        calls.append(1)
        return real(model, *rest) * (float("nan") if len(calls) == 1 else 1)

    monkeypatch.setattr(tune, "_backward", diverging)
    sentence, folder = failed()
    assert "the loss or its gradient is NaN or infinite at step 1 of" in sentence
    status = json.loads((folder / "status.json").read_text())
    assert status["stages"] == ["load", "locate", "similarity", "align"] and status["stage"] == "tune"
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "--resume", folder.name, "--json"])
    assert stop.value.code == 0 and json.loads(capsys.readouterr().out)["rows"]


def test_full_disk_is_named_and_can_be_resumed(failed, monkeypatch, capsys):
    import errno

    from paraknow.locate import located

    real = located.Located.save

    def full(self, folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(located.Located, "save", full)
    sentence, folder = failed()
    assert "no space is left on the disk" in sentence
    monkeypatch.setattr(located.Located, "save", real)
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "--resume", folder.name, "--json"])
    assert stop.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["run"] == folder.name and printed["rows"]


def test_long_examples_are_cut_and_counted(tmp_path, runs, capsys):
    task = tmp_path / "long.jsonl"
    rows = [{"question": f"{i} " + "word " * (200 if i % 2 else 1), "answer": "yes"} for i in range(20)]
    task.write_text("\n".join(json.dumps(r) for r in rows))
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({**QUICK, "task": str(task)}))
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", str(path), "--json"])
    assert stop.value.code == 0
    folder = Path(json.loads(capsys.readouterr().out)["folder"])
    warnings = [
        json.loads(line)["warning"] for line in (folder / "events.jsonl").read_text().splitlines() if "warning" in line
    ]
    cut = sum(e.messages[0][1] == "word " * 200 for e in data.load_task(str(task)).train)
    assert any(f"{cut} of 16 prompts were cut from the left" in w for w in warnings)


def warnings_of(capsys) -> tuple[list[str], Path]:
    folder = Path(json.loads(capsys.readouterr().out)["folder"])
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [e["warning"] for e in events if "warning" in e], folder


@pytest.mark.parametrize("answers", [("yes", "?!"), ("?!", "...")])
def test_answers_without_a_word_are_counted(tmp_path, runs, capsys, answers):
    """Neurons are traced by the answer's last word: seeds without one are left out, and that is said."""
    task, path = tmp_path / "t.jsonl", tmp_path / "c.yaml"
    task.write_text("\n".join(json.dumps({"question": f"q{i}", "answer": answers[i % 2]}) for i in range(30)))
    path.write_text(yaml.safe_dump({**QUICK, "task": str(task), "locate": {"seeds": 24, "max_length": 64}}))
    with pytest.raises(SystemExit) as stop:
        cli.main(["locate", str(path), "--json"])
    assert stop.value.code == 0
    warnings, folder = warnings_of(capsys)
    some = answers[0] == "yes"
    said = "of 24 seeds have no token with a letter or digit" if some else "no word can be traced"
    assert sum(said in w for w in warnings) == 2  # teacher and student
    assert (folder / "locate" / "neurons.parquet").exists() == some
    assert (folder / "locate" / "sensitivity.parquet").exists()


def test_activations_that_are_not_finite_name_the_layer(failed, checkpoint, tmp_path):
    """Finite weights whose product overflows: noticed where it happens, not in a table of NaN."""
    folder = Path(shutil.copytree(checkpoint("llama", seed=9), tmp_path / "m"))
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] *= 1e30
    weights["model.layers.1.mlp.gate_proj.weight"] *= 1e30
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    same = {"teacher": str(folder), "student": str(folder)}
    off = {"seeds": 2, "max_length": 64, "neurons": "none"}
    sentence, _ = failed(pair=same, locate={**off, "layers": "matched"})
    assert "residual stream after layer 1 of the teacher is NaN or infinite" in sentence


def test_constant_outputs_are_shown_as_missing(tmp_path, runs, capsys):
    folder = copy_of("student", tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.self_attn.k_proj.weight"] *= 0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({**QUICK, **pair("demo:teacher", folder)}))
    with pytest.raises(SystemExit) as stop:
        cli.main(["similarity", str(path), "--json"])
    assert stop.value.code == 0
    warnings, _ = warnings_of(capsys)
    assert any("CKA of k is undefined for 6 of 24 layer pairs" in w for w in warnings)
