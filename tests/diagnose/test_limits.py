"""Where rules end: what is too little to judge, what only looks like a fault, and values that no run writes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from paraknow import config
from paraknow.diagnose import Evidence, Finding, findings
from paraknow.diagnose.answers import _risen, reciprocal_rank
from paraknow.diagnose.training import ROUNDING
from paraknow.evaluate import statistics
from tests.diagnose import made
from tests.diagnose.made import VALUES, of, sound

STEP = np.arange(12)
FALLS, LEVEL = 1 - 0.05 * STEP + 0.02 * np.cos(STEP), 1 + 0.1 * np.cos(STEP)


def one(rule: str, evidence: Evidence) -> Finding:
    (found,) = of(rule, evidence)
    return found


def layered(*curves: np.ndarray) -> pd.DataFrame:
    """One model's losses, layer after layer, each on a loss of its own size."""
    joined = np.concatenate([(k + 1) * curve for k, curve in enumerate(curves)])
    layers = np.repeat(np.arange(len(curves)), [len(c) for c in curves])
    about = {"label": "semalign", "seed": "0", "step": np.arange(len(joined)) + 1}
    return pd.DataFrame({**about, "loss": joined, "layer": layers})


def semalign(losses: pd.DataFrame) -> Evidence:
    run = config.parse({**VALUES, "method": {"name": "semalign"}})
    settings = {"semalign": {"learning_rate": 3e-4, "epochs": 5}}
    return sound(config=run, losses=losses, checks=None, settings=settings, layerwise=["semalign"])


def test_layers_trained_one_after_another_are_judged_each_by_its_own_loss() -> None:
    assert one("loss", semalign(layered(FALLS, FALLS, FALLS))).severity == "fine"  # though the joined curve rises
    unread = one("loss", semalign(layered(FALLS, FALLS, FALLS).drop(columns="layer")))
    assert unread.severity == "not checked" and "layer after layer" in unread.says
    away = one("loss", semalign(layered(FALLS, FALLS[::-1], FALLS)))
    assert away.severity == "blocking" and "semalign, seed 0 (layer 1)" in away.says
    assert [r.changes for r in away.remedies] == [{"method.learning_rate": 1e-4}]
    assert one("loss", semalign(layered(FALLS, LEVEL, FALLS))).severity == "note"
    still = one("loss", semalign(layered(LEVEL, LEVEL)))
    assert still.severity == "warning" and {"method.epochs": 10} in [r.changes for r in still.remedies]


def against(group: str, claim: bool, *controls: str, reached: float = 0.0) -> list[dict[str, Any]]:
    """Rows whose examined method is held, on one group, against controls that reached so much of its gain."""
    rows = made.rows()
    for row in rows:
        if row["model"] == "seeking" and row["group"] == group:
            delta, low = row["delta"] - reached, row["delta_ci"][0] - reached
            row["against"] = [{"control": c, "delta": delta, "delta_ci": [low, delta + 0.1]} for c in controls]
            row["claim"] = claim
    return rows


def test_that_controls_learn_the_shown_facts_too_is_in_nobodys_way() -> None:
    found = one("gain-above-controls", sound(rows=against("shown", False, "zero", "seeking+noise", reached=0.8)))
    assert found.severity == "note" and "never" not in found.says
    found = one("gain-above-controls", sound(rows=against("never_shown", False, "zero", "seeking+noise", reached=0.8)))
    assert found.severity == "blocking"


def test_the_student_itself_is_no_control_to_claim_by() -> None:
    alone = sound(rows=against("never_shown", True, "zero"))
    found = one("crossed", alone)
    assert found.severity == "note" and "No control but the student itself" in found.says
    rows = [r | {"against": [{"control": "zero"}]} if r.get("against") else r for r in alone.rows or ()]
    assert one("gain-above-controls", sound(rows=rows)).severity == "not checked"
    assert one("crossed", sound()).severity == "good"


@pytest.mark.parametrize(("lost", "said"), [(3, False), (20, True)])
def test_a_control_harms_only_where_it_measurably_loses(lost: int, said: bool) -> None:
    rows = [r for r in made.rows(known=(0, 9)) if (r["model"], r["group"]) != ("seeking+noise", "known")]
    rows.append(made.row("seeking+noise", "known", 0, lost))
    for row in rows:
        if row["model"] == "seeking" and row["group"] == "known":
            row["against"] = [{"control": "seeking+noise", "delta": -0.1, "delta_ci": [-0.25, 0.05]}]
    found = one("forgetting", sound(rows=rows))
    assert found.severity == "warning" and ("So does the control" in found.says) is said


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("starts", "seed"),
        ("changes", "layer"),
        ("budgets", "added"),
        ("blocks", "teacher_layer"),
        ("blocks", "student_layer"),
        ("stitching", "teacher_layer"),
        ("aligned", "kinship"),
    ],
)
@pytest.mark.parametrize("value", [float("inf"), "text"])
def test_values_that_no_run_writes_break_nothing(table: str, column: str, value: Any) -> None:
    held = getattr(sound(), table).astype({column: object})
    held.loc[held.index[0], column] = value
    spoiled = sound(items=made.items(n=4), **{table: held if value == "text" else held.astype({column: float})})
    found = findings(spoiled)
    assert {f.severity for f in found} & {"good", "fine"}  # the other rules have their say
    json.dumps([f.plain() for f in found], allow_nan=False, default=float)


@pytest.mark.parametrize("source", ["stitching", "blocks", "environment"])
def test_models_of_a_million_layers_are_not_drawn(source: str) -> None:
    far = {"stitching": made.stitching(), "blocks": made.blocks()}
    changed: Any = {"models": {"teacher": {"layers": 10**6}}}
    if source in far:
        changed = far[source].replace({"teacher_layer": {made.LAYERS - 1: 10**6}})
    found = one("pairing-crosses-depth", sound(**{source: changed}))
    assert found.severity == "not checked" and "1,000" in found.says


@pytest.mark.parametrize(("kinship", "severity"), [(0.34, "warning"), (0.5, "note"), (0.67, "fine")])
def test_kinship_between_the_measured_ranges_is_not_judged(kinship: float, severity: str) -> None:
    found = one("strangers", sound(aligned=sound().aligned.assign(kinship=kinship)))
    assert found.severity == severity and ("cannot tell" in found.says) is (severity == "note")


def test_kinship_counts_only_where_layers_were_paired_by_it() -> None:
    low = sound().aligned.assign(kinship=0.3)
    assert one("strangers", sound(aligned=low, settings={"other": {"pairing": "located"}})).severity == "not checked"


@pytest.mark.parametrize(("control", "title"), [(6, "Something arrived"), (1, "as the controls")])
def test_likelier_answers_are_held_against_the_controls(control: int, title: str) -> None:
    found = one("not-read-out", sound(items=made.items(right=0.0, rank=1, control=control)))
    assert found.severity == "note" and title in found.title


def test_two_measures_need_wider_intervals_than_one() -> None:
    part = made.items(right=0.5, rank=1)
    part["place"] = [
        reciprocal_rank(*v) for v in zip(part.candidates, part.candidate_logprobs, part.target, strict=True)
    ]
    risen = _risen(part, "seeking", "student", 0)
    assert risen is not None
    wide = part.pivot_table(index="doc_id", columns=["model", "seed"], values="place")
    gain = (wide["seeking"].to_numpy() - wide["student"].to_numpy()).T
    mean, low, high = risen[1]
    once = statistics.paired_bootstrap(gain, 0, 1000)
    assert mean == pytest.approx(gain.mean()) and low < once[0] and high > once[1]


def overlaps(*values: float) -> pd.DataFrame:
    about = {"about": "split_half", "model": "teacher", "task": "t", "other": "", "n": 8, "what": "block"}
    return pd.DataFrame({"module": "q", "layer": range(len(values)), "value": values, "chance": 0.1}).assign(**about)


def test_two_matrices_that_agree_well_but_not_alike_are_too_few() -> None:
    found = one("blocks-jump", sound(agreement=overlaps(0.55, 0.95)))
    assert found.severity == "not checked" and "too few matrices" in found.says
    assert one("blocks-jump", sound(agreement=overlaps(0.02, 0.08))).severity == "warning"
    assert one("blocks-jump", sound(agreement=overlaps(*[0.05, 0.17] * 20))).severity == "warning"  # 0.01 over chance


def test_what_is_set_already_is_no_remedy() -> None:
    whole = config.parse({**VALUES, "locate": {"structure": "rows_columns"}})
    found = one("blocks-jump", sound(config=whole, agreement=overlaps(0.02, 0.08)))
    assert found.remedies and not any("locate.structure" in r.changes for r in found.remedies)


def test_a_change_that_rounding_eats_is_a_note_and_larger_steps_are_for_what_is_tuned() -> None:
    small = sound(changes=made.table(norm=1e-9, weight_norm=5.0))
    found = one("change-size", small)
    assert found.severity == "note" and [list(r.changes) for r in found.remedies] == [["tune.learning_rate"]]
    assert not one("change-size", replace(small, losses=None)).remedies
    assert {of_type / (2.0 ** (1 - bits)) for of_type, bits in zip(ROUNDING.values(), (24, 8, 11), strict=True)} == {
        0.5
    }


def test_a_reload_without_a_number_is_no_reload() -> None:
    whole = dict(sound().reload or {})
    values = whole["largest_difference"] | {"seeking/0": None}
    for starts in (sound().starts, None):
        found = one("reload", sound(reload=whole | {"largest_difference": values}, starts=starts))
        assert found.severity == "warning" and "seeking/0" in found.says
