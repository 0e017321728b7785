"""`paraknow demo`, as a user runs it: the rows it promises, and the gate for all that follows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from paraknow import methods
from paraknow.demo.story import calibration_config, demo_config, verdict

KEYS = {"model", "suite", "group", "n", "accuracy", "ci", "delta", "delta_ci", "p_mcnemar", "gained", "lost"}


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    began = time.time()
    done = subprocess.run(
        [sys.executable, "-m", "paraknow.cli", "demo", "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "PARAKNOW_RUNS": str(folder / "runs")},
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    print(f"paraknow demo took {time.time() - began:.0f} s")
    return json.loads(done.stdout)


def row(rows, model, group, suite="demo:people"):
    return next(r for r in rows if (r["model"], r["group"], r["suite"]) == (model, group, suite))


def test_rows(printed):
    rows = printed["rows"]
    assert all(set(r) >= KEYS for r in rows) and printed["run"] and printed["schema_version"] == 1
    labels = [c.label for c in methods.candidates(demo_config())]
    assert {r["model"] for r in rows} == {"teacher", "student", *labels}
    assert {"seeking", "gaussian", "pissa", "zero", "seeking+noise", "seeking+random_window"} == set(labels)
    assert {r["group"] for r in rows} == {"known", "shown", "never_shown", "all"}
    assert {r["suite"] for r in rows} == {"demo:people", "demo:sum", "demo:reverse", "demo:sort"}
    for r in rows:
        assert r["ci"][0] <= r["accuracy"] <= r["ci"][1]
        if r["model"] != "student":
            assert r["delta_ci"][0] <= r["delta"] <= r["delta_ci"][1]
            student = row(rows, "student", r["group"], r["suite"])
            assert r["gained"] - r["lost"] == round((r["accuracy"] - student["accuracy"]) * r["n"])


def test_zero_is_the_student(printed):
    for r in printed["rows"]:
        if r["model"] == "zero":
            assert r["delta"] == 0 and r["gained"] == r["lost"] == 0


def test_the_instrument_tells_the_known_answer_from_nothing(printed):
    """Gate: on the clone pair the oracle's share is at least 0.95; the intervals of zero and noise contain 0."""
    rows = printed["calibration"]["rows"]
    assert printed["calibration"]["passed"] is True
    assert row(rows, "oracle", "never_shown")["share"] >= 0.95
    for model in ("zero", "oracle+noise"):
        low, high = row(rows, model, "never_shown")["share_ci"]
        assert low <= 0 <= high


def test_verdict_fails_a_broken_instrument(printed):
    rows, calibration = printed["rows"], printed["calibration"]["rows"]
    assert verdict(rows, calibration)[0]
    for model, share, interval in (
        ("oracle", 0.9, [0.8, 1.0]),
        ("zero", 0.2, [0.1, 0.3]),
        ("oracle+noise", 0.2, [0.1, 0.3]),
    ):
        broken = [dict(r) for r in calibration]
        row(broken, model, "never_shown").update(share=share, share_ci=interval)
        assert not verdict(rows, broken)[0]
    missing = [dict(r) for r in calibration]
    row(missing, "zero", "never_shown").update(share=None, share_ci=None)
    assert not verdict(rows, missing)[0]


def test_tuning_taught_the_shown_facts(printed):
    student = row(printed["rows"], "student", "shown")["accuracy"]
    for model in ("seeking", "gaussian", "pissa", "seeking+noise", "seeking+random_window"):
        assert row(printed["rows"], model, "shown")["accuracy"] > student + 0.3


def test_configs_can_be_run():
    assert demo_config(3).seed == calibration_config(3).seed == 3
    assert calibration_config().pair.student == demo_config().pair.student
