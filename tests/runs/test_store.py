from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from paraknow import cli, config, files
from paraknow.errors import InputError
from paraknow.runs import compare, queue, store
from tests.pages.tables import ODD
from tests.runs import packed

MINIMAL = {"pair": {"teacher": "demo:teacher", "student": "demo:student"}, "task": "demo:people", "method": "seeking"}


@pytest.fixture
def run(runs):
    return store.create(config.parse(MINIMAL))


def own(root=None):
    return [r for r in store.all_runs(root) if not r.recorded]


def test_a_new_run_is_whole_and_queued(run, runs):
    assert run.config() == config.parse(MINIMAL)
    status = run.status()
    assert status["state"] == "queued" and status["schema_version"] == 1 and status["stages"] == []
    assert [r.id for r in own()] == [run.id] and queue.next_queued(runs).id == run.id
    assert [p.name for p in runs.iterdir() if not p.name.startswith(".")] == [run.id]


def test_running_without_a_lock_is_lost(run):
    run.update(state="running")
    assert run.status()["state"] == "lost"
    with run.lock():
        assert run.status()["state"] == "running" and run.locked()
        with pytest.raises(InputError, match="being worked on"), run.lock():
            pass


def test_oldest_queued_run_comes_first(runs):
    """Also within one second, where ids differ only in their random end."""
    made = [store.create(config.parse(MINIMAL)) for _ in range(8)]
    assert [r.id for r in own()] == [r.id for r in reversed(made)]
    for index, run in enumerate(made):
        assert queue.next_queued(runs).id == run.id
        if index % 2:
            run.update(state="done")
        else:
            run.cancel()
            assert run.status()["state"] == "cancelled"
    assert queue.next_queued(runs) is None


def test_damaged_files_are_said_not_raised(run):
    run.path("status.json").write_text("{")
    assert "cannot be read" in run.status()["error"]
    assert store.summary(run)["state"] == "failed"
    run.path("config.yaml").write_text("{")
    assert store.summary(run)["method"] is None
    with pytest.raises(InputError, match="YAML"):
        run.config()
    run.update(state="done")
    assert run.status()["state"] == "done"
    run.event(stage="tune", step=1)
    with run.path("events.jsonl").open("a") as stream:
        stream.write('{"torn')
    assert [e["step"] for e in run.events()] == [1]


def test_a_full_disk_can_still_be_written_down(run, monkeypatch):
    real, calls = files.write_json, []

    def full(path, values):
        calls.append(run.path(".reserve").exists())
        if calls[-1]:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, values)

    monkeypatch.setattr(files, "write_json", full)
    run.update(state="failed", error="no space")
    assert calls == [True, False] and run.status()["state"] == "failed"


def test_find_and_delete(run, runs):
    assert store.find(run.id[:-2]).id == run.id
    for bad in ("nothing", "../..", ""):
        with pytest.raises(InputError):
            store.find(bad)
    with run.lock(), pytest.raises(InputError, match="being worked on"):
        store.delete(run)
    store.delete(run)
    assert not own() and {p.name for p in runs.iterdir()} <= {".index.sqlite", ".queue.lock"}


def test_comparison_shows_only_what_differs():
    other = {**MINIMAL, "locate": {"seeds": 16}, "method": {"name": "seeking", "rank": 4}}
    found = compare.differences(config.parse(MINIMAL), config.parse(other))
    assert found == [
        {"setting": "locate.seeds", "first": 32, "second": 16},
        {"setting": "method.rank", "first": None, "second": 4},
    ]
    row = {"suite": "s", "group": "all", "model": "m", "accuracy": 0.5, "delta": 0.1, "delta_ci": [0, 0.2]}
    assert compare.results([row], [])[0] | {"second_delta": None} == compare.results([row], [])[0]


def test_files_are_whole_or_absent(tmp_path):
    path = tmp_path / "x.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, {"a": float("nan")})
    with pytest.raises(KeyError), files.replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert json.loads(path.read_text()) == {"schema_version": 1, "a": 1}
    with pytest.raises(KeyError), files.replacing_folder(tmp_path / "d"):
        raise KeyError
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize("number", range(4))
def test_odd_files_are_listed_and_shown(number: int, runs: Path, capsys: pytest.CaptureFixture) -> None:
    """Valid JSON with fields of other kinds, nesting without end, tables cut in the middle: never a traceback."""
    run = packed.finished(runs)
    for name, texts in ODD.items():
        run.path(*name.split("/")).write_text(texts[number])
    items = run.path("evaluate", "items.parquet")
    items.write_bytes(items.read_bytes()[: items.stat().st_size // (number + 1) - 1])
    facts = store.summary(run)
    assert facts["id"] == run.id and facts["state"] in store.STATES and json.dumps(facts)
    assert isinstance(run.events(), list) and isinstance(run.status(), dict)
    for words in (["list"], ["show", run.id], ["items", run.id, "--model", "zero"], ["rescore", run.id]):
        with pytest.raises(SystemExit) as stop:
            cli.main(["runs", *words])
        said = capsys.readouterr()
        assert stop.value.code == (0 if words == ["list"] else 2) and "Traceback" not in said.err
        assert said.err == "" or said.err.count("\n") == 1
    with pytest.raises(SystemExit) as stop:
        cli.main(["runs", "export", run.id, "-o", str(runs / "x.zip")])
    assert stop.value.code == 2 and not (runs / "x.zip").exists()
