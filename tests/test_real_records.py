"""`paraknow run` on real GSM8K and MMLU records as published, with the demo pair, through all stages."""

from __future__ import annotations

import gzip
import json
import math

import pandas as pd
import pytest
import yaml

from paraknow import cli

SOME = 60  # records tuned on and split; all of them would take minutes


@pytest.mark.parametrize(("file", "choices"), [("gsm8k/train_2000.jsonl", False), ("mmlu/sample_400.jsonl", True)])
def test_all_stages(benchmark_data, tmp_path, runs, capsys, file, choices):
    path, records = tmp_path / "c.yaml", tmp_path / "records.jsonl"
    lines = (benchmark_data / file).read_text(encoding="utf-8").splitlines()
    records.write_text("\n".join(lines[:SOME]), encoding="utf-8")
    config = {
        "pair": {"teacher": "demo:teacher", "student": "demo:student"},
        "task": str(records),
        "method": {"name": "seeking", "rank": 8},
        "baselines": ["gaussian"],
        "controls": ["zero", "noise"],
        "locate": {"seeds": 2, "max_length": 192},
        "similarity": {"examples": 16, "tokens": 2, "max_length": 192, "permutations": 4, "resamples": 100},
        "tune": {"epochs": 1, "batch_size": 8, "max_length": 192, "micro_batch": 8},
        "evaluate": {"limit": 6, "batch_size": 8},
    }
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", str(path), "--json"])
    assert stop.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    rows = {r["model"]: r for r in printed["rows"]}
    assert list(rows) == ["teacher", "student", "seeking", "gaussian", "zero", "seeking+noise"]
    assert all(r["n"] == 6 and math.isfinite(r["loss"]) for r in rows.values())
    # A model of 0.5 M parameters answers none of these, but tuning must make the answers less surprising.
    assert rows["seeking"]["loss"] < rows["student"]["loss"] == pytest.approx(rows["zero"]["loss"], rel=1e-4)
    assert (rows["seeking"]["bits"] is not None) == choices
    items = pd.read_parquet(runs / printed["run"] / "evaluate" / "items.parquet")
    assert items.candidates.notna().all() == choices


def humaneval(folder, out):
    """HumanEval's problems as text to be continued: prompt and canonical solution, as published."""
    with gzip.open(folder / "humaneval" / "HumanEval.jsonl.gz", "rt") as stream:
        records = [json.loads(line) for line in stream]
    lines = [json.dumps({"prompt": r["prompt"], "completion": r["canonical_solution"]}) for r in records]
    (out / "humaneval.jsonl").write_text("\n".join(lines))
    return out / "humaneval.jsonl"


def test_locate_and_compare_on_two_benchmarks_at_once(benchmark_data, tmp_path, runs, capsys):
    """GSM8K and HumanEval text: sensitivity, neurons and CKA of both, and how far the two tasks agree."""
    path = tmp_path / "c.yaml"
    config = {
        "pair": {"teacher": "demo:teacher", "student": "demo:student"},
        "task": [str(benchmark_data / "gsm8k" / "train_2000.jsonl"), str(humaneval(benchmark_data, tmp_path))],
        "method": {"name": "seeking", "rank": 8},
        "locate": {"seeds": 4, "max_length": 192},
        "similarity": {"examples": 32, "tokens": 3, "max_length": 192, "permutations": 8, "resamples": 100},
    }
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit) as stop:
        cli.main(["similarity", str(path), "--json"])
    assert stop.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert {r["task"] for r in printed["cka"]} == set(config["task"]) and len(printed["cka"]) == 20
    assert all(0 < r["cka"] <= 1.01 and abs(r["null"]) < 0.05 and r["n"] > 60 for r in printed["cka"])
    folder = runs / printed["run"]
    agreement = pd.read_parquet(folder / "locate" / "agreement.parquet")
    assert {"split_half", "tasks", "first_order"} == set(agreement.about)
    neurons = pd.read_parquet(folder / "locate" / "neurons.parquet")
    assert set(neurons.kind) == {"ffn", "attention", "value"} and neurons.score.map(math.isfinite).all()
    promoted = pd.read_parquet(folder / "locate" / "promoted.parquet")
    assert promoted.tokens.map(len).eq(8).all()
    tasks = pd.read_parquet(folder / "similarity" / "tasks.parquet")
    assert tasks.rank_correlation.between(-1, 1).all() and len(tasks) == 10
