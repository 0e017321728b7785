"""Times of runs to come: laws that made-up runs follow, the recorded runs, and what is said where nothing is known."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paraknow import checks, files
from paraknow import config as configs
from paraknow.runs import store, timing
from tests.runs.packed import CONFIG

RATES = {"once": 2.0, "operations": 3e-12, "steps": 0.05}
QUICK = {**CONFIG, "evaluate": {"limit": 4}, "tune": {"epochs": 1}}


def work(once: float, operations: float, steps: float) -> dict[str, float]:
    return {"once": once, "operations": operations, "steps": steps}


def seconds(parts: dict[str, float]) -> float:
    return sum(RATES[name] * value for name, value in parts.items())


RUNS = [work(1, 1e12, 10), work(1, 4e12, 15), work(1, 2e12, 90), work(1, 9e12, 40), work(1, 5e11, 300)]


def test_the_law_of_made_up_runs_is_found_again():
    told = [(w, seconds(w)) for w in RUNS]
    for new in (work(1, 3e13, 20), work(1, 1e10, 1000), work(1, 1e12, 10)):
        found = timing.predict(new, told)
        assert found.low == pytest.approx(seconds(new), rel=1e-3) == pytest.approx(found.high, rel=1e-3)
        assert found.runs == len(told)


def test_noise_widens_the_range_and_one_run_that_went_wrong_does_not_move_the_middle():
    rng = np.random.default_rng(0)
    told = [(w, seconds(w) * float(rng.uniform(0.9, 1.1))) for w in RUNS * 4]
    new = work(1, 5e12, 100)
    found = timing.predict(new, told)
    assert found.low < seconds(new) < found.high and found.likely == pytest.approx(seconds(new), rel=0.1)
    assert found.high < 1.5 * found.low
    wrong = timing.predict(new, [*told, (RUNS[0], 40 * seconds(RUNS[0]))])
    assert wrong.likely == pytest.approx(found.likely, rel=0.1)


def test_from_one_run_everything_between_no_growth_and_full_growth_is_open():
    found = timing.predict(work(1, 1e13, 20), [(work(1, 1e12, 10), 8.0)])
    assert found.low == pytest.approx(8.0, rel=1e-3) and found.high == pytest.approx(80.0, rel=1e-3)
    assert timing.predict(work(1, 1e12, 10), [(work(1, 1e12, 10), 8.0)]).likely == pytest.approx(8.0, rel=1e-3)


def test_of_equal_runs_the_middle_one_counts():
    told = [(work(1, 1e12, 10), took) for took in (8.0, 9.0, 10.0, 30.0, 90.0)]
    found = timing.predict(work(1, 1e12, 10), told)
    assert (found.low, found.likely, found.high) == pytest.approx((8.0, 10.0, 90.0), rel=1e-3)


def test_work_that_no_run_had_has_no_upper_end():
    found = timing.predict(work(1, 1e12, 10), [(work(1, 1e12, 0), 8.0)])
    assert found.high is None and found.likely is None and found.low == pytest.approx(8.0, rel=1e-3)
    nothing = timing.predict(work(1, 1e12, 10), [])
    assert (nothing.low, nothing.high, nothing.runs) == (None, None, 0)
    assert timing.predict(work(0, 0, 0), [(work(1, 1, 1), 8.0)]).high == 0.0


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.floats(1e9, 1e14), st.floats(1, 1e4)), min_size=1, max_size=6),
    st.tuples(st.floats(1e9, 1e14), st.floats(1, 1e4)),
)
def test_what_follows_the_law_lies_within_the_range(told, new):
    runs = [work(1, *parts) for parts in told]
    found = timing.predict(work(1, *new), [(w, seconds(w)) for w in runs])
    truth = seconds(work(1, *new))
    assert found.low <= truth * 1.01 and truth <= found.high * 1.01
    assert found.low <= found.likely <= found.high


# -- run folders -----------------------------------------------------------------------------------------


@pytest.fixture
def ended(runs, monkeypatch):
    """ended(seconds, **config) → a finished run with these seconds per stage; there are no recorded ones."""
    monkeypatch.setattr(store, "recorded_runs", lambda: [])
    kind, name = timing.device_here("cpu")

    def make(took: float, about: dict | None = None, **changes) -> store.Run:
        run = store.create(configs.parse({**QUICK, "device": "cpu", **changes}), runs)
        files.write_json(run.path("environment.json"), {"device_type": kind, "device": name, **(about or {})})
        for stage in ("load", "locate", "similarity", "align", "tune", "evaluate"):
            run.event(stage=stage, seconds=took)
        run.update(state="done", started=1.0, finished=2.0)
        return run

    return make


def estimate(runs, **changes):
    config = configs.parse({**QUICK, "device": "cpu", **changes})
    return timing.estimate(config, timing.of_checked(checks.prepare(config)), runs)


def test_without_an_earlier_run_nothing_is_invented(runs, ended):
    found = estimate(runs)
    assert found.words == "Time is not known: no run has ended on this device yet." and found.whole.low is None


def test_an_equal_run_takes_as_long_and_a_longer_one_longer(runs, ended):
    ended(3.0)
    equal, longer = estimate(runs), estimate(runs, tune={"epochs": 8})
    assert equal.whole.likely == pytest.approx(18.0, rel=1e-3) and equal.runs == 1
    assert "by 1 earlier run on this device" in equal.words and json.dumps(equal.as_dict())
    tune = {t.stage: t for t in longer.stages}["tune"]
    assert tune.low == pytest.approx(3.0, rel=1e-3) and tune.high == pytest.approx(24.0, rel=1e-3)


def test_runs_that_tell_nothing_are_left_out(runs, ended):
    ended(3.0, {"device": "another card"})
    ended(3.0, dtype="bfloat16")
    resumed = ended(3.0)
    resumed.event(stage="load", seconds=1.0)
    failed = ended(3.0)
    failed.update(state="failed")
    damaged = ended(3.0)
    damaged.path("environment.json").write_text("[")
    imported = ended(3.0)
    files.write_json(imported.path(store.IMPORTED), {})
    gone = ended(3.0)
    text = gone.path("config.yaml").read_text()
    gone.path("config.yaml").write_text(text.replace("demo:teacher", "/nowhere/at/all"))
    assert estimate(runs).runs == 0
    shutil.rmtree(failed.folder)
    ended(3.0)
    assert estimate(runs).runs == 1


def test_the_recorded_runs_tell_of_each_other(capsys):
    """Real runs: what the recorded ones took against what the other alone lets expect."""
    config = configs.parse({**QUICK, "device": "cpu"})
    told = [m for m in timing.measured(config, store.resources.assets() / "none") if m.recorded]
    if not told:
        pytest.skip("the recorded runs were made on another kind of device")
    assert len(told) == 2
    for one, other in (told, told[::-1]):
        for time in timing.estimate(config, one.work, earlier=[other]).stages:
            took = one.seconds[time.stage]
            if time.likely and time.stage not in ("load", "tune"):  # a warm pair; the oracle is not tuned
                with capsys.disabled():
                    print(f"\n{one.run} {time.stage}: measured/estimated {took / time.likely:.2f}", end="")
                assert 1 / 4 < took / time.likely < 4
                assert 0.4 * time.low < took < 2.5 * time.high
    whole = timing.estimate(config, told[0].work, earlier=told).whole
    assert whole.likely == pytest.approx(sum(told[0].seconds.values()), rel=0.3)
