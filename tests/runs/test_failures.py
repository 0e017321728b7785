"""Memory that runs out on the way: named, let go of, and the next run goes on."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from paraknow import config, devices
from paraknow.checks import prepare
from paraknow.errors import ResourceError, RunError
from paraknow.memory import LIBRARIES
from paraknow.runs import failures, stages, store, worker
from tests.test_bad_input import QUICK

ON_A_GPU = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.25 GiB is "
    "free. Process 7 has 77.80 GiB memory in use."
)


def test_the_run_fails_by_name_and_the_next_one_is_done(runs, monkeypatch):
    held, warm = [], {}

    def locate(session, progress):
        mine = torch.zeros(1000)
        held.extend(weakref.ref(x) for x in (mine, session.models["teacher"].model))
        torch.empty(2**58)  # the allocator's own refusal

    first, second = (store.create(config.parse({**QUICK, "seed": seed})) for seed in (0, 1))
    with monkeypatch.context() as broken:
        broken.setitem(stages.STAGES, "locate", locate)
        with pytest.raises(RunError, match="out of memory in the locate stage"):
            worker.execute(first, warm=warm)
    status = first.status()
    assert status["state"] == "failed" and status["stage"] == "locate" and status["stages"] == ["load"]
    sentence = status["error"]
    assert "1073741824.0 GiB more were asked for" in sentence and " were free; " in sentence
    assert "a run with --set " in sentence and " there." in sentence and "\n" not in sentence
    gc.collect()
    assert len(held) == 2 and not any(ref() is not None for ref in held) and not warm
    worker.execute(second, until="load", warm=warm)
    assert second.status()["state"] == "done" and warm
    worker.execute(first, until="locate")  # resumed
    assert first.status()["state"] == "done" and first.path("locate", "blocks.parquet").is_file()


def test_what_a_gpu_says_is_passed_on(runs):
    run = store.create(config.parse(QUICK))
    run.update(stage="evaluate")
    said = failures.explain(torch.OutOfMemoryError(ON_A_GPU), run)
    assert isinstance(said, RunError) and str(said).startswith("out of memory in the evaluate stage on cpu: 2.5 GiB ")
    assert "2.5 GiB more were asked for, 1.2 GiB were free; a run with --set evaluate.batch_size=" in str(said)


def test_where_the_runs_models_are_gone_the_sentence_stays(runs, tmp_path):
    run = store.create(config.parse({**QUICK, "pair": {"teacher": str(tmp_path / "gone"), "student": "demo:student"}}))
    said = str(failures.explain(MemoryError(), run))
    assert said == "out of memory; a smaller dtype or pair needs less."


def test_what_is_no_lack_of_memory():
    assert not failures.out_of_memory(RuntimeError("shapes do not fit"))
    assert failures.out_of_memory(MemoryError()) and failures.out_of_memory(torch.OutOfMemoryError("x"))


def test_a_pair_in_memory_needs_no_room_twice(runs, monkeypatch):
    first, second, third = (store.create(config.parse({**QUICK, "seed": seed})) for seed in (0, 1, 2))
    warm: dict = {}
    worker.execute(first, until="load", warm=warm)
    parts = prepare(first.config())
    # libraries are in memory in any case, so what is free need not hold them
    room = max(parts.memory.values()) - LIBRARIES["cpu"] - parts.parts["load"].weights // 2
    monkeypatch.setattr(devices, "free_bytes", lambda device: ("cpu", room))
    worker.execute(second, until="load", warm=warm)
    assert second.status()["state"] == "done" and second.status()["stages"] == ["load"]
    with pytest.raises(ResourceError, match="memory: the"):
        worker.execute(third, until="load", warm={})
