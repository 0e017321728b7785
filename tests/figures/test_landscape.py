"""The plot of similarity against knowledge."""

from __future__ import annotations

import pandas as pd

from paraknow.figures import landscape
from paraknow.runs.landscape import COLUMNS, KNOWLEDGE, SIMILARITY

NAMES = {**SIMILARITY, **KNOWLEDGE}


def rows() -> pd.DataFrame:
    lines = [
        {
            "source": "run",
            "run": "r1",
            "model": "<b>m</b>",
            "pair": "a → b",
            "kind": "examined",
            "cka": 0.8,
            "share": 0.1,
        }
        | {"share_lo": 0.0, "share_hi": 0.3, "n": 90},
        {
            "source": "run",
            "run": "r2",
            "model": "m",
            "pair": "a → b",
            "kind": "control",
            "lineage": "stranger",
            "cka": 0.8,
        }
        | {"share": 0.0},
        {"source": "study", "run": "s", "model": "m", "pair": "clone, world 0", "kind": "examined", "lineage": "clone"}
        | {"cka": 0.9, "share": 1.0, "share_lo": 0.9, "share_hi": 1.1, "n": 30},
        {"source": "run", "run": "r3", "model": "m", "pair": "a → c", "kind": "examined", "cka": 0.8},
    ]
    frame = pd.DataFrame(lines, columns=[*COLUMNS, *SIMILARITY])
    numbers = [*SIMILARITY, "share", "share_lo", "share_hi", "n"]
    return frame.assign(**{c: pd.to_numeric(frame[c]) for c in numbers})


def test_runs_stand_before_the_packages_pairs_and_can_be_told_apart() -> None:
    figure = landscape.scatter(rows(), "cka", "share", NAMES, "note", "r1")
    marks = [t for t in figure.data if t.customdata is not None]
    assert [t.name for t in marks] == ["clone", "run here: stranger, control", "run here: lineage not known"]
    assert [t.customdata[0][0] for t in marks] == ["", "r2", "r1"]
    assert marks[0].marker.size > marks[-1].marker.size and marks[0].marker.opacity < 1  # the smaller one is clicked
    assert list(marks[-1].error_y.array) == [0.19999999999999998] and marks[0].error_y.array is None
    assert len({(t.marker.color, t.marker.symbol) for t in marks}) == 3
    assert "&lt;b&gt;m" in marks[-1].text[0] and "0.10 (0.00 to 0.30), n = 90" in marks[-1].text[0]
    assert figure.data[-1].name == "the chosen run" and list(figure.data[-1].x) == [0.8]
    assert figure.layout.xaxis.title.text == SIMILARITY["cka"] and figure.layout.title.subtitle.text == "note"


def test_what_lacks_a_value_is_not_drawn() -> None:
    empty = landscape.scatter(rows(), "kinship", "share", NAMES, "", None)
    assert not empty.data and empty.layout.annotations[-1].text == "nothing has both values"
    said = landscape.describe(rows(), "cka", "share", NAMES, ["all pairs: too few."])
    assert "clone: 1 mark" in said and "too few" in said and "lineage not known: 1 mark, mean 0.80 across" in said
    assert landscape.describe(rows(), "kinship", "share", NAMES, []).endswith("–.")
