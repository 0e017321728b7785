"""The benchmark for GPUs, as it runs where there is none."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from benchmarks import agreeing, gpu, shapes, sized

CPU = torch.device("cpu")


def test_without_a_gpu_everything_is_checked_and_what_was_not_measured_is_named(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--only", "check", "exact attribution", "LaTen step"]) == 0
    out = capsys.readouterr().out
    for what in agreeing.TOLERANCES:
        assert what in out
    assert out.count("exact attribution, 1 seed") >= 4 and "tiny shapes" in out
    assert "Not measured: Llama-2 13B to 7B at true sizes (exact attribution, 1 seed; LaTen" in " ".join(out.split())


def test_a_difference_ends_with_one_and_names_it(capsys, monkeypatch):
    row = {"what": "CKA", "embeddings": "tied", "type": "bfloat16", "difference": 0.5, "tolerance": 0.01}
    monkeypatch.setattr(agreeing, "check", lambda device: [{**row, "held": False}])
    assert gpu.main(["--write", "--only", "check"]) == 1
    assert "CKA (tied, bfloat16)" in capsys.readouterr().err


def test_a_name_that_is_none(capsys):
    assert gpu.main(["--only", "cak"]) == 2
    assert "no such part: cak" in capsys.readouterr().err


def test_no_part_is_begun_without_time_and_a_slow_one_is_broken_off(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--only", "CKA", "--limit-seconds", "0"]) == 0
    assert "CKA, 65,536 tokens (no time left)" in capsys.readouterr().out

    def endless(pair, work, progress):
        while True:
            time.sleep(0.01)
            progress(0, 1)

    pair = shapes.pair("Llama-3 8B to 1B", CPU, tiny=True)
    row = sized.measure(replace(sized.PARTS[0], work=endless), pair, shapes.SMALL_WORK, 0.1)
    assert not row["held"] and "broken off" in row["notes"] and row["seconds"] < 60


@pytest.mark.parametrize("name", shapes.PAIRS)
def test_true_sizes_are_estimated_without_weights(name):
    pair = shapes.pair(name, torch.device("meta"))
    for loaded, wanted in zip(pair, {"2": (13.0, 6.7), "3": (8.0, 1.24)}[name[6]], strict=True):
        assert loaded.checkpoint.parameters / 1e9 == pytest.approx(wanted, rel=0.01)
    for part in sized.PARTS:
        assert sized._weights(pair) < part.estimate(pair, shapes.Work()) < 110 * 2**30, part.name


def test_texts_are_as_long_as_is_said():
    pair, work = shapes.pair("Llama-3 8B to 1B", CPU, tiny=True), shapes.Work(seeds=2, length=40, examples=3)
    task = shapes.task(pair[0].architecture.vocabulary, work)
    from paraknow import data

    found = data.encode_all([*task.train, *task.align], pair[0].tokenizer, 512, "texts").items
    assert [(len(i.ids), i.answer_start) for i in found] == [(40, 30)] * 4
