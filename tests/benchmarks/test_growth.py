from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import growth

SIZES = st.lists(st.integers(1, 10**6), min_size=2, max_size=6, unique=True)


@given(sizes=SIZES, exponent=st.floats(-3, 4), constant=st.floats(1e-6, 1e6))
def test_the_exponent_of_a_power_is_found(sizes, exponent, constant):
    times = [constant * size**exponent for size in sizes]
    assert growth.slope(sizes, times) == pytest.approx(exponent, abs=1e-6)


@given(times=st.lists(st.floats(1e-4, 1e4), min_size=4, max_size=4), scale=st.floats(1e-3, 1e3))
def test_neither_units_nor_the_smallest_size_matter(times, scale):
    found = growth.slope(growth.FACTORS, times)
    assert growth.slope([7 * f for f in growth.FACTORS], [scale * t for t in times]) == pytest.approx(found, abs=1e-6)


def test_a_cost_that_grows_too_fast_is_marked():
    slow = growth.Growth("a", "layers", 1.4, 1.3, 1.5, 1, "")
    assert not slow.held and slow.row()["exponent"] == "1.40 (too large)"
    assert growth.Growth("a", "layers", 1.2, 1.1, 1.3, 1, "").row()["exponent"] == "1.20"


def test_works_are_measured_by_turns():
    said = []
    found = growth.measured([lambda: said.append(0), lambda: said.append(1)], rounds=3)
    assert said == [0, 1] * 4 and found.shape == (3, 2) and (found >= 0).all()


def test_another_name_is_refused(capsys):
    assert growth.main(["speed"]) == 2 and "no such cost: speed" in capsys.readouterr().err
