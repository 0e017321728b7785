"""What a row says in plain words: every case, older rows, numbers as they are."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from paraknow import screen
from paraknow.evaluate import deltas, statistics, words


def row(delta=0.0, ci=(-0.04, 0.04), **more) -> dict:
    base = {"model": "seeking", "suite": "s", "group": "never_shown", "n": 225, "seeds": 1, "p_holm": 0.01}
    base |= {"delta": delta, "delta_ci": list(ci), "gained": 9, "lost": 12, "detectable": 0.0543, "against": []}
    return base | {"claim": None, "share": None, "share_ci": None, "share_missing": None} | more


NOISE = {"control": "seeking+noise", "delta": 0.02, "delta_ci": [-0.03, 0.07]}
WINDOW = {"control": "seeking+random_window", "delta": -0.1, "delta_ci": [-0.15, -0.05]}
ABOVE = {"control": "zero", "delta": 0.1, "delta_ci": [0.05, 0.15]}
UP = {"delta": 0.12, "ci": (0.05, 0.19)}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (row(), "No difference to the student that 225 items can show: under 5.4 points stays hidden."),
        (row(detectable=None, n=3), "No difference to the student that 3 items can show: too few for any difference."),
        (row(**UP), "12 points above the student (5 to 19)."),
        (row(**UP, against=[ABOVE], claim=True), "12 points above the student (5 to 19) and above every control."),
        (
            row(**UP, against=[ABOVE, NOISE], claim=False),
            "12 points above the student (5 to 19), but no better than the noise control (difference 2, −3 to 7).",
        ),
        (
            row(**UP, against=[NOISE, WINDOW], claim=False),
            "12 points above the student (5 to 19), but worse than the random window control (difference −10, −15 to "
            "−5) and 1 more.",
        ),
        (
            row(**UP, p_holm=0.21),
            "12 points above the student (5 to 19); among all comparisons of the run this may be chance (corrected p "
            "0.21).",
        ),
        (row(-0.3, (-0.36, -0.24)), "Forgets: 30 points below the student (24 to 36)."),
        (row(-0.01, (-0.015, -0.005), model="teacher"), "1.0 points below the student (0.5 to 1.5)."),
        (row(0.01, (0.001, 0.03)), "1 point above the student (0 to 3)."),
        (row(model="student", delta=None), "The student itself: what every difference is measured from."),
        (row(delta=None), "The difference to the student is missing."),
        (
            row(**UP, share=0.3, share_ci=[-0.001, 0.4]),
            "12 points above the student (5 to 19). Of what only the teacher knew, 0.30 arrived (0.00 to 0.40).",
        ),
        (
            row(**UP, share_missing="the surplus (-0.2 to 0.1 bits) may be 0"),
            "12 points above the student (5 to 19). The share that arrived is missing: the surplus (−0.2 to 0.1 bits) "
            "may be 0.",
        ),
    ],
)
def test_reading(given, said):
    assert words.reading(given) == said


def test_rows_of_older_runs_are_read():
    old = {k: v for k, v in row().items() if k not in ("detectable", "seeds", "p_holm", "share_missing")}
    assert words.hidden_below(old) == statistics.detectable(225, 21 / 225)
    assert words.reading(old).endswith("under 5.4 points stays hidden.")
    for lacking in ({"seeds": 3}, {"gained": None}, {"n": 0}):
        assert words.hidden_below(old | lacking) is None
    assert words.reading(old | {"seeds": 3}) == "No difference to the student that 225 items can show."
    bare = {**old, "delta": 0.2, "delta_ci": [0.1, 0.3], "against": [{"control": "zero"}], "claim": False}
    assert words.reading(bare) == "20 points above the student (10 to 30), but not above every control."


def items(model: str, correct: np.ndarray, seed: int = 0) -> pd.DataFrame:
    n = len(correct)
    frame = pd.DataFrame({"task": "s", "group": "all", "doc_id": range(n), "doc_hash": [str(i) for i in range(n)]})
    return frame.assign(
        model=model, seed=seed, correct=correct, logprob=-1.0, answer_tokens=1, candidates=None, target="x"
    )


def test_rows_carry_their_reading_and_what_stays_hidden(capsys):
    right = np.arange(100) < 20
    tables = [items("student", right, -1), items("seeking", np.arange(100) < 45), items("seeking+noise", right)]
    made = deltas.rows(pd.concat(tables), {"seeking": ["seeking+noise"]})
    student, seeking, noise = made
    assert student["detectable"] is None and "itself" in student["reading"]
    assert seeking["detectable"] == statistics.detectable(100, 0.25) == seeking["against"][0]["detectable"]
    assert seeking["claim"] is True and "above every control" in seeking["reading"]
    assert noise["detectable"] == statistics.detectable(100, 0.0) and "stays hidden" in noise["reading"]
    assert seeking["p_holm"] == pytest.approx(2 * seeking["p_mcnemar"])
    seeds = [items("seeking", np.random.default_rng(k).random(100) < 0.5, k) for k in range(3)]
    several = deltas.rows(pd.concat([tables[0], *seeds]), {})[1]
    low, high = several["delta_ci"]
    assert several["seeds"] == 3 and several["detectable"] == statistics.detectable_from(low, high)
    screen.delta_table(made)
    printed = capsys.readouterr().out
    assert f"seeking on s, all: {seeking['reading']}" in printed and "hidden below" in printed
