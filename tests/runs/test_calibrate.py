from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from paraknow import cli, files, inject, resources
from paraknow.demo import build
from paraknow.demo.rungs import LADDER, RUNGS
from paraknow.errors import InputError
from paraknow.runs import calibrate, store
from tests.demo.test_build import TINY


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder as `paraknow demo build --ladder` leaves it, with hardly any training."""
    folder = tmp_path_factory.mktemp("worlds") / "one"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(build.SIZES, "small", TINY)
        build.build(folder, "small", 3, ladder=True)
    return folder


# -- what is asked for ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "values"), [
    ("transport", {"name": "transport"}),
    ("transport:maps=ridge", {"name": "transport", "maps": "ridge", "label": "transport-ridge"}),
    ("transport:mode=widen, neurons=64", {"name": "transport", "mode": "widen", "neurons": 64,
                                          "label": "transport-widen-64"}),
    ("seeking:rank=8,label=small", {"name": "seeking", "rank": 8, "label": "small"}),
    ("laten:gate=true", {"name": "laten", "gate": True, "label": "laten-gate"}),
])  # fmt: skip
def test_methods_are_written_with_their_settings(text, values):
    assert calibrate.choice(text) == values


@pytest.mark.parametrize("text", ["transport:maps", "transport:maps=ridge,neurons", "transport:maps=[ridge"])
def test_a_malformed_method_is_refused(text):
    with pytest.raises(InputError, match="--method"):
        calibrate.choice(text)


@pytest.mark.parametrize(
    "text", ["laten:as_released=[rounded_scores]", "seeking:rank=8 ", "transport:heal=3,maps=vocabulary,pairing=kin"]
)
def test_every_label_that_is_made_up_can_be_a_label(text):
    from paraknow.config import MethodChoice

    assert MethodChoice.model_validate(calibrate.choice(text)).title


def test_a_plan_runs_every_method_on_every_rung(world):
    jobs = calibrate.plan([world], list(LADDER), ["transport", "seeking"], ["gaussian"], 5, {"limit": 3})
    assert [(j.rung, j.method) for j in jobs] == [
        (rung, method)
        for rung in LADDER
        for method in ((["oracle"] if rung == "clone" else []) + ["transport", "seeking"])
    ]
    for job in jobs:
        config, first = job.config, job.method == "transport"
        assert job.world == "one" and config.seed == 5 and config.evaluate.limit == 3
        assert config.pair.teacher == str(world / "models" / RUNGS[job.rung].teacher)
        assert config.pair.student == str(world / "models" / RUNGS[job.rung].student)
        assert config.task == (str(world / "suites" / "people"),)
        assert [b.name for b in config.baselines] == (["gaussian"] if first else [])
        assert bool(config.similarity.parts) == first  # how alike a pair is, once a pair
        assert ("shuffled_teacher" in config.controls) == (job.method != "oracle")
        assert {"zero", "noise"} <= set(config.controls)


def test_the_shipped_pair_goes_by_its_name():
    jobs = calibrate.plan([resources.assets()], ["clone", "stranger"], ["seeking"])
    assert [j.config.pair.teacher for j in jobs] == ["demo:clone-teacher", "demo:clone-teacher", "demo:teacher"]
    assert all(j.config.task == ("demo:people",) for j in jobs)


def test_the_identity_stands_aside_where_widths_differ(world):
    jobs = calibrate.plan([world], ["stranger", "equal"], ["transport"], ["transport:maps=identity"])
    assert [len(j.config.baselines) for j in jobs] == [0, 1]


def test_what_is_not_there_is_named(world, tmp_path):
    with pytest.raises(InputError, match="--rung 'twin': choose one of clone, sibling"):
        calibrate.plan([world], ["twin"], ["seeking"])
    with pytest.raises(InputError, match=r"not built: run `paraknow demo build --ladder --out"):
        calibrate.plan([tmp_path], ["sibling"], ["seeking"])
    with pytest.raises(InputError, match="healed is not built.*--study"):
        calibrate.plan([world], ["healed"], ["seeking"])
    with pytest.raises(InputError, match="calibrate"):
        calibrate.plan([world], ["equal"], ["transport:label=Not a label"])


def test_two_worlds_of_one_name_are_two_worlds(world, tmp_path):
    """Tables know a world by its name; one of them would go missing."""
    import shutil

    other = shutil.copytree(world, tmp_path / "elsewhere" / "one")
    with pytest.raises(InputError, match="one"):
        calibrate.plan([world, other], ["equal"], ["seeking"])


# -- runs that are there -------------------------------------------------------------------------------


def finish(run, models=True, **values):
    """What a run leaves, without its work."""
    from paraknow import checkpoints, data

    config = run.config()
    pair = {"teacher": config.pair.teacher, "student": config.pair.student}
    facts = {n: {"sha256": checkpoints.weights_hash(checkpoints.find(s))} for n, s in pair.items()}
    if models:
        tasks = {t: data.load_task(t, config.seed).hash for t in config.task}
        files.write_json(run.path("environment.json"), {"models": facts, "data": tasks})
    files.write_json(run.path("evaluate", "deltas.json"), {"rows": []})
    run.update(**({"state": "done"} | values))


def test_a_done_run_is_taken_and_a_broken_one_goes_on(world, runs):
    jobs = calibrate.plan([world], ["equal", "stranger"], ["gaussian"])
    executed: list[str] = []

    def execute(run):
        executed.append(run.id)
        finish(run, state="failed" if len(executed) == 2 else "done")
        if len(executed) == 2:
            raise KeyboardInterrupt

    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        calibrate.carry_out(jobs, execute, said.append)
    first = calibrate.carry_out(jobs, execute, said.append)
    assert executed == [first[0].id, first[1].id, first[1].id]  # the second went on as the same run
    assert len(said) == 3 and said[0].startswith("1 of 2: Ladder: gaussian on equal (one)") and executed[0] in said[0]
    again = calibrate.carry_out(jobs, execute, said.append)
    assert [r.id for r in again] == [r.id for r in first] and len(executed) == 3


def test_a_run_of_other_models_data_or_settings_is_not_taken(world, runs, tmp_path):
    import shutil

    copied = shutil.copytree(world, tmp_path / "two")
    (job,) = calibrate.plan([copied], ["equal"], ["gaussian"])
    calibrate.carry_out([job], finish, lambda _: None)
    assert calibrate.existing(job.config) is not None
    (other,) = calibrate.plan([copied], ["equal"], ["gaussian"], seed=1)
    assert calibrate.existing(other.config) is None
    file = copied / "suites" / "people" / "test.jsonl"
    text = file.read_text()
    file.write_text("\n".join(text.splitlines()[:-1]) + "\n")
    assert calibrate.existing(job.config) is None, "the data have changed"
    file.write_text(text)
    assert calibrate.existing(job.config) is not None
    shutil.copy(copied / "models" / "teacher" / "model.safetensors", copied / "models" / "equal" / "model.safetensors")
    assert calibrate.existing(job.config) is None, "the models have changed"


def test_a_run_that_stopped_early_on_purpose_goes_on(world, runs):
    """`paraknow run --until locate` is done, and was never evaluated."""
    (job,) = calibrate.plan([world], ["equal"], ["gaussian"])
    run = store.create(job.config, state="running")
    finish(run)
    run.path("evaluate", "deltas.json").unlink()
    executed = []
    calibrate.carry_out([job], lambda r: (executed.append(r.id), finish(r)), lambda _: None)
    assert executed == [run.id]


def test_everything_is_checked_before_anything_is_run(world, runs):
    jobs = calibrate.plan([world], ["equal"], ["gaussian", "transport:mode=widen,neurons=4000"])
    with pytest.raises(InputError, match="4000"):
        calibrate.carry_out(jobs, lambda _: pytest.fail("ran"), lambda _: pytest.fail("said"))
    assert not runs.exists()


# -- what they came to ---------------------------------------------------------------------------------


def row(model, share=None, ci=None, world="a", rung="sibling", **more):
    claim = more.pop("claim", None)
    return {
        "world": world,
        "rung": rung,
        "model": model,
        "share": share,
        "share_ci": ci,
        "accuracy": 0.5,
        "known": 1.0,
        "claim": claim,
        **dict.fromkeys(calibrate.PREDICTORS),
        **more,
    }


def test_one_world_keeps_its_own_interval():
    (found,) = calibrate.pool([row("m", 0.4, [0.1, 0.7], claim=True)])
    assert (found["share"], found["share_ci"], found["worlds"], found["measured"]) == (0.4, [0.1, 0.7], 1, 1)
    assert found["above_controls"] == 1 and found["known"] == 1.0
    (missing,) = calibrate.pool([row("m")])
    assert missing["share"] is None and missing["share_ci"] is None and missing["measured"] == 0


def test_several_worlds_are_one_observation_each():
    shares = [0.2, 0.5, 0.6]
    rows = [row("m", s, [s, s], world=w, claim=c) for s, w, c in zip(shares, "abc", (True, False, True), strict=True)]
    (found,) = calibrate.pool([*rows, row("m", world="d")])
    expected = stats.t.interval(0.95, 2, np.mean(shares), stats.sem(shares))
    assert found["share_ci"] == pytest.approx(list(expected)) and found["share"] == pytest.approx(np.mean(shares))
    assert (found["worlds"], found["measured"], found["above_controls"]) == (4, 3, 2)
    (alike,) = calibrate.pool([row("m", cka=0.2), row("m", world="b", cka=0.6), row("m", world="c")])
    assert alike["cka"] == pytest.approx(0.4) and alike["r2"] is None
    (single,) = calibrate.pool([rows[0], row("m", world="d")])
    assert single["share"] == 0.2 and single["share_ci"] is None
    json.dumps([found, single], allow_nan=False)


def test_rungs_stand_in_their_order_and_models_as_they_came():
    rows = [row(m, 0.1, [0, 1], rung=r) for r in ("equal", "sibling", "clone") for m in ("z", "a")]
    found = [(r["rung"], r["model"]) for r in calibrate.pool(rows)]
    assert found == [(r, m) for r in ("clone", "sibling", "equal") for m in ("z", "a")]


def test_predictors_correlate_over_pairs():
    name = calibrate.PREDICTORS[0]
    shares, alike = [0.1, 0.5, 0.3, 0.9, 0.2], [1.0, 3.0, 2.0, 4.0, 5.0]
    rows = [row("m", s, world=str(k)) | {name: a} for k, (s, a) in enumerate(zip(shares, alike, strict=True))]
    rows += [row("m", 0.5, world="x")]  # how alike: not measured
    rows += [row("m", world="y") | {name: 1.0}]  # no share
    found = {r["predictor"]: r for r in calibrate.predictors(rows, ["m"])}
    assert found[name]["correlation"] == pytest.approx(stats.spearmanr(shares, alike).statistic)
    assert found[name]["n"] == 5 and {r["n"] for p, r in found.items() if p != name} == {0}
    few = {r["predictor"]: r for r in calibrate.predictors(rows[:3], ["m"])}
    assert few[name]["correlation"] is None and few[name]["n"] == 3
    flat = [r | {name: 1.0} for r in rows[:5]]
    assert calibrate.predictors(flat, ["m"])[0]["correlation"] is None


def pooled(**cells):
    """cells: rung__model = (share, low, high), None or a share alone."""
    made = []
    for name, cell in cells.items():
        rung, model = name.split("__")
        share, *ci = cell if isinstance(cell, tuple) else (cell,)
        row = {"rung": rung, "model": model.replace("_with_", "+"), "share": share, "share_ci": ci or None}
        made.append({**row, "crossed": bool(ci) and ci[0] > 0})
    return made


SOUND = {"clone__oracle": (0.99, 0.97, 1.0), "clone__zero": (0.0, 0.0, 0.0), "sibling__zero": (0.0, -0.1, 0.1)}


def test_an_instrument_that_finds_the_known_answer_and_nothing_else_can_be_believed():
    passed, (words, *_) = calibrate.verdict(pooled(**SOUND), ["oracle"], ["clone"])
    assert passed is True and "0.99 (0.97 to 1.00)" in words and words.endswith("it can be believed.")


@pytest.mark.parametrize("change", [
    {"clone__oracle": (0.94, 0.9, 0.97)},
    {"clone__oracle": None},
    {"clone__zero": None, "sibling__zero": None},
    {"sibling__m_with_shuffled_teacher": (0.4, 0.2, 0.6)},
    {"clone__zero": (0.3, 0.06, 0.5)},
])  # fmt: skip
def test_an_instrument_that_fails_says_so(change):
    passed, (words, *_) = calibrate.verdict(pooled(**(SOUND | change)), ["oracle", "m"], ["clone", "sibling"])
    assert passed is False and "FAILED its check" in words
    for name, cell in change.items():
        if "oracle" not in name and cell:
            model, rung = name.split("__")[1].replace("_with_", "+"), name.split("__")[0]
            assert f"{model} on {rung} scores {cell[0]:.2f}" in words


def test_what_was_not_measured_speaks_neither_for_nor_against_the_instrument():
    """A control measured in one of several worlds has a share without an interval."""
    passed, (words, *_) = calibrate.verdict(
        pooled(**SOUND, stranger__zero=0.02, stranger__m_with_shuffled_teacher=None), ["oracle", "m"], ["clone"]
    )
    assert passed is True, words


def test_without_the_clone_rung_nothing_is_said_of_the_instrument():
    passed, words = calibrate.verdict(pooled(sibling__m=(0.5, 0.3, 0.7)), ["m"], ["sibling"])
    assert passed is None and words == ["m: on sibling 0.50 (0.30 to 0.70), crossed."]


WORLDS = {
    "crossed": ([0.5, 0.6, 0.7], [0.0, 0.1, 0.2]),
    "crossed, as in every world by as much": ([0.4, 0.5, 0.7], [0.3, 0.41, 0.6]),
    "nothing crossed that a control does not bring": ([0.5, 0.6, 0.7], [0.1, 0.9, 0.3]),
    "nothing crossed that a control does not bring: its own share may be 0": ([0.5, -0.1, 0.2], [-0.9, -0.8, -0.7]),
    "but a control could not be measured": ([0.5, 0.6, 0.7], [0.1, None, None]),
}


@pytest.mark.parametrize("said", WORLDS)
def test_a_method_is_held_against_its_own_controls_world_by_world(said):
    shares, control = WORLDS[said]
    rows = [row("m", s, world=str(k)) for k, s in enumerate(shares)]
    rows += [row("m+noise", s, world=str(k)) for k, s in enumerate(control)]
    rows += [row(name, 0.9 + k / 10, world=str(k)) for name in ("n", "n+noise", "mm") for k in range(3)]
    rows += [row("zero", 0.0, world=str(k)) for k in range(3)]
    _, (words,) = calibrate.verdict(calibrate.pool(rows), ["m"], ["sibling"])
    assert words.endswith(said.partition(",")[0].partition(":")[0] + ".")


@pytest.mark.parametrize(("claim", "ci", "said"), [
    (True, [0.1, 0.7], "crossed"),
    (True, [-0.1, 0.7], "nothing crossed that a control does not bring"),
    (False, [0.1, 0.7], "nothing crossed that a control does not bring"),
    (None, [0.1, 0.7], "but a control could not be measured"),
    (True, None, "could not be measured"),
])  # fmt: skip
def test_in_one_world_the_runs_own_claim_counts(claim, ci, said):
    """It holds item by item against every control; their shares alone do not."""
    rows = [row("m", 0.4 if ci else None, ci, claim=claim), row("m+noise", 0.0, [-0.1, 0.1])]
    _, (words,) = calibrate.verdict(calibrate.pool(rows), ["m"], ["sibling"])
    assert words.endswith(said + "."), words


def test_every_method_and_rung_has_its_words():
    rungs = ["clone", "sibling"]
    _, words = calibrate.verdict(pooled(clone__m=(0.5, 0.3, 0.7)), ["m", "other"], rungs)
    assert len(words) == 2 and words[0].startswith("m: on clone 0.50") and "on sibling it could not" in words[0]
    assert words[1] == "other: on clone it could not be measured; on sibling it could not be measured."


# -- the command ---------------------------------------------------------------------------------------


@pytest.fixture
def command(runs, capsys, monkeypatch):
    """command(code, …) → stdout, stderr of `paraknow calibrate …`, which must exit with that code."""

    def run(code: int, *arguments: str) -> tuple[str, str]:
        monkeypatch.setattr("sys.argv", ["paraknow", "calibrate", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main(["calibrate", *arguments])
        captured = capsys.readouterr()
        assert stop.value.code == code, captured.err
        return captured.out, captured.err

    return run


@pytest.mark.parametrize(("arguments", "said"), [
    (["--rung", "twin"], "--rung 'twin': choose one of clone"),
    (["--rung", "healed"], "not built"),
    (["--rung", "equal", "--method", "transport:maps"], "--method 'transport:maps'"),
    (["--rung", "equal", "--method", "transport:maps=[a"], "--method"),
    (["--rung", "equal", "--method", "sekking"], "did you mean 'seeking'?"),
    (["--rung", "equal", "--method", "seeking:rnak=3"], "unknown key 'rnak'; did you mean 'rank'?"),
    (["--rung", "equal", "--method", "logit_fusion"], "noise"),
])  # fmt: skip
def test_what_cannot_be_calibrated_is_refused_with_exit_code_2(command, world, runs, arguments, said):
    out, err = command(2, str(world), *arguments)
    assert said in err and err.startswith("paraknow: ") and len(err.strip().splitlines()) == 1 and out == ""
    assert not runs.exists() or not list(runs.iterdir())


def test_an_unbuilt_folder_is_refused(command, tmp_path):
    _, err = command(2, str(tmp_path / "nothing"), "--rung", "sibling")
    assert "is not built: run `paraknow demo build --ladder --out" in err


def test_models_that_learned_nothing_fail_the_instrument(command, world, runs, tmp_path, monkeypatch):
    """End to end on a world without knowledge: no share can be measured, so the known answer is not found."""
    monkeypatch.setattr(inject, "reload_check", lambda *_: {})  # two fresh processes, tested elsewhere
    monkeypatch.setattr(calibrate, "TUNE", calibrate.TUNE | {"epochs": 1})
    arguments = [str(world), "--rung", "clone", "--method", "transport", "--limit", "4", "--resamples", "200"]
    kept = tmp_path / "kept.json"
    out, err = command(4, *arguments, "--json", "--out", str(kept))
    found = json.loads(out)
    assert found["schema_version"] == 1 and found["passed"] is False and "FAILED its check" in found["words"][0]
    assert "the instrument failed its check on the ladder" in err.splitlines()[-1] and "Traceback" not in err
    models = {"teacher", "student", "oracle", "zero", "oracle+noise"}
    models |= {"transport", "transport+noise", "transport+shuffled_teacher"}
    assert {r["model"] for r in found["rows"]} == {r["model"] for r in found["pooled"]} == models
    assert len(found["rows"]) == len(models), "what both runs share is there once"
    assert {r["predictor"] for r in found["predictors"]} == set(calibrate.PREDICTORS)
    assert all(r["world"] == "one" and r["rung"] == "clone" and r["cka"] is not None for r in found["rows"])
    for file in (kept, runs / calibrate.FILE):
        assert files.read_json(file) == found
    states = [store.summary(r)["state"] for r in store.all_runs() if not r.recorded]
    assert states == ["done", "done"]
    out, _ = command(4, *arguments)  # again: nothing is run, the tables are shown
    assert "FAILED its check" in out and "How alike the pairs are" in out
    assert "Share of the teacher's never-shown knowledge" in out
    assert len([r for r in store.all_runs() if not r.recorded]) == 2
