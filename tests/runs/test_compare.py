"""Two runs held against each other, from whichever machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paraknow import cli, files
from paraknow.evaluate import statistics
from paraknow.runs import bundle, compare
from paraknow.runs.store import Run
from tests.runs import packed


def models(**hashes: str) -> dict[str, Any]:
    return {"models": {m: {"sha256": hashes.get(m, m[0] * 64)} for m in ("teacher", "student")}}


def test_a_run_from_elsewhere_is_paired_item_by_item(tmp_path: Path, runs: Path) -> None:
    """Its data had another name there; the hash says that they are the same."""
    mine = packed.finished(runs)
    away = packed.finished(
        tmp_path / "away", {"device": "H200", "versions": {"paraknow": "0.2.0"}}, task=["/x/facts.jsonl"]
    )
    packed.measured(away, packed.items("/x/facts.jsonl", {"seeking": "11101110", "other": "1" * 8}))
    there = bundle.import_(bundle.export(away, tmp_path / "a.zip"), runs).run
    found = compare.across(mine, there)
    assert {(r["what"], r["first"], r["second"]) for r in found.environment} >= {
        ("device", "cpu", "H200"),
        ("versions.paraknow", "0.1.0", "0.2.0"),
    }
    (note,) = found.notes
    assert "Versions or devices differ" in note
    by_model = {r["model"]: r for r in found.rows}
    assert set(by_model) == {"teacher", "student", "seeking", "zero"}  # `other` is in one of them
    row = by_model["seeking"]
    held = statistics.compare([True] * 3 + [False] + [True] * 3 + [False], [True] * 4 + [False] * 4)
    assert (row["n"], row["gained"], row["lost"], row["delta"]) == (8, 3, 1, 0.25)
    assert row["delta_ci"] == [held.lo, held.hi] and row["suite"] == "demo:people"
    assert (row["accuracy_first"], row["accuracy_second"]) == (0.5, 0.75)
    assert by_model["student"]["delta"] == 0 and row["p_holm"] >= row["p_mcnemar"]


@pytest.mark.parametrize("model", ["teacher", "student"])
def test_other_models_are_not_comparable(model: str, runs: Path) -> None:
    first, second = packed.finished(runs), packed.finished(runs, models(**{model: "9" * 64}))
    found = compare.across(first, second)
    assert found.rows == [] and f"The {model}s differ" in found.notes[0] and "not comparable" in found.notes[0]
    assert f"models.{model}.sha256" in {r["what"] for r in found.environment}


def test_other_data_are_not_comparable(runs: Path) -> None:
    first, second = packed.finished(runs), packed.finished(runs, {"data": {"demo:people": "e" * 64}})
    found = compare.across(first, second)
    assert found.rows == [] and "The data of demo:people differ" in found.notes[0]
    third = packed.finished(runs, {"data": {"demo:sum": "f" * 64}})
    assert "no data in common" in compare.across(first, third).notes[0]


def test_items_that_are_not_the_same_are_left_out(runs: Path) -> None:
    first, second = packed.finished(runs), packed.finished(runs)
    table = packed.items()
    packed.measured(second, table.assign(doc_hash=table.doc_hash.where(table.doc_id < 5, "changed")))
    found = compare.across(first, second)
    assert "Only 5 items are the same in both runs (of 8 and 8)" in found.notes[0]
    assert {r["n"] for r in found.rows} == {5}
    packed.measured(second, table.assign(doc_hash=table.doc_hash + "x"))
    assert "not measured on the same items" in compare.across(first, second).notes[0]


def test_seeds_are_paired_by_their_number(runs: Path) -> None:
    first, second, third = (packed.finished(runs) for _ in range(3))
    packed.measured(first, packed.items(seeds=(0, 1, 2)))
    packed.measured(second, packed.items(right={"seeking": "11111111"}, seeds=(1, 2, 5)))
    row = next(r for r in compare.across(first, second).rows if r["model"] == "seeking")
    assert row["seeds"] == 2 and row["delta"] == 0.5
    packed.measured(third, packed.items(seeds=(7,)))
    found = compare.across(first, third)
    assert {r["model"] for r in found.rows} == {"teacher", "student"}
    assert "seeking: the runs have no seed in common" in " ".join(found.notes)


def test_what_is_missing_is_said(runs: Path, capsys: pytest.CaptureFixture) -> None:
    first, second = packed.finished(runs), packed.finished(runs)
    second.path("environment.json").write_text('{"models": 3}')
    assert "does not say which models" in compare.across(first, second).notes[0]
    files.write_json(second.path("environment.json"), {"models": {"teacher": {}}})
    assert "Whether the teachers are the same is not known" in " ".join(compare.across(first, second).notes)
    second.path("evaluate", "items.parquet").write_bytes(b"PAR1")
    found = compare.across(first, second)
    assert found.rows == [] and "items.parquet of run" in found.notes[-1] and "damaged" in found.notes[-1]
    printed = compared(first, second, capsys)
    assert printed["paired"] == [] and printed["notes"] == found.notes
    second.path("evaluate", "deltas.json").write_text('{"rows": [1]}')
    with pytest.raises(SystemExit) as stop:
        cli.main(["runs", "compare", first.id, second.id])
    assert stop.value.code == 2 and "deltas.json of run" in capsys.readouterr().err


def compared(first: Run, second: Run, capsys: pytest.CaptureFixture) -> dict[str, Any]:
    with pytest.raises(SystemExit) as stop:
        cli.main(["runs", "compare", first.id, second.id, "--json"])
    assert stop.value.code == 0
    return json.loads(capsys.readouterr().out)
