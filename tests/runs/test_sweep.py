"""Sweeps: what a file may hold, going on after every kind of end, the table, and stages taken over between points."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import yaml
from filelock import FileLock

from paraknow import cli, cli_sweep, config, files
from paraknow.errors import Cancelled, InputError, RunError
from paraknow.runs import reuse, store, sweep, sweepfile, worker
from paraknow.runs.store import Run
from tests.test_bad_input import QUICK

CHEAP = {**QUICK, "similarity": {"parts": []}, "locate": {"seeds": 2, "max_length": 64, "neurons": "none"}}
RANKS = {"name": "ranks", "base": QUICK, "grid": {"method.rank": [2, 4]}}
ROW = {
    **dict.fromkeys(sweep.KEPT),
    **{"suite": "demo:people", "group": "all", "model": "seeking", "n": 3, "accuracy": 0.5, "ci": [0.1, 0.9]},
    **{"delta": 0.25, "delta_ci": [0.0, 0.5], "claim": True},
}


class Fake:
    """Carries out runs without models: writes a result, or fails where `broken` says."""

    def __init__(self, broken=()):
        self.broken, self.calls = dict(broken), []

    def __call__(self, run: Run, warm: dict) -> None:
        rank = run.config().method.settings().get("rank")
        self.calls.append(rank)
        if rank in self.broken:
            error = self.broken[rank]
            run.update(state="cancelled" if isinstance(error, Cancelled) else "failed", error=str(error))
            raise error
        rows = [{**ROW, "model": m, "share": 0.5 if m == "teacher" else None} for m in ("teacher", "seeking")]
        files.write_json(run.path("evaluate", "deltas.json"), {"run": run.id, "rows": rows})
        run.update(state="done", stages=list(worker.STAGE_NAMES))


def own() -> list[Run]:
    return [r for r in store.all_runs() if not r.recorded]


# -- files -----------------------------------------------------------------------------------------------


def test_points_are_all_combinations_then_the_list(tmp_path):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({**QUICK, "method": "seeking"}))
    file = tmp_path / "my sweep.yaml"
    values = {
        "base": "base.yaml",
        "grid": {"method.rank": [2, 4], "locate.structure": ["window", "rows_columns"]},
        "list": [{"tune.epochs": 3}, {"method": {"name": "laten", "steps": 1}, "controls": ["zero", "noise"]}],
    }
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    plan = sweepfile.read(file)
    assert plan.name == "my-sweep" and [p.number for p in plan.points] == [1, 2, 3, 4, 5, 6]
    made = [(p.config.method.settings().get("rank"), p.config.locate.structure) for p in plan.points[:4]]
    assert made == [(r, s) for r in (2, 4) for s in ("window", "rows_columns")]
    assert plan.points[4].config.tune.epochs == 3 and plan.points[5].config.method.name == "laten"
    assert plan.points[0].config.name == "my-sweep: method.rank=2, locate.structure=window"
    assert len({p.digest for p in plan.points}) == 6
    assert sweepfile.read({**values, "name": "other", "base": str(tmp_path / "base.yaml")}).points[0].digest == (
        plan.points[0].digest
    ), "a title is no part of what a run is"


def test_a_recipe_is_a_base():
    plan = sweepfile.read(
        {"name": "s", "base": "recipe:llama2-mmlu-seeking", "grid": {"locate.layers": ["first", "last"]}}
    )
    assert plan.points[1].config.pair.student == "meta-llama/Llama-2-7b-hf"
    assert plan.points[1].config.locate.layers == "last" and plan.points[1].config.locate.neurons == "none"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"grids": {}}, "unknown key 'grids'; did you mean 'grid'"),
        ({"grid": {}}, "grid or list must name at least one setting"),
        ({"list": [{}]}, "must name at least one setting of every point"),
        ({"grid": {"method.rank": []}}, "grid.method.rank lists no values"),
        ({"grid": {"method": {"rank": [2, 4]}}}, "'grid.method': input should be a valid list"),
        ({"grid": {"method.rank": list(range(1, 1102))}}, "1101 points are more than 1000"),
        ({"grid": {"seed": [0, 1]}}, "point 2: seed is 1 and 0 in point 1; every point reads the same data"),
        ({"grid": {"task": ["demo:people", "demo:sum"]}}, "point 2: task is"),
        ({"grid": {"seeds": [[0], [0, 1]]}}, "point 2: seeds is"),
        ({"grid": {"evaluate.limit": [2, 3]}}, "point 2: evaluate.limit is 3 and 2"),
        ({"list": [{"evaluate": {"suites": ["demo:sum"], "limit": 2}}]}, "evaluate.suites is"),
        ({"list": [{"method.rank": 4}]}, "points 2 and 3 are the same"),
        ({"list": [{"name": "x"}]}, "'name' is a run's title"),
        ({"list": [{"task.x": 1}]}, "'task.x': task holds no settings"),
        ({"list": [{"locate.seed": 3}]}, "point 3: unknown key 'locate.seed'; did you mean 'seeds'"),
        ({"base": "nowhere.yaml"}, "nowhere.yaml: cannot be read"),
        ({"base": "recipe:nothing"}, "there is no recipe 'nothing'"),
        ({"name": None}, "name is missing"),
        ({"name": "../x"}, "'name'"),
    ],
)
def test_bad_files_are_refused_in_one_sentence(changes, said, runs):
    with pytest.raises(InputError) as refused:
        sweep.run({**RANKS, **changes}, execute=Fake())
    assert said in str(refused.value) and str(refused.value).count("\n") == 0 and not runs.exists()


def test_every_point_is_checked_before_the_first_one_runs(runs):
    fake = Fake()
    with pytest.raises(InputError, match=r"point 2 \(method.rank=4000\): method.rank: 4000 is above"):
        sweep.run({**RANKS, "grid": {"method.rank": [2, 4000]}}, execute=fake)
    assert not fake.calls and not runs.exists()


# -- going on ----------------------------------------------------------------------------------------------


def test_a_second_call_repeats_nothing(runs):
    fake = Fake()
    folder = sweep.run(RANKS, execute=fake)
    assert folder == runs / "sweeps" / "ranks" and fake.calls == [2, 4] and len(own()) == 2
    before = [r.id for r in own()]
    sweep.run(RANKS, execute=fake)
    sweep.run("ranks", execute=fake, resume=True)
    assert fake.calls == [2, 4] and [r.id for r in own()] == before


def test_a_failed_point_is_kept_and_tried_again(runs):
    notes = []
    folder = sweep.run(
        {**RANKS, "grid": {"method.rank": [2, 3, 4]}}, None, Fake({3: RunError("it broke.")}), notes.append
    )
    table = sweep.table(folder)
    assert list(table.drop_duplicates("point").state) == ["done", "failed", "done"]
    failed = table[table.point == 2].iloc[0]
    assert failed.error == "it broke." and failed["method.rank"] == 3 and failed.run in {r.id for r in own()}
    assert pd.isna(failed.accuracy) and sweep.unfinished(folder) == [2]
    assert any("point 2 failed: it broke." in n for n in notes)
    fake = Fake()
    sweep.run("ranks", execute=fake, resume=True)
    assert fake.calls == [3] and not sweep.unfinished(folder) and len(own()) == 3


def test_cancelling_stops_the_sweep_and_another_call_goes_on(runs):
    wide = {**RANKS, "grid": {"method.rank": [2, 3, 4]}}
    with pytest.raises(Cancelled):
        sweep.run(wide, execute=Fake({3: Cancelled("stop")}))
    folder = runs / "sweeps" / "ranks"
    states = sweep.table(folder).drop_duplicates("point").state
    assert list(states) == ["done", "cancelled", "waiting"]
    assert list(pd.read_parquet(folder / "table.parquet").drop_duplicates("point").state) == list(states)
    fake = Fake()
    sweep.run(wide, execute=fake)
    assert fake.calls == [3, 4] and len(own()) == 3


def test_only_what_changed_is_run_anew(runs):
    fake = Fake()
    sweep.run(RANKS, execute=fake)
    changed = {**RANKS, "base": {**QUICK, "tune": {"epochs": 2, "max_length": 64}}}
    folder = sweep.run({**changed, "grid": {"method.rank": [2]}}, execute=fake)
    assert fake.calls == [2, 4, 2] and len(sweep.table(folder).point.unique()) == 1
    sweep.run({**RANKS, "grid": {"method.rank": [4, 8]}}, execute=fake)
    assert fake.calls == [2, 4, 2, 8], "a point that comes back finds its run"
    store.delete(next(r for r in own() if r.config().method.settings()["rank"] == 8))
    assert set(sweep.table(folder).state) == {"done", "deleted"}
    sweep.run({**RANKS, "grid": {"method.rank": [4, 8]}}, execute=fake)
    assert fake.calls == [2, 4, 2, 8, 8]


def test_other_weights_or_data_make_a_new_run(runs):
    fake = Fake()
    folder = sweep.run({**RANKS, "grid": {"method.rank": [2]}}, execute=fake)
    run = own()[0]
    facts = {"models": {"teacher": {"sha256": "x"}, "student": {"sha256": "y"}}, "data": {}}
    files.write_json(run.path("environment.json"), facts)
    sweep.run({**RANKS, "grid": {"method.rank": [2]}}, execute=fake)
    assert fake.calls == [2, 2] and set(sweep.table(folder).run) == {own()[0].id} != {run.id}


def test_two_files_of_one_name_do_not_mix(runs, tmp_path):
    for name, ranks in (("a", [2]), ("b", [4])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ranks.yaml").write_text(yaml.safe_dump({"base": QUICK, "grid": {"method.rank": ranks}}))
    sweep.run(tmp_path / "a" / "ranks.yaml", execute=Fake())
    with pytest.raises(InputError, match="give this one a name"):
        sweep.run(tmp_path / "b" / "ranks.yaml", execute=Fake())
    fake = Fake()
    sweep.run("ranks", execute=fake, resume=True)
    assert not fake.calls
    (tmp_path / "a" / "ranks.yaml").unlink()
    sweep.run(tmp_path / "b" / "ranks.yaml", execute=fake)
    assert fake.calls == [4]


def test_one_process_at_a_time(runs):
    folder = sweep.run(RANKS, execute=Fake())
    with FileLock(folder / sweep.LOCK), pytest.raises(InputError, match="by another process"):
        sweep.run(RANKS, execute=Fake())
    with pytest.raises(InputError, match="no sweep named 'other' was begun"):
        sweep.run({**RANKS, "name": "other"}, execute=Fake(), resume=True)


# -- results -----------------------------------------------------------------------------------------------


def test_the_table_has_settings_as_columns_and_is_the_parquet(runs):
    more = [{"controls": ["zero", "noise"]}, {"tune.epochs": 2, "method": {"name": "laten", "steps": 1}}]
    folder = sweep.run({**RANKS, "list": more}, execute=Fake())
    table = sweep.table(folder)
    assert list(table.columns[:6]) == ["point", "method.rank", "controls", "tune.epochs", "method.name", "method.steps"]
    first = table.drop_duplicates("point")
    # a point that does not set something shows what it has
    assert [None if pd.isna(v) else v for v in first["method.rank"]] == [2, 4, 4, None]
    assert list(first["tune.epochs"]) == [1, 1, 1, 2] and list(first["method.name"])[2:] == ["seeking", "laten"]
    assert list(first["controls"]) == ["[zero]", "[zero]", "[zero, noise]", "[zero]"]
    assert set(table.model) == {"teacher", "seeking"} and table.accuracy.mean() == 0.5
    stored = pd.read_parquet(folder / "table.parquet")
    assert list(stored.columns) == list(table.columns) and len(stored) == len(table) == 8
    assert [list(x) for x in stored.delta_ci] == list(table.delta_ci) and list(stored.run) == list(table.run)
    state = files.read_json(folder / "sweep.json")
    assert state["schema_version"] == 1 and len(state["points"]) == len(state["runs"]) == 4


def test_settings_of_several_kinds_are_text(runs):
    varied = [{"locate.modules": ["q"]}, {"locate.modules": None}]
    folder = sweep.run({"name": "s", "base": QUICK, "list": varied}, execute=Fake())
    shown = list(sweep.table(folder).drop_duplicates("point")["locate.modules"])
    assert shown[0] == "[q]" and pd.isna(shown[1])


def test_sweeps_are_listed_without_torch(runs):
    sweep.run(RANKS, execute=Fake({4: RunError("no")}))
    sweep.run({**RANKS, "name": "later"}, execute=Fake())
    (runs / "sweeps" / "odd").mkdir()
    (runs / "sweeps" / "odd" / "sweep.json").write_text("{")
    code = "import sys, json; from paraknow.runs import sweep; from paraknow import recipes, dryrun, cli_sweep\n"
    code += "print(json.dumps(sweep.all_sweeps())); print(len(sweep.table(sweep.all_sweeps()[0]['folder'])))\n"
    code += "print([n for n in ('torch', 'transformers', 'peft', 'lm_eval', 'streamlit') if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ.copy()
    )
    listed, rows, loaded = done.stdout.splitlines()
    found = json.loads(listed)
    assert [s["name"] for s in found] == ["later", "ranks", "odd"] and loaded == "[]" and int(rows) == 4
    assert found[1]["states"] == {"done": 1, "failed": 1} and found[1]["settings"] == ["method.rank"]
    assert found[1]["points"] == 2 and not found[1]["running"] and "damaged" in found[2]["error"]
    assert not [r for r in own() if r.id in ("ranks", "later")], "a sweep is no run"


# -- stages taken over -------------------------------------------------------------------------------------


def aligned(run: Run, warm: dict) -> None:
    worker.execute(run, until="align", warm=warm)


def test_locating_is_done_once_and_changes_nothing(runs):
    base = {**QUICK, "locate": {"seeds": 2, "max_length": 64, "layers": "matched"}, "controls": ["zero", "noise"]}
    base["locate"]["neurons"] = "none"
    points = [
        {"method.rank": 2},
        {"method.rank": 2, "tune.epochs": 2},
        {"method.rank": 3},
        {"locate.structure": "rows_columns"},
    ]
    notes = []
    folder = sweep.run({"name": "s", "base": base, "list": points}, None, aligned, notes.append)
    made = [Run(runs / run) for run in sweep.table(folder).run]
    reused = [next((e for e in r.events() if "reused" in e), None) for r in made]
    assert [r and r["stages"] for r in reused] == [None, ["locate", "similarity"], ["locate"], None]
    assert [r and r["reused"] for r in reused] == [None, made[0].id, made[0].id, None]
    assert "locate and similarity from" in notes[1] and "from" not in notes[3]
    whole = store.create(made[2].config())
    worker.execute(whole, until="align")
    for run, other in ((made[1], made[0]), (made[2], whole)):  # the first two differ in a later stage alone
        tables = ("locate/layers", "locate/blocks", "locate/sensitivity", "similarity/stitching", "similarity/cka")
        for name in (*tables, "similarity/weights", "align/starts"):
            ours, theirs = (pd.read_parquet(r.path(f"{name}.parquet")) for r in (run, other))
            pd.testing.assert_frame_equal(ours, theirs)
        assert files.read_json(run.path("locate/spent.json")) == files.read_json(other.path("locate/spent.json"))
        said = [[e["warning"] for e in r.events() if "warning" in e] for r in (run, other)]
        assert said[0] == said[1]
    store.delete(made[0])
    assert made[1].path("locate", "blocks.parquet").is_file()


def test_nothing_is_taken_over_where_settings_differ(runs):
    from paraknow.checks import check

    donor = store.create(config.parse(QUICK))
    donor.path("locate").mkdir()
    assert reuse.located(store.create(donor.config()), check(donor.config()), [donor]) is None, "its files are gone"
    donor.path("locate", "blocks.safetensors").touch()
    files.write_json(donor.path("environment.json"), {})
    donor.update(stages=["load", "locate", "similarity"])
    for changes, stages in (
        ({"locate": {"seeds": 3}}, None),
        ({"similarity": {"examples": 17}}, None),
        ({"dtype": "bfloat16"}, None),
        ({"pair": {"teacher": "demo:clone-teacher", "student": "demo:student"}}, None),
        ({"method": {"name": "seeking", "rank": 5}}, ["locate"]),
        ({"tune": {"epochs": 9, "max_length": 64}, "baselines": ["gaussian"]}, ["locate", "similarity"]),
    ):
        wanted = config.parse({**QUICK, **changes})
        run = store.create(wanted)
        found = reuse.located(run, check(wanted), [donor])
        assert (found[1] if found else None) == stages
        assert run.status()["stages"] == (["load", *stages] if stages else [])
        assert reuse.located(run, check(wanted), [donor]) is None or not stages, "a run that has located keeps its own"


# -- the command -------------------------------------------------------------------------------------------


@pytest.fixture
def command(capsys, runs):
    """command("sweep", …) → (exit code, stdout, stderr)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(list(arguments))
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return call


def test_the_command_from_end_to_end(command, runs, tmp_path):
    file, out = tmp_path / "s.yaml", tmp_path / "table.csv"
    base = {**CHEAP, "controls": [], "evaluate": {"limit": 2, "resamples": 200}}
    file.write_text(yaml.safe_dump({"base": base, "grid": {"tune.epochs": [2]}}))
    code, printed, err = command("sweep", str(file), "--json", "--out", str(out), "--one-by-one")
    assert code == 0, err
    values = json.loads(printed)
    assert values["schema_version"] == 1 and values["sweep"] == "s" and len(values["runs"]) == 1
    assert {r["model"] for r in values["rows"]} == {"teacher", "student", "seeking"}
    assert {r["tune.epochs"] for r in values["rows"]} == {2} and {r["state"] for r in values["rows"]} == {"done"}
    for run in values["runs"]:
        rows = files.read_json(runs / run / "evaluate" / "deltas.json")["rows"]
        own_rows = [{k: r[k] for k in sweep.KEPT} for r in values["rows"] if r["run"] == run]
        assert own_rows == [{k: r[k] for k in sweep.KEPT} for r in rows]
    assert len(pd.read_csv(out)) == len(values["rows"])
    code, printed, err = command("sweep", "s", "--resume")
    assert code == 0, err
    assert "tune.epochs" in printed and "Sweep s is in" in printed


def test_failed_points_end_with_4(command, monkeypatch, tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump({"base": QUICK, "grid": {"method.rank": [2, 4]}}))
    monkeypatch.setattr(cli_sweep, "carry_out", lambda run, warm: Fake({2: RunError("it broke.")})(run, warm))
    code, out, err = command("sweep", str(file), "--one-by-one")
    assert code == 4 and "failed" in out and "done" in out
    assert "paraknow: 1 of 2 points failed, the first of them point 1: it broke." in err.strip().splitlines()[-1]
    monkeypatch.setattr(cli_sweep, "carry_out", lambda run, warm: Fake()(run, warm))
    assert command("sweep", str(file), "--one-by-one")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.yaml"], "none.yaml: cannot be read"),
        (["none", "--resume"], "no sweep of that name was begun"),
        (["none.yaml", "--out", "table.xls"], "kept as .parquet or .csv"),
    ],
)
def test_bad_arguments(command, runs, arguments, said):
    code, out, err = command("sweep", *arguments)
    assert code == 2 and said in err and out == "" and len(err.strip().splitlines()) == 1 and not runs.exists()


def test_ctrl_c_stops_the_point_and_the_sweep(runs, tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump({"base": CHEAP, "grid": {"tune.epochs": [3000, 3001]}}))
    command = [sys.executable, "-m", "paraknow.cli", "sweep", str(file), "--one-by-one"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ.copy())
    try:
        until = time.time() + 120
        while time.time() < until and not (own() and own()[0].status().get("stage") == "tune"):
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in errors, errors
    rows = sweep.rows(runs / "sweeps" / "s")
    assert [r["state"] for r in rows] == ["cancelled", "waiting"]
