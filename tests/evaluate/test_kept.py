from __future__ import annotations

import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

from paraknow import config, data, models
from paraknow.evaluate import benchmarks, harness, kept, public
from tests.evaluate import public_records

SUITES = {name: data.load_task(name).test[:4] for name in ("demo:people", "demo:sum")}


@pytest.fixture
def own(checkpoint, tmp_path) -> Path:
    """A checkpoint that a test may damage."""
    return Path(shutil.copytree(checkpoint("llama", seed=8), tmp_path / "model"))


@pytest.fixture
def asked(monkeypatch) -> list[set[str]]:
    """The suites that were really measured, call by call."""
    calls, real = [], harness.evaluate
    monkeypatch.setattr(
        harness, "evaluate", lambda loaded, suites, *rest: calls.append(set(suites)) or real(loaded, suites, *rest)
    )
    return calls


def measure(folder: Path, into: Path, suites=SUITES, batch_size: int = 4, dtype: str = "float32") -> pd.DataFrame:
    return kept.measure(models.load(str(folder), dtype=dtype, device="cpu"), suites, (), batch_size, into)


def test_what_is_kept_is_what_was_measured(own, tmp_path, asked):
    plain = harness.evaluate(models.load(str(own), device="cpu"), SUITES, 4)
    asked.clear()
    for _ in range(2):
        found = measure(own, tmp_path / "kept")
        pd.testing.assert_frame_equal(
            found.drop(columns=["candidates", "candidate_logprobs"]),
            plain.drop(columns=["candidates", "candidate_logprobs"]),
        )
        for name in ("candidates", "candidate_logprobs"):
            assert [None if x is None else list(x) for x in found[name]] == [
                None if x is None else list(x) for x in plain[name]
            ]
    assert asked == [set(SUITES)]


def test_only_what_is_not_there_is_measured(own, tmp_path, asked):
    measure(own, tmp_path, {"demo:sum": SUITES["demo:sum"]})
    found = measure(own, tmp_path, dict(reversed(SUITES.items())))
    assert asked == [{"demo:sum"}, {"demo:people"}]
    assert list(dict.fromkeys(found.task)) == ["demo:sum", "demo:people"]


def weights(folder: Path) -> None:
    """One byte in the middle, with the times put back."""
    file = folder / "model.safetensors"
    stat, content = file.stat(), bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    with file.open("r+b") as stream:  # in place: the same inode
        stream.write(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def tokenizer(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(file.read_text() + " ")


@pytest.mark.parametrize("change", [weights, tokenizer])
def test_a_changed_byte_is_noticed(own, tmp_path, asked, change):
    measure(own, tmp_path / "kept")
    change(own)
    measure(own, tmp_path / "kept")
    assert len(asked) == 2


OTHERS = {"demo:people": SUITES["demo:people"][:3], "demo:sum": SUITES["demo:sum"][::-1]}


@pytest.mark.parametrize("change", [{"batch_size": 5}, {"dtype": "bfloat16"}, {"suites": OTHERS}])
def test_another_question_is_another_measurement(own, tmp_path, asked, change):
    measure(own, tmp_path / "kept")
    measure(own, tmp_path / "kept", **change)
    assert asked[1] == set(SUITES)


def test_a_model_that_no_longer_lies_there_is_measured_and_not_kept(own, tmp_path, asked):
    """What is in memory must not be filed under what was put in its place."""
    loaded = models.load(str(own), device="cpu")
    tokenizer(own)
    for _ in range(2):
        kept.measure(loaded, SUITES, (), 4, tmp_path / "kept")
    assert len(asked) == 2 and not (tmp_path / "kept").exists()


@pytest.mark.parametrize(("note", "files"), [("timeout: after 10 s", 0), ("failed: assert 1 == 2", 1), (None, 1)])
def test_programs_that_ran_out_of_time_are_not_kept(tmp_path, note, files):
    frame = pd.DataFrame({"logprob": [-1.0], "raw": None, "note": [note], "candidate_logprobs": None})
    kept.keep(tmp_path / "a.parquet", frame)
    assert len(list(tmp_path.iterdir())) == files


def test_a_full_disk_loses_no_measurement(own, tmp_path, asked, monkeypatch):
    monkeypatch.setattr("paraknow.files.write_table", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    assert len(measure(own, tmp_path / "kept")) == 8


def test_other_versions_measure_again(own, tmp_path, asked, monkeypatch):
    measure(own, tmp_path / "kept")
    monkeypatch.setattr(kept, "version", lambda name: "0")
    measure(own, tmp_path / "kept")
    assert len(asked) == 2


@pytest.mark.parametrize("content", [b"", b"PAR1 and nothing else"])
def test_a_damaged_file_is_measured_again(own, tmp_path, asked, content):
    first = measure(own, tmp_path / "kept")
    for file in (tmp_path / "kept").glob("*.parquet"):
        file.write_bytes(content)
    assert list(measure(own, tmp_path / "kept").logprob) == list(first.logprob)
    measure(own, tmp_path / "kept")
    assert len(asked) == 2


def test_what_is_not_finite_is_not_kept(tmp_path):
    kept.keep(
        tmp_path / "a.parquet",
        pd.DataFrame({"logprob": [-1.0, float("nan")], "raw": None, "note": None, "candidate_logprobs": None}),
    )
    assert not list(tmp_path.iterdir())


def test_the_longest_unused_go_first(tmp_path):
    for age, name in enumerate("abc"):
        (tmp_path / f"{name}.parquet").write_bytes(b"x" * 10)
        os.utime(tmp_path / f"{name}.parquet", (1000 - age, 1000 - age))
    kept._tidy(tmp_path, 20)
    assert sorted(p.stem for p in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("change", ["records", "shots"])
def test_benchmarks_are_kept_with_their_records(own, tmp_path, monkeypatch, change):
    calls, real = [], public.evaluate
    monkeypatch.setattr(public, "evaluate", lambda loaded, plans, *rest: calls.append(1) or real(loaded, plans, *rest))
    loaded, file = models.load(str(own), device="cpu"), tmp_path / "m.jsonl"

    def measured(count: int, shots: int = 0) -> pd.DataFrame:
        named = {"name": "mmlu", "file": public_records.write(file, public_records.mmlu(count)), "shots": shots}
        plans = benchmarks.plans(config.Evaluate(suites=(), benchmarks=[named], limit=2))
        return kept.measure(loaded, {}, plans, 4, tmp_path / "kept")

    first, second = measured(4), measured(4)
    assert len(calls) == 1 and len(first) == 4
    assert list(first.logprob) == list(second.logprob) and list(first.part) == list(second.part)
    measured(5) if change == "records" else measured(4, shots=1)
    assert len(calls) == 2
