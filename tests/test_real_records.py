"""`paraknow run` on real GSM8K and MMLU records as published, with the demo pair, through all stages."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest
import yaml

from paraknow import cli


@pytest.mark.parametrize(("file", "choices"), [("gsm8k/train_2000.jsonl", False), ("mmlu/sample_400.jsonl", True)])
def test_all_stages(benchmark_data, tmp_path, runs, capsys, file, choices):
    path = tmp_path / "c.yaml"
    config = {
        "pair": {"teacher": "demo:teacher", "student": "demo:student"},
        "task": str(benchmark_data / file),
        "method": {"name": "seeking", "rank": 8},
        "baselines": ["gaussian"],
        "controls": ["zero", "noise"],
        "locate": {"seeds": 4, "max_length": 256},
        "tune": {"epochs": 1, "max_length": 256, "micro_batch": 16},
        "evaluate": {"limit": 12, "batch_size": 8},
    }
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", str(path), "--json"])
    assert stop.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    rows = {r["model"]: r for r in printed["rows"]}
    assert list(rows) == ["teacher", "student", "seeking", "gaussian", "zero", "seeking+noise"]
    assert all(r["n"] == 12 and math.isfinite(r["loss"]) for r in rows.values())
    # A model of 0.5 M parameters answers none of these, but tuning must make the answers less surprising.
    assert rows["seeking"]["loss"] < rows["student"]["loss"] == pytest.approx(rows["zero"]["loss"], rel=1e-4)
    assert (rows["seeking"]["bits"] is not None) == choices
    items = pd.read_parquet(runs / printed["run"] / "evaluate" / "items.parquet")
    assert items.candidates.notna().all() == choices
