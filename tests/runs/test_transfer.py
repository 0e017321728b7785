"""The stages align and tune with every kind of result: adapters, checkpoints, a decoder."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from safetensors.torch import load_file

from paraknow import cli, config, files, inject
from paraknow.errors import RunError
from paraknow.runs import diagnosis, store, worker

SMALL = {
    "task": "demo:people",
    "method": {"name": "transport", "attention": True},
    "baselines": [
        {"name": "gaussian", "rank": 4},
        "sft",
        "logit_fusion",
        {"name": "laten", "steps": 2},
        {"name": "transport", "label": "widened", "mode": "widen", "neurons": 4},
    ],
    "controls": ["zero", "noise", "shuffled_teacher", "self"],
    "locate": {"seeds": 2, "max_length": 64},
    "similarity": {"parts": []},
    "tune": {"epochs": 1, "max_length": 64, "learning_rate": 1e-2},
    "evaluate": {"limit": 2},
}
told: list[tuple[str, int, int]] = []  # stage, step, total, as the last run reported them
LABELS = ["transport", "gaussian", "sft", "logit_fusion", "laten", "widened", "zero"]
LABELS += ["transport+noise", "transport+shuffled_teacher", "transport+self"]


@pytest.fixture(scope="module")
def pair(tiny_pair):
    return {"teacher": tiny_pair[0].checkpoint.spec, "student": tiny_pair[1].checkpoint.spec}


@pytest.fixture(scope="module")
def done(pair, tmp_path_factory):
    """The same run twice, in folders of its own."""
    made = []
    for _ in range(2):
        run = store.create(config.parse({**SMALL, "pair": pair}), tmp_path_factory.mktemp("runs"), state="running")
        told.clear()
        worker.execute(run, show=lambda stage: lambda step, total, *_, **__: told.append((stage, step, total)))
        made.append(run)
    return made


def test_steps_of_every_stage_only_grow_and_end_at_the_total(done):
    for stage in worker.STAGE_NAMES:
        steps = [(step, total) for name, step, total in told if name == stage]
        assert steps or stage == "similarity"  # which was asked for nothing
        assert steps == sorted(steps) and {total for _, total in steps} == {step for step, _ in steps[-1:]}, stage


def test_every_model_is_made_reloaded_and_measured(done):
    run = done[0]
    items = pd.read_parquet(run.path("evaluate", "items.parquet"))
    assert list(dict.fromkeys(items.model)) == ["teacher", "student", *LABELS]
    reloaded = files.read_json(run.path("adapters", "reload.json"))["largest_difference"]
    assert set(reloaded) == {f"{label}/0" for label in LABELS if label != "logit_fusion"}
    assert run.path("adapters", "transport", "0", "config.json").is_file()
    assert run.path("adapters", "logit_fusion", "0", "decoder.json").is_file()
    assert run.path("adapters", "laten", "0", "adapter_config.json").is_file()


def test_two_runs_with_one_seed_are_equal(done):
    one, other = (pd.read_parquet(run.path("evaluate", "items.parquet")) for run in done)
    pd.testing.assert_frame_equal(one, other)
    for label in LABELS:
        if label != "logit_fusion":
            name = "model.safetensors" if label in ("transport", "sft", "widened") else "adapter_model.safetensors"
            name = name if done[0].path("adapters", label, "0", name).is_file() else "model.safetensors"
            first, second = (run.path("adapters", label, "0", name).read_bytes() for run in done)
            assert first == second, label


def test_budgets_say_what_each_was_given(done):
    rows = pd.read_parquet(done[0].path("tune", "budgets.parquet")).set_index("model")
    assert list(rows.index) == LABELS
    # transport learned from known text alone, so whoever was tuned on the task got more steps
    assert rows.loc["transport", "steps"] == 0 and "steps" in rows.loc["gaussian", "more"]
    assert rows.loc["sft", "trainable"] > rows.loc["gaussian", "trainable"] > 0
    assert rows.loc["zero", "student_flops"] == 0 and rows.loc["transport", "teacher_flops"] > 0
    assert list(rows.loc["transport", "more"]) == []
    assert rows.loc["widened", "added"] > 0


def test_what_was_changed_is_measured_on_what_was_saved(done, pair):
    run, base = done[0], {}
    for path in (Path(pair["student"])).glob("*.safetensors"):
        base |= load_file(path)
    rows = pd.read_parquet(run.path("tune", "changes.parquet"))
    saved = load_file(run.path("adapters", "gaussian", "0", "adapter_model.safetensors"))
    for row in rows[rows.model == "gaussian"].itertuples():
        part = "mlp" if row.module in ("gate", "up", "down") else "self_attn"
        name = f"model.layers.{row.layer}.{part}.{row.module}_proj"
        a, b = (saved[f"base_model.model.{name}.lora_{n}.weight"].double() for n in "AB")
        assert row.norm == pytest.approx(float((b @ a).norm()), rel=1e-6)
        assert row.weight_norm == pytest.approx(float(base[f"{name}.weight"].double().norm()), rel=1e-5)
    assert rows[rows.model == "gaussian"].norm.min() > 0 and rows[rows.model == "zero"].norm.max() == 0
    assert rows[rows.model == "widened"].norm.isna().all()  # other shapes
    checks = pd.read_parquet(run.path("tune", "checks.parquet")).set_index("model")
    assert list(checks.index) == LABELS
    assert checks.loc["gaussian", "tuned"] and checks.loc["gaussian", "start_difference"] <= 1e-4
    assert checks.loc["zero", "moved"] == 0 < checks.loc["gaussian", "moved"]
    assert checks.moved.isna().sum() == 1  # the decoder changes no weights


def test_the_last_stage_writes_findings_of_a_run_that_has_ended(done):
    found = files.read_json(done[0].path("diagnose.json"))["findings"]
    severities = {f["rule"]: f["severity"] for f in found}
    assert severities["unfinished"] == severities["start-differs"] == severities["reload"] == "fine"
    assert severities["nothing-moved"] == "fine"


def test_a_start_that_differs_stops_the_run_and_is_written_down(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(inject, "TOLERANCE", dict.fromkeys(inject.TOLERANCE, -1.0))
    values = {**SMALL, "pair": pair, "method": {"name": "gaussian", "rank": 2}, "baselines": [], "controls": ["zero"]}
    run = store.create(config.parse(values), tmp_path, state="running")
    with pytest.raises(RunError, match="does not start at the student"):
        worker.execute(run)
    found = {f.rule: f for f in diagnosis.diagnose(run)}
    assert found["start-differs"].severity == found["unfinished"].severity == "blocking"


def test_self_transport_loses_nothing(done):
    items = pd.read_parquet(done[0].path("evaluate", "items.parquet"))
    both = items[items.model.isin(["student", "transport+self"])].pivot(
        index=["task", "doc_id"], columns="model", values="logprob"
    )
    assert (both["student"] - both["transport+self"]).abs().max() < 1e-3


def test_checkpoints_export_and_decoders_do_not(done, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PARAKNOW_RUNS", str(done[0].folder.parent))
    out = tmp_path / "merged"
    with pytest.raises(SystemExit) as stop:
        cli.main(["export", done[0].id, "--merged", str(out)])
    assert not stop.value.code and json.loads((out / "config.json").read_text())["model_type"] == "llama"
    with pytest.raises(SystemExit) as stop:
        cli.main(["export", done[0].id, "--merged", str(tmp_path / "no"), "--model", "logit_fusion"])
    assert stop.value.code == 2 and "cannot be exported" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"name": "laten", "rate": 0}, "greater than 0"),
        ({"name": "laten", "rate": 1.5}, "less than or equal to 1"),
        ({"name": "transport", "mode": "replace", "neurons": 99}, "99 is more than the"),
        ({"name": "transport", "maps": "identity"}, "identity needs models of one width"),
        ({"name": "transport", "label": "teacher"}, "name of a model of the pair"),
    ],
)
def test_settings_that_cannot_work_are_refused(pair, method, words, runs, tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "pair": pair, "method": method, "baselines": [], "controls": ["zero"]}))
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", str(path)])
    assert stop.value.code == 2 and words in capsys.readouterr().err
    assert not runs.exists()


@pytest.mark.parametrize("name", ["distillation", "masked_distillation", "logit_fusion", "semalign"])
def test_other_vocabularies_are_refused_with_what_can_be_used(name, checkpoint, tmp_path, runs, capsys):
    other = checkpoint("llama", vocab_size=600)
    student = checkpoint("llama", seed=1)
    method = {"name": name} if name == "logit_fusion" else {"name": name, "rank": 4}
    path = tmp_path / "config.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                **SMALL,
                "pair": {"teacher": str(other), "student": str(student)},
                "method": method,
                "baselines": [],
                "controls": ["zero"],
            }
        )
    )
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", str(path)])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and name in said and "use" in said and len(said.strip().splitlines()) == 1
