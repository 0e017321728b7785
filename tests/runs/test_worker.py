from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

from paraknow import config, resources, savepoint
from paraknow.errors import Cancelled, InputError, RunError
from paraknow.runs import queue, store, worker
from tests.test_bad_input import QUICK


def quick(**changes) -> config.RunConfig:
    return config.parse({**QUICK, **changes})


def test_a_run_leaves_the_documented_folder(runs):
    run = store.create(quick(seeds=[0, 1], baselines=["gaussian"]))
    worker.execute(run)
    status = run.status()
    assert status["state"] == "done" and status["stages"] == list(worker.STAGE_NAMES)
    names = {str(p.relative_to(run.folder)) for p in run.folder.rglob("*") if p.is_file()}
    expected = {"config.yaml", "status.json", "events.jsonl", "environment.json", "worker.log", "evaluate/deltas.json"}
    expected |= {f"locate/{n}.parquet" for n in ("sensitivity", "layers", "blocks")} | {"evaluate/items.parquet"}
    expected |= {f"locate/{n}.parquet" for n in ("neurons", "attribution", "promoted", "agreement")}
    expected |= {f"similarity/{n}.parquet" for n in ("cka", "stitching", "weights", "spectra")}
    expected |= {f"adapters/{m}/{s}/adapter_model.safetensors" for m in ("seeking", "gaussian", "zero") for s in (0, 1)}
    assert expected <= names
    columns = {
        "locate/sensitivity": "task model seed layer module sum mean max share",
        "locate/layers": "task model layer by score chosen student_layer",
        "locate/blocks": "module teacher_layer student_layer row col rows cols share",
        "locate/neurons": "task model layer kind neuron score",
        "similarity/cka": "task module teacher_layer student_layer cka null untrained lo hi n",
        "similarity/stitching": "teacher_layer student_layer r2",
        "evaluate/items": "task group doc_id doc_hash model seed prompt target answer correct logprob candidates "
        "candidate_logprobs",
    }
    for table, wanted in columns.items():
        assert set(wanted.split()) <= set(pd.read_parquet(run.path(f"{table}.parquet")).columns)
    sensitivity = pd.read_parquet(run.path("locate/sensitivity.parquet"))
    assert set(sensitivity.model) == {"teacher", "student"} and set(sensitivity.seed) == {-1, 0, 1}
    rows = json.loads(run.path("evaluate/deltas.json").read_text())["rows"]
    assert {r["model"] for r in rows} == {"teacher", "student", "seeking", "gaussian", "zero"}
    environment = json.loads(run.path("environment.json").read_text())
    assert environment["schema_version"] == 1 and len(environment["models"]["teacher"]["sha256"]) == 64
    differences = json.loads(run.path("adapters/reload.json").read_text())["largest_difference"]
    assert len(differences) == 6 and max(differences.values()) <= 1e-4


def test_the_same_seed_gives_the_same_numbers(runs, finished):
    run = store.create(quick())
    worker.execute(run)
    made = (run, store.Run(finished))
    first, second = (json.loads(r.path("evaluate/deltas.json").read_text())["rows"] for r in made)
    assert first == second


def test_cancel_and_resume(runs):
    """Cancelled in every stage in turn, and resumed each time: the same results as a run that was not."""
    config_ = quick(baselines=["gaussian"])
    run, whole = store.create(config_), store.create(config_)
    worker.execute(whole)

    def show(name):
        def report(step: int, total: int, message: str = "", **_: float) -> None:
            if name == stage and step > total / 2:
                run.cancel()

        return report

    for stage in ("locate", "similarity", "align", "tune", "evaluate"):
        with pytest.raises(Cancelled):
            worker.execute(run, show=show)
        assert run.status()["state"] == "cancelled" and run.status()["stage"] == stage
    worker.execute(run)
    assert run.status()["state"] == "done"
    unbroken, resumed = (json.loads(r.path("evaluate/deltas.json").read_text())["rows"] for r in (whole, run))
    assert unbroken == resumed
    assert not list(run.folder.rglob(f"*{savepoint.ENDING}"))
    if stage == "tune":
        losses = [[(e["message"], e["step"], e["loss"]) for e in r.events() if "loss" in e] for r in (whole, run)]
        assert losses[0] == losses[1]  # not a step was made twice
        for file in whole.path("adapters").rglob("*.*"):
            if file.name != "reload.json":
                assert file.read_bytes() == run.path(str(file.relative_to(whole.folder))).read_bytes()
        pd.testing.assert_frame_equal(*(pd.read_parquet(r.path("tune/budgets.parquet")) for r in (whole, run)))


def test_until_stops_early_and_goes_on_later(runs):
    run = store.create(quick())
    worker.execute(run, until="locate")
    assert run.status()["stages"] == ["load", "locate"] and not run.path("align").exists()
    worker.execute(run)
    assert run.path("evaluate/deltas.json").is_file()


def test_a_run_cancelled_in_the_queue_is_not_begun(runs):
    run = store.create(quick())
    run.cancel()
    worker.execute(run, from_queue=True)
    assert run.status()["state"] == "cancelled" and not run.path("environment.json").exists()


def test_resuming_with_other_weights_is_refused(runs, tmp_path):
    folder = Path(shutil.copytree(resources.demo_model("student"), tmp_path / "student"))
    run = store.create(quick(pair={"teacher": "demo:teacher", "student": str(folder)}))
    worker.execute(run, until="locate")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] *= 2
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunError, match="student's weights have changed"):
        worker.execute(run)
    assert run.status()["state"] == "failed"


def test_a_control_that_changes_nothing_is_named(runs):
    """Where the teacher is as large as the student, a random window is the only window."""
    same = {"teacher": "demo:student", "student": "demo:student"}
    run = store.create(quick(pair=same, controls=["zero", "random_window"]))
    worker.execute(run, until="align")
    warnings = [e["warning"] for e in run.events() if "warning" in e]
    assert any("seeking+random_window starts exactly as the method does" in w for w in warnings)


def test_bad_configs_are_not_queued(runs):
    with pytest.raises(InputError):
        queue.submit(quick(task="nothing"))
    assert not runs.exists()
