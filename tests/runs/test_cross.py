"""The cross matrix: which runs it asks for, what it reads off them, and what it says."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import yaml

from paraknow import cli, config, files, inject
from paraknow.errors import InputError, RunError
from paraknow.evaluate import statistics
from paraknow.runs import cross, store, worker
from tests.runs.test_sweep import CHEAP

TASKS = ["demo:people", "demo:sort", "demo:sum"]
BASE = config.parse({**CHEAP, "evaluate": {"resamples": 300}})
MODELS = ("teacher", "student", "seeking", "seeking+noise", "seeking+random_window", "zero")


def items(task: str, right: dict[str, int], seeds=(0,), count: int = 60) -> pd.DataFrame:
    """Each model answers its first so many items of a task rightly; the second half is never_shown on people."""
    rows = []
    for model in MODELS:
        for seed in seeds if model not in ("teacher", "student") else (-1,):
            for doc in range(count):
                group = "all" if task != "demo:people" else "known" if doc < count // 2 else "never_shown"
                own = {"task": task, "group": group, "doc_id": doc, "doc_hash": f"{task}{doc}", "model": model}
                rows.append(own | {"seed": seed, "correct": doc < right.get(model, 10)})
    return pd.DataFrame(rows)


class Fake:
    """Carries out runs without models: locating on the task itself brings more; fails where told to."""

    def __init__(self, broken=(), gain=20, seeds=(0,)):
        self.broken, self.gain, self.seeds, self.calls = set(broken), gain, seeds, []

    def __call__(self, run):
        made = run.config()
        cell = made.located_on[0], made.task[0]
        self.calls.append(cell)
        if cell in self.broken:
            run.update(state="failed", error="it broke.")
            raise RunError("it broke.")
        own = 10 + (self.gain if cell[0] == cell[1] else 0)
        right = {"teacher": 60, "seeking": own, "seeking+noise": 10, "seeking+random_window": 12}
        files.write_table(run.path("evaluate", "items.parquet"), items(made.task[0], right, self.seeds))
        files.write_json(run.path("evaluate", "deltas.json"), {"run": run.id, "rows": [{"model": "seeking"}]})
        run.update(state="done", stages=list(worker.STAGE_NAMES))


def carried(runs, fake, tasks=TASKS):
    return cross.run(BASE, tasks, "trial", runs, fake)


def cell(found, located, measured, scope="all"):
    keys = ("located", "measured", "scope")
    (one,) = [c for c in found.cells if tuple(c[k] for k in keys) == (located, measured, scope)]
    return one


# -- which runs ----------------------------------------------------------------------------------------


def test_every_column_reads_the_same_data_and_every_row_locates_elsewhere():
    plans = cross.plan(BASE, TASKS, "x")
    assert [p.name for p in plans] == ["x-people", "x-sort", "x-sum"]
    for task, plan in zip(TASKS, plans, strict=True):
        assert [p.config.located_on for p in plan.points] == [(t,) for t in TASKS]
        for point in plan.points:
            made = point.config
            assert made.task == made.suites == (task,) and made.locate.seeds == BASE.locate.seeds
            assert made.controls == ("zero", "noise", "random_window") and not made.baselines
            assert made.seed == BASE.seed and made.method == BASE.method and not made.similarity.parts


def test_names_of_columns_never_collide():
    slugs = cross._slugs(["a/facts.csv", "b/facts.csv", "demo:facts-csv", "/", "ü"])
    assert len(set(slugs)) == 5 and slugs[0] == "facts-csv"


@pytest.mark.parametrize(("changes", "tasks", "said"), [
    ({}, ["demo:people"], "--task: a cross matrix needs 2 to 12 tasks; got 1"),
    ({}, ["demo:people", "demo:people"], "--task names 'demo:people' twice"),
    ({"locate": {"task": "demo:sum"}}, TASKS, "locate.task: a cross matrix sets it itself"),
    ({"evaluate": {"suites": ["demo:sum"]}}, TASKS, "evaluate.suites: a cross matrix sets it itself"),
    ({"evaluate": {"benchmarks": ["gsm8k"]}}, TASKS, "evaluate.benchmarks: a cross matrix sets it itself"),
    ({"method": "pissa"}, TASKS, "method 'pissa' does not work from what is located"),
    ({}, ["demo:people", "demo:nothing"], "there is no demo task 'nothing'"),
    ({"method": {"name": "seeking", "rank": 999}}, TASKS, "method.rank: 999 is above"),
])  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_is_written(runs, changes, tasks, said):
    with pytest.raises(InputError) as refused:
        cross.run(config.parse({**CHEAP, **changes}), tasks, "x", runs, Fake())
    assert said in str(refused.value) and not runs.exists()


def test_a_second_call_runs_only_what_is_missing(runs):
    fake = Fake(broken=[("demo:sort", "demo:people")])
    found = carried(runs, fake)
    assert len(fake.calls) == 9 and len(cross.missing(found)) == 1
    gap = cell(found, "demo:sort", "demo:people")
    assert gap["delta"] is None and gap["state"] == "failed" and gap["error"] == "it broke."
    assert cell(found, "demo:people", "demo:people")["delta"] is not None
    again = Fake()
    found = carried(runs, again)
    assert again.calls == [("demo:sort", "demo:people")] and not cross.missing(found)


# -- what is read --------------------------------------------------------------------------------------


def test_cells_are_paired_differences(runs):
    found = carried(runs, Fake())
    own, other = cell(found, "demo:sort", "demo:sort"), cell(found, "demo:sum", "demo:sort")
    assert own["own"] and not other["own"] and own["n"] == 60 and own["accuracy"] == pytest.approx(0.5)
    right = np.arange(60)
    expected = statistics.compare(right < 30, right < 10, 0, 300)
    assert own["delta"] == expected.delta == pytest.approx(20 / 60)
    assert own["delta_ci"] == [expected.lo, expected.hi]
    assert own["against"]["noise"]["delta"] == pytest.approx(20 / 60)
    assert own["against"]["random_window"]["delta"] == pytest.approx(18 / 60) and other["delta"] == 0
    noise = cell(found, None, "demo:sort")
    assert noise["run"] == own["run"] and noise["delta"] == 0 and not noise["against"]
    assert {c["scope"] for c in found.cells if c["measured"] == "demo:people"} == {"all", "known", "never_shown"}
    assert cell(found, "demo:people", "demo:people", "never_shown")["n"] == 30


def test_the_diagonal_is_held_against_the_other_rows(runs):
    found = carried(runs, Fake())
    (row,) = [r for r in found.own if (r["measured"], r["scope"]) == ("demo:sum", "all")]
    assert row["difference"] == pytest.approx(20 / 60) and row["others"] == 2 and row["ci"][0] > 0.1
    assert "demo:sum: locating on it brings more than locating on others" in found.words[2]
    assert "above noise of the same size" in found.words[2]
    nothing = carried(runs.parent / "more", Fake(gain=0), TASKS[:2])
    assert "no more, as far as this can tell, than locating on the other task" in nothing.words[0]
    assert "not above noise" in nothing.words[0]
    less = carried(runs.parent / "less", Fake(gain=-10, seeds=(0, 1)), TASKS[:2])
    assert "less than" in less.words[0] and cell(less, "demo:sort", "demo:sort")["seeds"] == 2


def test_a_column_without_its_diagonal_says_so(runs):
    found = carried(runs, Fake(broken=[("demo:sort", "demo:sort"), *((t, "demo:sum") for t in TASKS)]))
    assert "not measured" in found.words[1] and "not measured" in found.words[2]
    assert cell(found, None, "demo:sort")["delta"] == 0, "noise of another row stands in"
    assert cell(found, "demo:people", "demo:sum")["delta"] is None
    cross.save(found, runs / cross.FILE, "paraknow cross x")
    assert json.loads((runs / cross.FILE).read_text())["schema_version"] == 1


def test_other_items_in_a_column_are_refused(runs):
    class Odd(Fake):
        def __call__(self, run):
            super().__call__(run)
            if self.calls[-1] == ("demo:sort", "demo:people"):
                file = run.path("evaluate", "items.parquet")
                files.write_table(file, pd.read_parquet(file).assign(doc_hash="odd"))

    with pytest.raises(RunError, match="on demo:people, the run located on demo:sort was measured on other items"):
        carried(runs, Odd())


# -- the setting ---------------------------------------------------------------------------------------


def test_located_on_the_runs_own_tasks_leaves_stored_texts_as_they_were():
    made = config.parse(CHEAP)
    values = yaml.safe_load(config.dump(made))
    assert "task" not in values["locate"] and made.located_on == made.all_tasks == ("demo:people",)
    other = config.parse({**CHEAP, "locate": {**CHEAP["locate"], "task": "demo:sum"}})
    assert yaml.safe_load(config.dump(other))["locate"]["task"] == ["demo:sum"]
    assert other.located_on == ("demo:sum",) and other.all_tasks == ("demo:people", "demo:sum")
    assert config.parse(yaml.safe_load(config.dump(other))) == other
    with pytest.raises(InputError, match=r"locate\.task names something twice"):
        config.parse({**CHEAP, "locate": {"task": ["demo:sum", "demo:sum"]}})


def test_recorded_runs_locate_as_they_say():
    for run in store.recorded_runs():
        stored = yaml.safe_load(run.path("config.yaml").read_text())
        assert yaml.safe_load(config.dump(run.config()))["locate"] == stored["locate"], run.id


def test_a_dry_run_counts_the_tasks_that_locate():
    from paraknow.dryrun import dry_run

    made = dry_run(config.parse({**CHEAP, "locate": {**CHEAP["locate"], "task": ["demo:sum", "demo:sort"]}}))
    read = [p for p in made.passes if p["stage"] == "locate"]
    assert [(p["model"], p["forward"]) for p in read] == [(m, 2) for m in ("teacher", "student") for _ in range(2)]
    tuned = next(p for p in made.passes if p["stage"] == "tune")
    assert tuned["forward"] == next(p for p in dry_run(config.parse(CHEAP)).passes if p["stage"] == "tune")["forward"]


# -- the command ---------------------------------------------------------------------------------------


@pytest.fixture
def command(runs, capsys, monkeypatch, tmp_path):
    """command(code, values, …) → stdout, stderr of `paraknow cross` on a config of these values."""
    file = tmp_path / "trial.yaml"

    def run(code: int, values: dict, *arguments: str) -> tuple[str, str]:
        file.write_text(yaml.safe_dump(values))
        monkeypatch.setattr("sys.argv", ["paraknow", "cross", "trial.yaml", "--one-by-one", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main(["cross", str(file), "--one-by-one", *arguments])
        captured = capsys.readouterr()
        assert stop.value.code == code, captured.err
        return captured.out, captured.err

    return run


def test_a_matrix_end_to_end(command, runs, tmp_path, monkeypatch):
    """On the demo pair with hardly any tuning: locating is really done on the other task, and a second call reads."""
    monkeypatch.setattr(inject, "reload_check", lambda *_: {})  # two fresh processes, tested elsewhere
    asked = {"small": "What is {} + 1?", "other": "Reverse {}."}
    small, other = (tmp_path / f"{name}.jsonl" for name in asked)
    for file, question in zip((small, other), asked.values(), strict=True):
        records = [{"question": question.format(k), "answer": str(k)} for k in range(20)]
        file.write_text("".join(json.dumps(r) + "\n" for r in records))
    values = {**CHEAP, "task": [str(small), str(other)], "evaluate": {"resamples": 200}}
    kept = tmp_path / "kept.json"
    out, _ = command(0, values, "--json", "--out", str(kept))
    found = json.loads(out)
    assert found["tasks"] == [str(small), str(other)] and len(found["cells"]) == 6 and len(found["words"]) == 2
    assert all(c["delta"] is not None and c["n"] == 2 for c in found["cells"])
    assert files.read_json(kept) == found == files.read_json(runs / cross.FILE)
    made = {r.config().located_on + r.config().task: r for r in store.all_runs() if not r.recorded}
    assert len(made) == 4
    for (located, task), run in made.items():
        tables = pd.read_parquet(run.path("locate", "layers.parquet"))
        assert set(tables.task) == {located} and set(files.read_json(run.path("environment.json"))["data"]) == {
            located,
            task,
        }
    out, err = command(0, values)
    assert "nothing (noise)" in out and "locating on it brings" in out and "(run " not in err
    assert len([r for r in store.all_runs() if not r.recorded]) == 4


@pytest.mark.parametrize(("values", "arguments", "said"), [
    (CHEAP, [], "--task: a cross matrix needs 2 to 12 tasks; got 1 (demo:people)."),
    (CHEAP, ["--task", "demo:people", "--task", "demo:sumo"], "there is no demo task 'sumo'"),
    ({**CHEAP, "locate": {"taks": "demo:sum"}}, [], "unknown key 'locate.taks'; did you mean 'task'"),
    (CHEAP, ["--set", "locate.task=[]", "--task", "demo:sum"], "'locate.task'"),
])  # fmt: skip
def test_bad_input_is_one_sentence(command, runs, values, arguments, said):
    out, err = command(2, values, *arguments)
    assert said in err and err.startswith("paraknow: ") and len(err.strip().splitlines()) == 1 and out == ""
    assert not runs.exists()
