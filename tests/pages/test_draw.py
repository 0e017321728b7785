"""What figures are told apart by: all of their content."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import pytest

from pages.parts import draw


@pytest.fixture(autouse=True)
def nothing_kept():
    draw.made.clear()
    yield
    draw.made.clear()


LONG = pd.DataFrame({"x": np.arange(60_000.0), "name": "a"})
LISTS = pd.DataFrame({"tokens": [np.array(["a", "b"]), ["c"]]})
ROW = pd.Series({"layer": 1, "cka": 0.25})


@pytest.mark.parametrize(
    "one, other",
    [
        (LONG, LONG.assign(x=LONG.x.where(LONG.x != 41_234, -1))),  # one cell of many
        (LONG, LONG.rename(columns={"x": "y"})),
        (LONG[:9], LONG[:9].astype({"x": int})),
        (LONG[:9], LONG[:9].set_axis(range(1, 10))),
        (LISTS, pd.DataFrame({"tokens": [np.array(["a", "b"]), ["d"]]})),
        (ROW, pd.Series({"layer": 1, "cka": 0.25 + 1e-15})),
        (np.arange(600_000), np.where(np.arange(600_000) == 412_345, 0, np.arange(600_000))),
        ({(0, 1), (2, 3)}, {(0, 1), (2, 4)}),
        (partial(max, 1), partial(max, 2)),
    ],
)
def test_a_figure_is_made_once_per_content(one, other) -> None:
    calls = []

    def make(value, more=0):
        calls.append(value)
        return len(calls)

    copied = one.copy() if hasattr(one, "copy") else one
    assert [draw.made(make, v) for v in (one, copied, other, one)] == [1, 1, 2, 1]
    assert draw.made(make, one, more=1) == 3, "a figure of other settings is another figure"
