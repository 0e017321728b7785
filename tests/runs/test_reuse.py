from __future__ import annotations

from paraknow import config as configs
from paraknow.runs.reuse import data_hashes
from tests.evaluate import public_records


def test_data_are_tasks_and_what_benchmarks_ask(tmp_path):
    """A run with benchmarks must find itself again, and must not where their records have changed."""
    file = public_records.write(tmp_path / "m.jsonl", public_records.mmlu(2))
    named = {"evaluate": {"benchmarks": [{"name": "mmlu", "file": file}]}}
    config = configs.parse({"pair": {"teacher": "demo:teacher", "student": "demo:student"}, "task": "demo:sum"} | named)
    first = data_hashes(config)
    assert set(first) == {"demo:sum", "benchmark mmlu"} and data_hashes(config) == first
    public_records.write(tmp_path / "m.jsonl", public_records.mmlu(3))
    assert data_hashes(config) != first
