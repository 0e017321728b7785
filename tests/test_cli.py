"""The command line as a process: Ctrl-C, JSON, the commands of the README."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from paraknow import cli, resources
from paraknow import config as configs
from paraknow.runs import store
from tests.test_bad_input import QUICK


@pytest.fixture
def printed(capsys, runs):
    """printed("runs", "list") → the JSON that the command prints; it must exit with 0."""

    def run(*arguments: str) -> dict:
        with pytest.raises(SystemExit) as stop:
            cli.main([*arguments, "--json"])
        captured = capsys.readouterr()
        assert stop.value.code == 0, captured.err
        values = json.loads(captured.out)
        assert values["schema_version"] == 1
        return values

    return run


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(QUICK))
    return path


def test_light_commands_import_nothing_heavy(tmp_path):
    """Help and lists are there at once: what computes is imported by the commands that compute."""
    code = (
        "import contextlib, io, sys; from paraknow import cli\n"
        "for line in ('--help', 'run --help', 'runs list', 'methods', 'doctor', 'glossary', 'recipes'):\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "        cli.main(line.split())\n"
        "print(sorted({'scipy', 'pandas', 'numpy', 'pyarrow', 'torch', 'plotly', 'altair'} & set(sys.modules)))\n"
    )
    environment = {**os.environ, "PARAKNOW_RUNS": str(tmp_path / "runs")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"


def test_ctrl_c_cancels_at_a_step_and_the_run_can_go_on(config_file, runs, printed):
    command = [sys.executable, "-m", "paraknow.cli", "run", str(config_file), "--set", "tune.epochs=3000"]
    command += ["--set", "similarity.parts=[]", "--set", "locate.neurons=none"]  # sooner at the stage that is long
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ.copy())
    try:
        until = time.time() + 120
        while time.time() < until and not (
            list(runs.glob("*/status.json")) and store.all_runs()[0].status().get("stage") == "tune"
        ):
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    last = errors.strip().splitlines()[-1]
    assert last.startswith("paraknow: run ") and "Traceback" not in errors
    (run,) = (r for r in store.all_runs() if not r.recorded)
    assert last.endswith(f"It goes on with `paraknow run --resume {run.id}`.")
    status = run.status()
    assert status["state"] == "cancelled" and status["stages"] == ["load", "locate", "similarity", "align"]


def test_every_command_that_prints_json(printed, config_file, runs):
    assert {m["name"] for m in printed("methods")["methods"]} >= {
        "seeking",
        "gaussian",
        "pissa",
        "zero",
        "noise",
        "oracle",
    }
    known = [f"demo:{n}" for n in resources.DEMO_MODELS]
    assert [m["model"] for m in printed("models")["models"]] == known
    assert all(c["ok"] for c in printed("doctor")["checks"])
    located = printed("locate", str(config_file))
    assert store.find(located["run"]).status()["stages"] == ["load", "locate"] and "rows" not in located
    assert len(located["layers"]) == 6 and {r["about"] for r in located["agreement"]} == {"split_half", "first_order"}
    compared = printed("similarity", str(config_file))
    assert len(compared["cka"]) == 10 and len(compared["stitching"]) == 4 and len(compared["weights"]) == 21
    measured = printed("evaluate", str(config_file))
    assert {r["model"] for r in measured["rows"]} == {"teacher", "student"}
    listed = printed("runs", "list")["runs"]
    assert [r["id"] for r in listed if not r["recorded"]] == [r["run"] for r in (measured, compared, located)]
    assert {"id", "state", "stage", "method", "created"} <= set(listed[0])
    assert printed("runs", "show", measured["run"])["rows"] == measured["rows"]
    recorded = [r["id"] for r in listed if r["recorded"]]
    beside = printed("runs", "compare", *recorded[:2])
    assert {s["setting"] for s in beside["settings"]} >= {"pair.teacher", "method.name"} and beside["results"]


def test_what_is_done_to_a_run_is_printed_as_facts(printed, runs, monkeypatch):
    monkeypatch.setattr("paraknow.runs.queue.ensure_workers", lambda root: None)
    first, second = (store.create(configs.parse(QUICK)) for _ in range(2))
    assert printed("runs", "priority", second.id)["place"] == 1
    assert printed("runs", "cancel", first.id)["state"] == "cancelled"
    assert printed("runs", "resume", first.id) == {"schema_version": 1, "run": first.id, "state": "queued"}
    assert printed("runs", "delete", second.id, "--yes")["run"] == second.id and not second.folder.exists()


def test_merged_export(finished, runs, tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    run = store.Run(Path(shutil.copytree(finished, runs / finished.name)))
    with pytest.raises(SystemExit) as stop:
        cli.main(["export", run.id, "--merged", str(tmp_path / "merged")])
    assert stop.value.code == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").config.num_hidden_layers == 4
    for arguments, message in (
        (["--merged", str(tmp_path / "merged")], "exists already"),
        (["--merged", str(tmp_path / "m2"), "--model", "laten"], "has no adapter 'laten'; it has seeking/0, zero/0"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(["export", run.id, *arguments])
        assert stop.value.code == 2 and message in capsys.readouterr().err


def test_print_config_shows_every_default(config_file, capsys, runs):
    with pytest.raises(SystemExit):
        cli.main(["run", str(config_file), "--print-config"])
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["tune"]["batch_size"] == 64 and shown["locate"]["structure"] == "window" and not runs.exists()


def test_the_app_comes_up_on_a_machine_that_never_saw_it(tmp_path):
    """As `make app` starts it: no home folder yet, nobody to answer a prompt, a browser wanted."""
    import socket
    from urllib.request import urlopen

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "HOME": str(tmp_path), "BROWSER": "true"}
    command = [sys.executable, "-m", "paraknow.cli", "app", "--port", str(port)]
    log = (tmp_path / "log").open("w+")
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=tmp_path)
    try:
        status, until = 0, time.time() + 90
        while not status and time.time() < until and process.poll() is None:
            try:
                status = urlopen(f"http://127.0.0.1:{port}/", timeout=5).status
            except OSError:
                time.sleep(0.3)
        log.seek(0)
        assert status == 200, log.read()
    finally:
        process.kill()
        process.wait()
        log.close()


def test_items_are_searched_and_kept(printed, tmp_path, capsys):
    run = next(r for r in store.all_runs() if r.recorded)
    found = printed("runs", "items", run.id, "--show", "gained", "--show", "lost", "--group", "shown", "--limit", "3")
    assert found["model"] == run.config().method.title and found["against"] == "student" and len(found["items"]) == 3
    assert all(i["change"] in ("gained", "lost") and i["group"] == "shown" for i in found["items"])
    word = found["items"][0]["prompt"].split()[-3]
    fewer = printed("runs", "items", run.id, "--group", "shown", "--search", word, "--out", str(tmp_path / "kept.csv"))
    assert 0 < fewer["found"] < 225
    assert word in (tmp_path / "kept.csv").read_text()
    for arguments in (["--show", "won"], ["--model", "nobody"], ["--out", str(tmp_path / "kept.doc")]):
        with pytest.raises(SystemExit) as stop:
            cli.main(["runs", "items", run.id, *arguments])
        assert stop.value.code == 2 and len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "kept.doc").exists()
