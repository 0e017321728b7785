"""What may be opened by name under limits, and what a visitor may ask for."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paraknow import access, checkpoints, checks, data, limits, resources
from paraknow import config as configs
from paraknow.errors import InputError, ResourceError, RunError
from paraknow.runs import queue, store, worker
from tests.test_bad_input import QUICK

LINE = '{"prompt": "p", "completion": "c"}\n'
RECORDS = "".join(f'{{"prompt": "p{k}", "completion": "c"}}\n' for k in range(12))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """allowed/ with models and records, secret/ beside it, and the working folder above both."""
    for name in ("allowed/model", "secret/model"):
        (tmp_path / name).mkdir(parents=True)
        for file in resources.demo_model("student").iterdir():
            (tmp_path / name / file.name).symlink_to(file) if name.startswith("secret") else os.link(
                file, tmp_path / name / file.name
            )
    for name in ("allowed", "secret"):
        (tmp_path / name / "task.jsonl").write_text(RECORDS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def shared(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, as a shared page server sees it."""
    made = access.grant(True, [home / "allowed"], [home / "allowed"])
    monkeypatch.setenv(access.VARIABLE, made.dump())
    return home


def refused(name: str, kind: access.Kind = "models") -> str:
    with pytest.raises(InputError) as error:
        access.place(name, kind, "X")
    return str(error.value)


def test_without_limits_everything_may_be_opened(home: Path) -> None:
    assert not access.current().limited and access.place("secret/model", "models", "X") == Path("secret/model")
    assert checkpoints.find("secret/model").parameters and data.load_task("secret/task.jsonl").train
    for wrong in ("a" * 300, "\0", "x" * 5000):
        with pytest.raises(InputError, match="can be no path"):
            access.place(wrong, "models", "X")


def test_only_what_lies_in_an_allowed_folder_is_opened(shared: Path) -> None:
    for name in ("allowed/model", str(shared / "allowed" / "model"), "allowed/../allowed/./model/"):
        assert checkpoints.find(name).folder == shared / "allowed" / "model"
    assert len(data.load_task("allowed/task.jsonl").train) == 10
    assert checkpoints.find("demo:student").parameters and data.load_task("demo:sum").train


def test_ways_out_are_closed_and_say_nothing_about_what_lies_there(shared: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(shared / "secret"))
    (shared / "allowed" / "out").symlink_to(shared / "secret")
    ways = [
        "secret/model",
        "allowed/../secret/model",
        "allowed/out/model",
        "allowed/out",
        "~",
        "~/model",
        "~root/x",
        "/",
    ]
    ways += [f"/proc/self/cwd/secret/{n}" for n in ("model", "absent")] + ["secret/absent", "allowed/../secret/absent"]
    ways += [
        "ALLOWED/model",
        "allowed./model",
        "allowed/model\0",
        "a" * 300,
        "x" * 5000,
        "//host/share",
        "\\\\host\\share",
    ]
    ways += [str(shared / "allowed-too"), ".", "..", "", "allowed/out/../../secret", "~nobody-of-this-name/x"]
    assert {refused(name) for name in ways} == {refused("secret/absent")}
    for name in ("secret/task.jsonl", "secret/absent.jsonl", "/etc/passwd", "/etc/absent"):
        with pytest.raises(InputError, match="only from the folders named with --data-dir"):
            data.load_task(name)


def test_links_inside_a_folder_may_not_lead_out(shared: Path) -> None:
    model = shared / "allowed" / "model"
    (model / "config.json").unlink()
    (model / "config.json").symlink_to(shared / "secret" / "model" / "config.json")
    with pytest.raises(InputError, match="in none of them"):
        checkpoints.find("allowed/model")
    blobs = shared / "allowed" / "blobs"  # as a hub's cache is laid out: within the folder, so allowed
    blobs.mkdir()
    os.link(resources.demo_model("student") / "config.json", blobs / "config")
    (model / "config.json").unlink()
    (model / "config.json").symlink_to(blobs / "config")
    assert checkpoints.find("allowed/model").parameters


def test_a_checkpoint_names_no_files_of_others(shared: Path) -> None:
    model = shared / "allowed" / "model"
    for name, values in (
        ("model.safetensors.index.json", {"weight_map": {"a": "../../secret/model/model.safetensors"}}),
        ("model.safetensors.index.json", {"weight_map": {"a": "/etc/passwd"}}),
        ("tokenizer_config.json", {"vocab_file": "/etc/passwd"}),
        ("tokenizer_config.json", {"tokenizer_file": ".."}),
    ):
        (model / name).unlink(missing_ok=True)
        (model / name).write_text(json.dumps(values))
        with pytest.raises(InputError, match=f"{name} names a file outside"):
            checkpoints.find("allowed/model")
        (model / name).unlink()


def test_names_of_hubs_are_never_local(shared: Path) -> None:
    assert checkpoints.is_remote("secret/model") and not checkpoints.is_remote("allowed/model")
    with pytest.raises(InputError, match="hub"):
        checkpoints.find("secret/model")  # asked of the hub, which is out of reach here
    for name in ("hub:secret/model", "hub:/etc", "hub:../x", "hub:json", "hub:a/b@../../x", "hub:./secret/model"):
        with pytest.raises(InputError, match="accepted here is org/name"):
            data.load_task(name)
    with pytest.raises(InputError, match="no demo task"):
        data.load_task("demo:../models")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["..", ".", "allowed", "secret", "out", "model", "~", "", "/", "a"]), max_size=6))
def test_whatever_is_opened_lies_inside(shared: Path, parts: list[str]) -> None:
    if not (shared / "allowed" / "out").is_symlink():
        (shared / "allowed" / "out").symlink_to(shared / "secret")
    found = access.found("/".join(parts), "models")
    assert found is None or found.resolve().is_relative_to(shared / "allowed")


def test_a_kind_without_a_folder_is_limited_only_when_shared(home: Path, monkeypatch) -> None:
    monkeypatch.setenv(access.VARIABLE, access.grant(models=[home / "allowed"]).dump())
    assert data.load_task("secret/task.jsonl").train and "--models-dir" in refused("secret/model")
    with pytest.raises(InputError, match="--data-dir 'absent': no such folder"):
        access.grant(data=[Path("absent")])


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"shared": true, "models": 3, "data": null, "login": false}'])
def test_damaged_limits_are_closed(text: str, monkeypatch) -> None:
    monkeypatch.setenv(access.VARIABLE, text)
    assert access.current() == access.CLOSED


def test_sentences_of_a_shared_page_name_no_other_path(shared: Path, monkeypatch) -> None:
    inside = f"model 'x': {shared}/allowed/model has no config.json."
    assert access.said(inside) == inside
    text = f"OSError: {shared}/secret/a.bin: ~/x, and/or org/name at https://a.b/c; see /etc/passwd."
    assert access.said(text) == "OSError: …: …, and/or org/name at https://a.b/c; see …."
    monkeypatch.delenv(access.VARIABLE)
    assert access.said(text) == text


# -- runs -------------------------------------------------------------------------------------------


@pytest.fixture
def queued(shared: Path, runs: Path, monkeypatch) -> list[list[str]]:
    """Queueing without a worker."""
    monkeypatch.setattr(queue, "ensure_workers", lambda *a, **k: None)
    monkeypatch.setattr(limits, "FREE", 0)
    return []


def test_a_run_keeps_the_limits_of_the_page_that_queued_it(shared: Path, runs: Path, queued, monkeypatch) -> None:
    inside = configs.parse({**QUICK, "task": "allowed/task.jsonl"})
    with pytest.raises(InputError, match="--data-dir"):
        queue.submit(configs.parse({**QUICK, "task": "secret/task.jsonl"}))
    assert not runs.exists()
    run = queue.submit(inside)
    assert json.loads(run.path(access.FILE).read_text())["data"] == [str(shared / "allowed")]
    monkeypatch.delenv(access.VARIABLE)  # the worker has no limits of its own
    run.path("config.yaml").write_text(configs.dump(configs.parse({**QUICK, "task": "secret/task.jsonl"})))
    with pytest.raises(InputError, match="--data-dir"):
        worker.execute(run, from_queue=True)
    assert run.status()["state"] == "failed" and not access.current().limited
    run.path(access.FILE).write_text("{")
    run.update(state="queued")
    with pytest.raises(InputError, match="--data-dir"):
        worker.execute(run, from_queue=True)
    own = store.create(inside)
    assert not own.path(access.FILE).exists()  # who sits at the machine is not limited


def test_a_worker_takes_no_limits_from_the_page_that_starts_it(shared: Path, runs: Path, monkeypatch) -> None:
    started = []
    monkeypatch.setattr(queue.subprocess, "Popen", lambda command, **options: started.append(options["env"]))
    queue.start_worker(runs, "cpu")
    assert len(started) == 1 and access.VARIABLE not in started[0] and "PATH" in started[0]


def test_a_visitor_resumes_no_run_on_files_he_may_not_open(shared: Path, runs: Path, queued, monkeypatch) -> None:
    run = store.create(configs.parse({**QUICK, "task": "secret/task.jsonl"}))
    run.path(access.FILE).unlink()  # as the command line made it
    run.update(state="failed")
    with pytest.raises(InputError, match="--data-dir"):
        queue.resume(run)
    with pytest.raises(InputError, match="left to the machine's owner"):
        store.delete(run)
    monkeypatch.delenv(access.VARIABLE)
    queue.resume(run)
    store.delete(run)


def test_a_run_opens_what_it_made_itself(shared: Path, runs: Path, queued, monkeypatch) -> None:
    """A method that widens the student leaves a checkpoint in the run's folder, which is measured from there."""
    first, second = (store.create(configs.parse(QUICK)) for _ in range(2))
    monkeypatch.delenv(access.VARIABLE)
    with access.of_run(first.folder):
        assert access.place(str(first.path("adapters", "transport", "0")), "models", "X")
        assert "--models-dir" in refused(str(second.path("adapters"))) and "--data-dir" in refused("secret", "data")


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"seeds": list(range(17))}, "seeds"),
        ({"task": [f"demo:{k}" for k in range(9)]}, "task, locate.task and evaluate.suites"),
        ({"baselines": [{"name": "sft", "label": f"a{k}"} for k in range(17)]}, "baselines"),
        ({"evaluate": {"benchmarks": [f"b{k}" for k in range(9)]}}, "evaluate.benchmarks"),
        ({"evaluate": {"run_code": True}}, "evaluate.run_code"),
    ],
)
def test_a_shared_page_has_limits(changes: dict, field: str, shared: Path, monkeypatch) -> None:
    config = configs.parse({**QUICK, **changes})
    with pytest.raises(InputError, match=f"^{field}: "):
        checks.check(config)
    monkeypatch.delenv(access.VARIABLE)
    limits.check(config)


def test_limits_on_queue_disk_sizes_and_time(shared: Path, runs: Path, monkeypatch) -> None:
    with pytest.raises(InputError, match="^queue: 10 runs"):
        limits.check_queue(10, 10, runs)
    with pytest.raises(InputError, match="^runs: 1000 are kept"):
        limits.check_queue(0, 1000, runs)
    monkeypatch.setattr(limits, "FREE", 2**60)
    with pytest.raises(ResourceError, match="of disk would be left"):
        limits.check_queue(0, 0, runs)
    monkeypatch.setattr(limits, "DATA", 10)
    with pytest.raises(InputError, match="MiB of records"):
        data.load_task("allowed/task.jsonl")
    with pytest.raises(InputError, match="fetches at most"):
        limits.check_download("model 'a/b'", 2**50, runs)
    with pytest.raises(RunError, match="at most 24 hours"):
        limits.check_time(25 * 3600, "tune")
    monkeypatch.delenv(access.VARIABLE)
    limits.check_queue(10**6, 10**6, runs)
    limits.check_time(10**9, "tune")


@pytest.mark.parametrize(
    "changes",
    [
        {"task": ["x" * 1001]},
        {"task": [f"t{k}" for k in range(201)]},
        {"controls": ["c" * 101]},
        {"seeds": list(range(1001))},
        {"name": "n" * 201},
    ],
)
def test_lists_and_names_have_a_longest_length(changes: dict) -> None:
    with pytest.raises(InputError) as error:
        configs.parse({**QUICK, **changes})
    assert len(str(error.value)) < 400
