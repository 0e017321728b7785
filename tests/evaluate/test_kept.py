from __future__ import annotations

import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

from paraknow import data, models
from paraknow.evaluate import harness, kept

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
    return kept.evaluate(models.load(str(folder), dtype=dtype, device="cpu"), suites, batch_size, into)


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
    kept.keep(tmp_path / "a.parquet", pd.DataFrame({"logprob": [-1.0, float("nan")]}))
    assert not list(tmp_path.iterdir())


def test_the_longest_unused_go_first(tmp_path):
    for age, name in enumerate("abc"):
        (tmp_path / f"{name}.parquet").write_bytes(b"x" * 10)
        os.utime(tmp_path / f"{name}.parquet", (1000 - age, 1000 - age))
    kept._tidy(tmp_path, 20)
    assert sorted(p.stem for p in tmp_path.iterdir()) == ["a", "b"]
