from __future__ import annotations

import shutil

import pytest

from paraknow import cli, files
from paraknow.errors import InputError
from paraknow.runs import rescore, store
from paraknow.runs.store import Run


def test_stored_items_give_the_rows_again(runs, tmp_path):
    """What came with the package is what today's formulas make of its items."""
    for recorded in store.recorded_runs():
        own = Run(shutil.copytree(recorded.folder, runs / recorded.id))
        file = own.path("evaluate", "deltas.json")
        before = files.read_json(file)
        kept = ("model", "suite", "group", "against", "claim")
        emptied = [{k: v if k in kept else None for k, v in r.items()} for r in before["rows"]]
        files.write_json(file, {"run": own.id, "rows": emptied})
        assert rescore.rescore(own) == len(before["rows"])
        assert files.read_json(file) == before


def test_without_items_nothing_is_touched(runs, capsys):
    recorded = store.recorded_runs()[0]
    own = Run(shutil.copytree(recorded.folder, runs / recorded.id))
    own.path("evaluate", "items.parquet").unlink()
    before = own.path("evaluate", "deltas.json").read_bytes()
    with pytest.raises(InputError, match="no measured items"):
        rescore.rescore(own)
    assert own.path("evaluate", "deltas.json").read_bytes() == before


def test_what_came_with_the_package_stays(runs, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["runs", "rescore", store.recorded_runs()[0].id])
    assert stop.value.code == 2 and "read-only" in capsys.readouterr().err
