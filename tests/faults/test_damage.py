"""Files that were damaged after they were written: named, made again, and the same results in the end."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest

from benchmarks.faults import outcome, small, unreadable
from paraknow import files
from paraknow.errors import InputError, RunError
from paraknow.runs import intact, store, worker

DAMAGED = (
    "locate/blocks.safetensors",
    "similarity/spectra.parquet",
    "align/seeking+noise/0.sizes.parquet",
    "tune/seeking/0.logits.safetensors",
    "evaluate/deltas.json",
)


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_what_was_damaged_is_made_again(runs):
    run = store.create(small())
    worker.execute(run)
    expected = outcome(run)
    for name in DAMAGED:
        cut(run.path(*name.split("/")))
    worker.execute(run)
    assert run.status()["state"] == "done" and outcome(run) == expected and not unreadable(run)
    said = [e["warning"] for e in run.events() if "could not be opened" in e.get("warning", "")]
    assert [text.split()[0] for text in said] == sorted(
        DAMAGED, key=lambda n: list(intact.MADE_BY).index(n.split("/")[0])
    )

    cut(run.path("environment.json"))
    with pytest.raises(RunError, match="environment.json cannot be read"):
        worker.execute(run)
    cut(run.path("config.yaml"))
    with pytest.raises(InputError, match="config.yaml"):
        worker.execute(run)
    assert run.status()["state"] == "failed"


def test_stages_count_up_to_the_first_that_lost_a_file(runs):
    run = store.create(small())
    run.update(stages=["load", "locate", "similarity", "align", "tune"])
    for name in ("locate/a.parquet", "align/seeking/0.sizes.parquet", "align/seeking/1.sizes.parquet"):
        files.write_table(run.path(*name.split("/")), pd.DataFrame({"a": [1]}))
    assert intact.mend(run) == (["load", "locate", "similarity", "align", "tune"], [])
    for seed in ("0", "1"):
        run.path("align", "seeking", f"{seed}.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    cut(run.path("align", "seeking", "0.sizes.parquet"))
    assert intact.mend(run) == (["load", "locate", "similarity"], ["align/seeking/0.sizes.parquet"])
    assert sorted(p.name for p in run.path("align", "seeking").iterdir()) == ["1.safetensors", "1.sizes.parquet"]
    run.path("adapters", "seeking", "1").mkdir(parents=True)
    run.path("adapters", "seeking", "1", "paraknow.json").write_text("{")
    assert intact.mend(run)[1] == ["adapters/seeking/1/paraknow.json"]
    assert not run.path("adapters", "seeking", "1").exists()


def test_a_folder_deleted_on_the_way_is_said(runs):
    run = store.create(small(similarity={"parts": []}))

    def show(stage: str):
        if stage == "align":
            shutil.rmtree(run.folder)
        return lambda *_, **__: None

    with pytest.raises(RunError, match="its folder was deleted"):
        worker.execute(run, show=show)
