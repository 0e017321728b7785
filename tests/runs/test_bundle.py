"""Bundles: what goes in, what comes out elsewhere, and that it stays as it came."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from paraknow import __version__, cli, files
from paraknow.errors import InputError, RunError
from paraknow.runs import bundle, calibrate, queue, rescore, reuse, store, sweep, upgrades, worker
from paraknow.runs.store import Run
from tests.runs import packed


@pytest.fixture
def run(runs: Path) -> Run:
    return packed.finished(runs)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """The runs folder of another machine; it does not exist yet."""
    return tmp_path / "elsewhere" / "runs"


def test_a_run_travels(run: Run, tmp_path: Path, elsewhere: Path) -> None:
    run.path("worker.log").write_text("secret")
    run.path("cancel").touch()
    file = bundle.export(run, tmp_path / "a.zip")
    with zipfile.ZipFile(file) as archive:
        names = set(archive.namelist())
        about = json.loads(archive.read("bundle.json"))
    assert names == {"bundle.json", "config.yaml", "status.json", "environment.json", "events.jsonl"} | {
        "locate/layers.parquet",
        "locate/maps.safetensors",
        "evaluate/items.parquet",
        "evaluate/deltas.json",
    }
    assert about["schema_version"] == 1 and about["paraknow"] == __version__ and about["run"] == run.id
    assert {f["path"] for f in about["files"]} == names - {"bundle.json"}
    there, known = bundle.import_(file, elsewhere)
    assert not known and there.id == run.id and there.imported and there.read_only and not run.read_only
    assert there.config() == run.config() and there.events() == run.events()
    for name in names - {"bundle.json", "status.json"}:
        if not name.endswith((".json", ".yaml", ".jsonl")):
            assert there.path(name).read_bytes() == run.path(name).read_bytes()
    status = there.status()
    assert status["state"] == "done" and not {"pid", "host"} & set(status)
    mark = files.read_json(there.path("imported.json"))
    assert mark["from"] == __version__ and mark["schema_version"] == 1 and len(mark["sha256"]) == 64
    assert [p.name for p in elsewhere.iterdir() if p.name[0] != "."] == [run.id]


def test_importing_again_is_known_and_other_content_gets_a_name(run: Run, tmp_path: Path, elsewhere: Path) -> None:
    file = bundle.export(run, tmp_path / "a.zip")
    assert bundle.import_(file).known  # the run it was made of is here
    first = bundle.import_(file, elsewhere)
    again = bundle.import_(file, elsewhere)
    assert again.known and again.run.id == first.run.id == run.id
    run.event(warning="later")
    other = bundle.export(run, tmp_path / "b.zip")
    second = bundle.import_(other, elsewhere)
    assert not second.known and second.run.id.startswith(f"{run.id}-") and bundle.import_(other, elsewhere).known
    assert bundle.import_(bundle.export(second.run, tmp_path / "c.zip"), elsewhere).known  # travels on
    assert len([p for p in elsewhere.iterdir() if p.name[0] != "."]) == 2


def test_places_of_the_machine_are_shortened(runs: Path, tmp_path: Path, elsewhere: Path) -> None:
    home = "/home/somebody/secret"
    pair = {"teacher": f"{home}/large", "student": f"{home}/old/large"}
    tasks = [f"{home}/facts.jsonl", "data/facts.jsonl", "../up/facts.jsonl"]
    run = packed.finished(runs, pair=pair, task=tasks)
    run.event(warning=f"evaluate: {tasks[0]} is small; see {home}/deep/log.txt and https://x.org/a/b.")
    run.update(state="failed", error=f"no such file: '{home}/x/y.bin'")
    packed.adapter(run, f"{home}/old/large")
    file = bundle.export(run, tmp_path / "a.zip", adapters=True)
    with zipfile.ZipFile(file) as archive:
        assert [name for name in archive.namelist() if b"secret" in archive.read(name)] == []
    there = bundle.import_(file, elsewhere).run
    config = there.config()
    assert config.pair.teacher == "large" and config.pair.student == "large-2"
    assert config.task == ("facts.jsonl", "data/facts.jsonl", "facts.jsonl-2")
    assert set(pd.read_parquet(there.path("evaluate", "items.parquet")).task) == {"facts.jsonl"}
    assert set(pd.read_parquet(there.path("locate", "layers.parquet")).task) == {"facts.jsonl"}
    facts = files.read_json(there.path("environment.json"))
    assert facts["data"] == {"facts.jsonl": "d" * 64} and facts["models"]["teacher"]["sha256"] == "t" * 64
    assert {r["suite"] for r in files.read_json(there.path("evaluate", "deltas.json"))["rows"]} == {"facts.jsonl"}
    assert there.events()[-1]["warning"] == "evaluate: facts.jsonl is small; see log.txt and https://x.org/a/b."
    assert there.status()["error"] == "no such file: 'y.bin'"
    written = json.loads(there.path("adapters", "seeking", "0", "adapter_config.json").read_text())
    assert written == {"base_model_name_or_path": "large-2", "r": 8}


def test_what_is_not_exported(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ends in .zip"):
        bundle.export(run, tmp_path / "a.tar")
    (tmp_path / "a.zip").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        bundle.export(run, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_text() == "mine"
    assert zipfile.is_zipfile(bundle.export(run, tmp_path / "a.zip", replace=True))
    run.update(state="running")
    with run.lock(), pytest.raises(InputError, match="running; a bundle is made of one that has ended"):
        bundle.export(run, tmp_path / "b.zip")
    run.update(state="done")
    run.path("evaluate", "deltas.json").write_text("{")
    with pytest.raises(InputError, match="deltas.json is damaged"):
        bundle.export(run, tmp_path / "b.zip")
    run.path("evaluate", "deltas.json").unlink()
    run.path("evaluate", "deltas.json").symlink_to("/etc/hostname")
    with pytest.raises(InputError, match="deltas.json is a link"):
        bundle.export(run, tmp_path / "b.zip")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "runs"]


def test_an_imported_run_stays_as_it_came(
    run: Run, tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    packed.adapter(run, "demo:student")
    run.update(state="lost")
    there = bundle.import_(bundle.export(run, tmp_path / "a.zip", adapters=True), elsewhere).run
    before = packed.snapshot(there.folder)
    monkeypatch.setattr(queue, "ensure_workers", lambda *a, **k: pytest.fail("a worker was started"))
    for change in (queue.resume, worker.execute, rescore.rescore):
        with pytest.raises(InputError, match="is read-only: it was imported"):
            change(there)
    monkeypatch.setenv("PARAKNOW_RUNS", str(elsewhere))
    for words in (["run", "--resume"], ["runs", "cancel"], ["runs", "rescore"], ["export"]):
        with pytest.raises(SystemExit) as stop:
            cli.main([*words, there.id, *(["--merged", str(tmp_path / "m")] if words == ["export"] else [])])
        assert stop.value.code == 2 and "is read-only" in capsys.readouterr().err
    assert calibrate.existing(there.config()) is None  # never taken for one's own
    monkeypatch.setattr(reuse, "unchanged", lambda *a: True)
    point, models = SimpleNamespace(digest="d", config=there.config()), SimpleNamespace(teacher=None, student=None)
    assert sweep._run_of({"runs": {"d": there.id}}, point, models, elsewhere) is None
    assert packed.snapshot(there.folder) == before
    store.delete(there)
    assert not there.folder.exists()


def test_bundles_of_schema_0_are_brought_up(run: Run, tmp_path: Path, elsewhere: Path) -> None:
    """A packed run folder as the first versions left it: no schema_version, rows without a reading."""
    folder = Path(shutil.copytree(run.folder, tmp_path / "old" / run.id))
    for name in ("status.json", "environment.json", "evaluate/deltas.json"):
        values = files.read_json(folder / name)
        del values["schema_version"]
        if name == "evaluate/deltas.json":
            values["rows"] = [
                {k: v for k, v in row.items() if k not in ("reading", "detectable", "bits_ci")}
                for row in values["rows"]
            ]
        if name == "status.json":
            values["state"] = "running"
        (folder / name).write_text(json.dumps(values))
    packed.adapter(Run(folder), "x")
    (folder / "worker.log").write_text("x")
    (folder / "align" / "seeking").mkdir(parents=True)
    (folder / "align" / "seeking" / "0.safetensors").write_bytes(b"x")
    file = Path(shutil.make_archive(str(tmp_path / "old"), "zip", tmp_path / "old"))
    there, known = bundle.import_(file, elsewhere)
    assert not known and there.id == run.id and bundle.import_(file, elsewhere).known
    assert not there.path("worker.log").exists() and not there.path("align").exists()
    assert there.status()["state"] == "lost" and there.status()["schema_version"] == 1
    brought = files.read_json(there.path("evaluate", "deltas.json"))["rows"]
    today = files.read_json(run.path("evaluate", "deltas.json"))["rows"]
    assert [r["reading"] for r in brought] == [r["reading"] for r in today]
    assert [r["detectable"] for r in brought] == [r["detectable"] for r in today]
    assert [r["accuracy"] for r in brought] == [r["accuracy"] for r in today] and brought[0]["bits_ci"] is None
    assert files.read_json(there.path("imported.json"))["bundle_schema"] == 0
    assert set(upgrades.UPGRADES) == set(range(bundle.SCHEMA_VERSION))


@pytest.mark.parametrize("tool", ["python -m zipfile", "a folder around", "zip", "7z"])
def test_zips_of_other_tools(tool: str, run: Run, tmp_path: Path, elsewhere: Path) -> None:
    """Unpacked and packed again: the same run."""
    folder = tmp_path / "unpacked"
    with zipfile.ZipFile(bundle.export(run, tmp_path / "a.zip")) as archive:
        archive.extractall(folder)
    file = tmp_path / "b.zip"
    inside = [p.name for p in folder.iterdir()]
    words = {"zip": ["zip", "-qr", file, "."], "7z": ["7z", "a", "-bd", file, "."]}.get(tool)
    if tool == "a folder around":
        shutil.make_archive(str(tmp_path / "b"), "zip", tmp_path, "unpacked")
    elif words is None:
        subprocess.run([sys.executable, "-m", "zipfile", "-c", file, *inside], cwd=folder, check=True)
    elif shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    else:
        subprocess.run(words, cwd=folder, check=True, capture_output=True)
    there = bundle.import_(file, elsewhere).run
    assert there.id == run.id and there.config() == run.config()


def test_the_commands(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "a.zip"

    def call(*words: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as stop:
            cli.main(list(words))
        assert stop.value.code == code
        captured = capsys.readouterr()
        return captured.err if code else captured.out

    made = json.loads(call("runs", "export", run.id, "-o", str(file), "--json"))
    assert made == {"schema_version": 1, "run": run.id, "file": str(file), "bytes": file.stat().st_size}
    assert "exists already" in call("runs", "export", run.id, "-o", str(file), code=2)
    assert "MiB" in call("runs", "export", run.id, "-o", str(file), "--force")
    monkeypatch.setenv("PARAKNOW_RUNS", str(tmp_path / "other"))
    taken = json.loads(call("runs", "import", str(file), "--json"))
    assert taken["run"] == run.id and taken["known"] is False and Path(taken["folder"]).is_dir()
    assert "here already" in call("runs", "import", str(file))
    (listed,) = [r for r in json.loads(call("runs", "list", "--json"))["runs"] if r["id"] == run.id]
    assert listed["imported"] is True and listed["recorded"] is False
    assert "cannot be read" in call("runs", "import", str(tmp_path / "none.zip"), code=2)


def test_no_room(run: Run, tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from collections import namedtuple

    from paraknow.errors import ResourceError

    file = bundle.export(run, tmp_path / "a.zip")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(10))
    with pytest.raises(ResourceError, match="more than is free"):
        bundle.import_(file, elsewhere)
    assert not elsewhere.exists() and not issubclass(ResourceError, RunError)
