"""A run folder as evidence, diagnose.json, the command, and what happens where files are missing or damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from paraknow import cli, config, files, resources
from paraknow.diagnose import RULES
from paraknow.errors import InputError
from paraknow.runs import artifacts, diagnosis, intact, rescore, store, transfer
from paraknow.runs.store import Run

RECORDED = "20261121-200354-seeking-people-6d1d"
ORACLE = "20261121-200831-oracle-people-bc6e"


@pytest.fixture
def run(runs: Path) -> Run:
    """A run of one's own that was done before there was this stage: the recorded one without what it reads."""
    shutil.copytree(resources.assets() / "runs" / RECORDED, runs / "mine")
    made = Run(runs / "mine")
    for name in (diagnosis.FILE, "tune/changes.parquet", "tune/checks.parquet"):
        made.path(*name.split("/")).unlink()
    made.update(stages=[s for s in made.status()["stages"] if s != "diagnose"])
    return made


def severities(run: Run) -> dict[str, str]:
    return {f.rule: f.severity for f in diagnosis.diagnose(run)}


def test_the_recorded_runs_say_what_they_show(run: Run) -> None:
    seeking, oracle = (severities(store.find(name)) for name in (RECORDED, ORACLE))
    assert seeking["gain-above-controls"] == "note" and seeking["only-shown"] == "warning"
    assert seeking["forgetting"] == "warning" and seeking["crossed"] == "note"
    assert oracle["crossed"] == "good" and "blocking" not in oracle.values() and "warning" not in oracle.values()
    old, later = severities(run), ("start-differs", "nothing-moved", "change-size")
    assert all(old[rule] == "not checked" for rule in later)  # made before these were written down
    assert all(seeking[rule] != "not checked" for rule in later)


def test_it_is_written_as_values_and_is_a_file_of_a_bundle(run: Run) -> None:
    found = diagnosis.write(run)
    path = run.path(diagnosis.FILE)
    artifacts.check(path, path.name)
    values = files.read_json(path)
    assert values["schema_version"] == 1 and values["run"] == "mine" and values["headline"]
    assert [f["rule"] for f in values["findings"]] == [f.rule for f in found]
    assert {f["rule"] for f in values["findings"]} == {rule.name for rule in RULES}


def test_what_a_rule_needs_and_cannot_have_is_named(run: Run) -> None:
    run.path("evaluate", "items.parquet").write_bytes(b"PAR1 no more")
    run.path("similarity", "cka.parquet").unlink()
    wrong = pd.read_parquet(run.path("similarity", "weights.parquet")).drop(columns="interference")
    files.write_table(run.path("similarity", "weights.parquet"), wrong)
    found = {f.rule: f for f in diagnosis.diagnose(run)}
    for rule, said in (
        ("not-read-out", "items.parquet is damaged"),
        ("low-cka", "cka.parquet is not there"),
        ("interference", "lacks the columns interference"),
        ("seeds-disagree", "items.parquet is damaged"),
    ):
        assert found[rule].severity == "not checked" and said in found[rule].says, found[rule]
    assert found["forgetting"].severity == "warning"  # what it rests on is whole


def test_values_that_are_no_numbers_are_missing_ones(run: Run) -> None:
    starts = pd.read_parquet(run.path("align", "starts.parquet")).astype({"seed": float})
    starts.loc[0, "seed"] = float("inf")
    files.write_table(run.path("align", "starts.parquet"), starts)
    kept = pd.DataFrame({"student_layer": [0, 1], "teacher_layer": [0.0, float("inf")], "kinship": ["0.5", "near"]})
    files.write_table(run.path("align", "seeking", "0.parquet"), kept)
    found = diagnosis.evidence(run)
    assert found.starts is not None and found.starts.seed.isna().sum() == 1
    assert found.aligned is not None
    assert found.aligned.teacher_layer.isna().tolist() == found.aligned.kinship.isna().tolist() == [False, True]
    assert not [f for f in diagnosis.diagnose(run) if "are damaged" in f.says]


def test_the_layer_of_every_loss_is_written(run: Run) -> None:
    session, candidate = SimpleNamespace(run=run), SimpleNamespace(label="semalign")
    transfer._write_losses(session, candidate, 0, [2.0, 1.0, 3.0], [4, 4, 5])  # type: ignore[arg-type]
    kept = pd.read_parquet(run.path("tune", "semalign", "0.parquet"))
    assert kept.to_dict("list") == {"step": [1, 2, 3], "loss": [2.0, 1.0, 3.0], "layer": [4, 4, 5]}
    transfer._write_losses(session, candidate, 1, [2.0])  # type: ignore[arg-type]
    assert list(pd.read_parquet(run.path("tune", "semalign", "1.parquet"))) == ["step", "loss"]


def test_the_layer_of_every_loss_is_read_where_it_was_written(runs: Path) -> None:
    values = {"pair": {"teacher": "a", "student": "b"}, "task": "demo:people", "method": {"name": "semalign"}}
    run = store.create(config.parse({**values, "controls": ["zero", "noise"]}), runs)
    layers = [0] * 6 + [1] * 6
    table = pd.DataFrame({"step": range(1, 13), "loss": 1.0, "layer": layers})
    files.write_table(run.path("tune", "semalign", "0.parquet"), table)
    found = diagnosis.evidence(run)
    assert found.losses is not None and found.losses.layer.tolist() == layers
    assert found.layerwise is not None and {"semalign", "semalign+noise"} <= {*found.layerwise}
    assert found.settings is not None and found.settings["semalign"]["learning_rate"] == 3e-4  # a default


def test_a_damaged_config_or_no_artifact_at_all_breaks_nothing(run: Run, runs: Path) -> None:
    run.path("config.yaml").write_text("pair: [")
    assert severities(run)["crossed"] == "not checked"
    bare = store.create(config.parse({"pair": {"teacher": "a", "student": "b"}, "task": "demo:people"}), runs)
    found = diagnosis.diagnose(bare)
    assert {f.severity for f in found} == {"note", "fine", "not checked"}  # it waits, and has not warned of anything
    assert [f.rule for f in found if f.severity == "note"] == ["unfinished"]


def test_losses_of_a_run_that_broke_off_come_from_its_events(run: Run) -> None:
    run.path("events.jsonl").unlink()
    for step in range(1, 13):
        run.event(stage="tune", step=step, total=12, message="seeking, seed 0", loss=1.0 + step)
    run.update(state="failed", stage="tune", error="tuning: the loss runs away at step 13 of 20.")
    found = {f.rule: f for f in diagnosis.diagnose(run)}
    assert found["loss"].severity == "blocking" and found["unfinished"].severity == "blocking"
    assert any("tune.learning_rate" in r.changes for r in found["unfinished"].remedies)


def test_rescoring_renews_what_rests_on_the_rows(runs: Path) -> None:
    run = Run(runs / "mine")
    shutil.copytree(Path(__file__).parents[1] / "diagnose" / "ladder" / "clone", run.folder)
    rescore.rescore(run)
    assert not run.path(diagnosis.FILE).exists()  # there was none
    files.write_json(run.path(diagnosis.FILE), {"run": "mine", "findings": []})
    rescore.rescore(run)
    assert len(files.read_json(run.path(diagnosis.FILE))["findings"]) >= len(RULES)


def test_a_damaged_diagnosis_is_made_again(run: Run) -> None:
    run.path(diagnosis.FILE).write_text("{")
    run.update(stages=list(store.STAGE_NAMES))
    finished, removed = intact.mend(run)
    assert removed == [diagnosis.FILE] and finished == list(store.STAGE_NAMES[:-1])


def test_a_run_that_was_done_before_there_was_this_stage_stays_done(run: Run) -> None:
    assert run.status()["state"] == "done" and "diagnose" not in run.status()["stages"]
    assert severities(run)["unfinished"] == "fine"


def test_the_command(run: Run, capsys: pytest.CaptureFixture) -> None:
    def said(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stop:
            cli.main(["diagnose", *arguments])
        assert stop.value.code == 0
        return capsys.readouterr().out

    values = json.loads(said("mine", "--json"))
    assert values["run"] == "mine" and values["findings"][0]["severity"] == "warning"
    text = said("mine")
    assert "WARNING  Gains on shown facts only" in text and "Not checked" in text
    assert "paraknow run --like mine --set tune.learning_rate=0.0003" in text
    assert not run.path(diagnosis.FILE).exists()
    with pytest.raises(SystemExit) as stop:
        cli.main(["diagnose", "nowhere"])
    assert stop.value.code == 2 and len(capsys.readouterr().err.strip().splitlines()) == 1


def test_changes_of_a_config() -> None:
    base = config.parse({"pair": {"teacher": "a", "student": "b"}, "task": "demo:people"})
    changed = config.changed(base, {"tune.epochs": 7, "seeds": [0, 1], "method": {"name": "transport"}})
    assert (changed.tune.epochs, changed.seeds, changed.method.name) == (7, (0, 1), "transport")
    with pytest.raises(InputError, match="epochs"):
        config.changed(base, {"tune.epochs": 0})
    with pytest.raises(InputError, match="nowhere"):
        config.changed(base, {"nowhere.at_all": 0})
