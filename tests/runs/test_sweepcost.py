"""What a sweep would cost: stages shared as the sweep shares them, and points on slots in the sweep's own order."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from paraknow import cli, config
from paraknow.errors import InputError
from paraknow.runs import sweepcost
from paraknow.runs.sweepcost import Planned, schedule
from tests.test_bad_input import QUICK

RANKS = {"name": "ranks", "base": QUICK, "grid": {"method.rank": [2, 4], "tune.epochs": [1, 2]}}
CONFIG = config.parse(QUICK)
FRESH = config.parse({**QUICK, "evaluate": {"reuse": False}})


def point(donor: int | None, taken: tuple[str, ...] = (), wanted: config.RunConfig = FRESH) -> Planned:
    return Planned("", wanted, (), donor, taken, None, None)


@pytest.fixture(scope="module")
def planned():
    return sweepcost.plan(RANKS)


def test_what_points_take_over(planned):
    assert [p.donor for p in planned.points] == [None, 0, 0, 2]
    both = ("locate", "similarity")
    assert [p.taken for p in planned.points] == [(), both, ("locate",), both]
    assert (planned.located, planned.compared) == (1, 2)


def test_operations_of_all_points(planned):
    first, second = (p.costs for p in planned.points[:2])
    assert second["tune"] == pytest.approx(2 * first["tune"])
    reused = sum(p.costs["pair"] for p in planned.points[1:]) if CONFIG.evaluate.reuse else 0
    own = sum(p.own(p.costs) for p in planned.points)
    assert planned.flops == pytest.approx(own - reused)
    assert planned.alone() > own > planned.flops
    assert planned.spans(1) == planned.flops and planned.spans(2) < planned.flops


def test_points_wait_for_the_one_that_locates():
    cost = {"load": 1.0, "locate": 5.0, "similarity": 2.0, "tune": 3.0}
    points = [point(None), *[point(0, ("locate", "similarity"))] * 3]
    assert schedule(points, [cost] * 4, 1) == 1 + 7 + 4 * 3  # one slot keeps its models
    assert schedule(points, [cost] * 4, 4) == 8 + 1 + 3  # the others begin when the first has located
    assert schedule(points, [cost] * 4, 4, start=10) == 22


def test_unchanged_models_are_asked_once_where_answers_are_kept():
    cost = {"evaluate": 10.0, "pair": 4.0}
    for wanted, whole in ((CONFIG, 10 + 6 + 6), (FRESH, 30)):
        assert schedule([point(None, (), wanted)] * 3, [cost] * 3, 1) == whole
    assert schedule([point(None, (), CONFIG)] * 2, [cost] * 2, 2) == 10  # side by side nobody has answered yet


@settings(max_examples=60, deadline=None)
@given(tunes=st.lists(st.integers(1, 20), min_size=1, max_size=12), slots=st.integers(1, 15), once=st.integers(0, 30))
def test_bounds_of_every_schedule(tunes, slots, once):
    costs = [{"locate": float(once), "tune": float(t)} for t in tunes]
    points = [point(None), *[point(0, ("locate", "similarity"))] * (len(tunes) - 1)]
    took = schedule(points, costs, slots)
    whole = once + sum(tunes)
    assert took >= max(once + min(tunes), whole / slots, once + max(tunes)) - 1e-9
    assert took <= whole and (slots > 1 or took == whole)
    assert took <= once + sum(tunes) / min(slots, len(tunes)) + max(tunes) + 1e-9  # as any list schedule


def test_the_command(capsys, runs, tmp_path):
    path = tmp_path / "ranks.yaml"
    path.write_text(yaml.safe_dump(RANKS))
    with pytest.raises(SystemExit) as stop:
        cli.main(["sweep", str(path), "--dry-run", "--gpus", "2", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert stop.value.code == 0 and not runs.exists()
    cost = found["cost"]
    assert found["sweep"] == "ranks" and cost["gpus"] == 2 and cost["located"] == 1
    assert cost["flops_in_a_row"] < cost["flops"] < cost["flops_alone"]
    assert [row["from"] for row in cost["points"]] == [None, 1, 1, 3]


def test_a_point_that_cannot_work_is_named():
    with pytest.raises(InputError, match=r"point 2 \(method.rank=4000\): .* above the shorter side"):
        sweepcost.plan({**RANKS, "grid": {"method.rank": [2, 4000]}})


def test_words(planned):
    said = " ".join(planned.words(3))
    assert "4 points: 1 locate and 2 compare" in said and "on 3 GPUs" in said
