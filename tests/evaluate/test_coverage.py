"""Coverage and false positives as published, on the coarse grids of `python -m benchmarks.statistics --quick`."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from benchmarks import statistics as study
from benchmarks import worlds
from paraknow.evaluate import statistics


@pytest.mark.parametrize("n", [50, 200])
def test_exact_coverage(n):
    """At least 93 % everywhere, at most 97 % where flips are many, false positives at most 5.5 %."""
    found = study.exact(n, 10)
    assert found["least coverage"] >= 0.93 and found["many flips: least"] >= 0.93
    assert found["most"] <= 0.97 and found["false positives"] <= 0.055 and found["held"]
    assert found["p ≤ 0.05, contains 0"] == 0


def test_sums_are_over_all_outcomes():
    outcomes = study.Outcomes(30)
    for gain, loss in ((0.0, 0.0), (0.01, 0.3), (0.5, 0.5), (1.0, 0.0)):
        part, chance = outcomes.chances(gain, loss)
        assert chance.sum() == pytest.approx(1, abs=1e-9)
        counts = np.arange(31)
        assert (chance.sum(axis=1) * counts[part[0]]).sum() == pytest.approx(30 * gain, abs=1e-7)
        assert (chance.sum(axis=0) * counts[part[1]]).sum() == pytest.approx(30 * loss, abs=1e-7)
    lo, hi = statistics.flip_interval(7, 4, 30)
    assert (outcomes.lo[7, 4], outcomes.hi[7, 4]) == (lo, hi) and np.isnan(outcomes.lo[20, 20])


@pytest.mark.parametrize("n", [50, 200, 1000])
def test_simulated_comparisons_agree(n):
    assert all(row["held"] for row in study.simulated(n, 2000))


def test_nothing_and_a_known_share_are_covered():
    found = {(r["n"], r["method"]): r for r in worlds.shares(12, 1000)}
    assert all(r["held"] for r in found.values())
    for name in ("student ÷ 2", "student ÷ 4", "student ÷ 10", "student ÷ 100", "student × 4"):
        assert found[75, name]["inside"] == found[225, name]["inside"] == 1
        assert abs(found[225, name]["mean share"]) < 1e-6


def test_the_command(monkeypatch, capsys):
    monkeypatch.setattr(worlds, "seeds", lambda count: [{"seeds": 2, "coverage": 0.95}])
    monkeypatch.setattr(worlds, "shares", lambda count, large: [{"inside": 0.9, "held": False}])
    monkeypatch.setattr(sys, "argv", ["statistics", "--quick", "--json"])
    assert study.main() == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["schema_version"] == 1 and printed["statistics"]["Share of bits, simulated"][0]["held"] is False
    monkeypatch.setattr(sys, "argv", ["statistics", "--quick"])
    assert study.main() == 1 and "least coverage" in capsys.readouterr().out


def test_worlds_with_seeds():
    rows = list(worlds.seeds(3))
    assert {r["seeds"] for r in rows} == {1, 2, 3, 5} and all(0 <= r["coverage"] <= 1 for r in rows)
