"""Runs that are broken off in the middle of training go on where they stood and leave the files of unbroken ones."""

from __future__ import annotations

import pandas as pd
import pytest

from paraknow import config, results, savepoint
from paraknow.errors import Cancelled
from paraknow.runs import store, worker
from tests.test_bad_input import QUICK

SMALL = {**QUICK, "similarity": {"parts": []}, "locate": {"seeds": 2, "max_length": 64, "neurons": "none"}}
TRAINED = {
    "method": {"name": "masked_distillation", "rank": 2},
    "baselines": [
        {"name": "block_scales", "of": "distillation", "epochs": 1},
        {"name": "transport", "learn": 4, "heal": 2},
    ],
    "tune": {"epochs": 1, "max_length": 64, "batch_size": 32, "learning_rate": 1e-2},
}


@pytest.fixture(scope="module")
def pair(tiny_pair):
    return {"teacher": tiny_pair[0].checkpoint.spec, "student": tiny_pair[1].checkpoint.spec}


def test_methods_that_train_go_on_where_they_stood(pair, runs):
    """Cancelled again and again, in every kind of training: one, one after another's, one after one's own."""
    made = config.parse({**SMALL, **TRAINED, "pair": pair})
    whole, run, steps, cut = store.create(made), store.create(made), 0, []
    worker.execute(whole, until="align")

    def show(stage):
        def report(step, total, message="", **values):
            nonlocal steps
            steps += bool(values)
            if values and steps % 7 == 0:
                cut.append(message)
                run.cancel()

        return report

    for _ in range(30):
        try:
            worker.execute(run, until="align", show=show)
            break
        except Cancelled:
            continue
    assert set(cut) == {"masked_distillation", "block_scales", "transport"}
    assert not list(run.folder.rglob(f"*{savepoint.ENDING}"))
    assert not [e["warning"] for e in run.events() if "starts over" in e.get("warning", "")]
    told = [dict.fromkeys((e["message"], e["loss"]) for e in r.events() if "loss" in e) for r in (whole, run)]
    assert list(told[0]) == list(told[1])
    pd.testing.assert_frame_equal(*(pd.read_parquet(r.path("align/starts.parquet")) for r in (whole, run)))
    for file in whole.path("align").rglob("*.safetensors"):
        other = run.path(str(file.relative_to(whole.folder)))
        assert results.read_notes(file) == results.read_notes(other)  # with what it cost
        assert file.read_bytes() == other.read_bytes()


def test_a_savepoint_of_other_settings_is_named_in_the_events(pair, runs):
    run = store.create(config.parse({**SMALL, "pair": pair}))

    def show(stage):
        return lambda step, total, message="", **_: run.cancel() if stage == "tune" and step == 1 else None

    kept = run.path("tune", "seeking", f"0{savepoint.ENDING}")
    for rate in ("0.0003", "0.0001"):
        run.path("config.yaml").write_text(run.path("config.yaml").read_text().replace("0.0003", rate))
        with pytest.raises(Cancelled):
            worker.execute(run, show=show, until="tune")
        assert kept.is_file()
    warnings = [e["warning"] for e in run.events() if "warning" in e]
    assert any(w.startswith("tune: seeking, seed 0: tuning starts over: 0.savepoint") for w in warnings), warnings
