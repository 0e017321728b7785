from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.faults import small
from paraknow import files
from paraknow.errors import InputError
from paraknow.runs import index, queue, store
from paraknow.runs.store import Run


@pytest.fixture
def made(runs):
    return [store.create(small()) for _ in range(4)]


def many(root: Path, count: int) -> None:
    """Finished runs, one like another."""
    first = store.create(small(), root)
    for number in range(count):
        folder = root / f"20260101-{number:06d}-seeking-people-{number:04x}"
        shutil.copytree(first.folder, folder)
        about = {"state": "done", "stages": ["load"], "created": 1.0e9 + number, "finished": 1.0e9, "number": number}
        files.write_json(folder / "status.json", about)
    shutil.rmtree(first.folder)


def test_only_what_has_changed_is_read_again(made, runs, monkeypatch):
    store.listing()
    read = []
    monkeypatch.setattr(store, "_summary", lambda run, real=store._summary: read.append(run.id) or real(run))
    assert [row["id"] for row in store.listing()] == [run.id for run in reversed(made)] and not read
    made[1].update(priority=5)
    assert {row["id"]: row["priority"] for row in store.listing()}[made[1].id] == 5 and read == [made[1].id]
    store.delete(made[0])
    assert made[0].id not in {row["id"] for row in store.listing()} and read == [made[1].id]


def test_without_an_index_lists_are_the_same(made, runs):
    expected = store.listing()
    index.forget(runs)
    assert store.listing() == expected and (runs / index.FILE).is_file()
    (runs / index.FILE).write_bytes(b"not a database at all" * 100)
    assert store.listing() == expected
    assert store.listing() == expected and sqlite3.connect(runs / index.FILE).execute("SELECT 1 FROM runs").fetchone()
    sqlite3.connect(runs / index.FILE).executescript("PRAGMA user_version=99; DROP TABLE runs")
    assert store.listing() == expected
    sqlite3.connect(runs / index.FILE).executescript("DROP TABLE runs")
    assert store.listing() == expected and store.listing() == expected


PLACES = st.floats(0, 1, exclude_max=True)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(PLACES, st.integers(1, 255)), max_size=4), kept=st.one_of(st.none(), PLACES))
def test_a_damaged_index_never_changes_what_is_listed(made, runs, flips, kept):
    index.forget(runs)
    expected = store.listing()
    content = bytearray((runs / index.FILE).read_bytes())
    for place, change in flips:
        content[int(place * len(content))] ^= change
    if kept is not None:
        content = content[: int(kept * len(content))]
    (runs / index.FILE).write_bytes(content)
    assert store.listing() == expected
    assert store.listing() == expected


def test_an_index_that_somebody_else_holds_is_done_without(made, runs):
    store.listing()
    other = sqlite3.connect(runs / index.FILE, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        assert len(store.listing()) == 4
    finally:
        other.close()


def test_a_row_of_wrong_content_is_not_believed(made, runs):
    expected = store.listing()
    with sqlite3.connect(runs / index.FILE) as database:
        database.execute("UPDATE runs SET row = replace(row, 'queued', 'failed')")
    assert store.listing() == expected


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"state": 3}', '{"state": "done", "stages": 7, "created": "x", "number": {}}', "\x00" * 50]
)
def test_whatever_status_json_holds_the_run_can_be_listed_and_resumed(made, runs, monkeypatch, text):
    monkeypatch.setattr(queue, "ensure_workers", lambda *_: None)
    run = made[2]
    run.path("status.json").write_text(text)
    assert run.status()["state"] in store.STATES and isinstance(run.status()["stages"], list)
    (row,) = [row for row in store.listing() if row["id"] == run.id]
    assert row["number"] == 0 and row["state"] == run.status()["state"]
    queue.resume(run)
    assert run.status()["state"] == "queued" and run.id in {r["id"] for r in queue.waiting()}


def test_many_submitting_at_once_get_numbers_of_their_own(runs):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: store.create(small()), range(16)))
    assert [row["number"] for row in store.listing()] == list(range(16, 0, -1))


def test_changes_made_at_once_are_all_kept(runs):
    run = store.create(small())
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda k: run.update(**{f"field{k}": k}), range(40)))
    assert all(run.status()[f"field{k}"] == k for k in range(40))


def test_a_clock_that_is_set_back_changes_no_order(runs, monkeypatch):
    first = store.create(small())
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 86400)
    second = store.create(small())
    assert [row["id"] for row in store.listing()] == [second.id, first.id]
    assert queue.next_queued(runs).id == first.id
    with first.lock():
        first.update(state="running", host=None)
        monkeypatch.setattr(time, "time", lambda: real() - 2 * 86400)
        assert first.status()["state"] == "running" and "silent" not in first.status()
        first.cancel()
        assert not queue.enforce_cancel(first, 0.0)


def test_higher_priority_goes_first_and_whoever_is_first_stays_so(made, runs):
    queue.prioritise(made[2], 3)
    assert [row["id"] for row in queue.waiting()] == [made[k].id for k in (2, 0, 1, 3)]
    queue.first(made[3])
    queue.first(made[3])
    assert queue.next_queued(runs).id == made[3].id and made[3].status()["priority"] == 4
    assert queue.next_queued(runs, skip=[made[3].id]).id == made[2].id


def test_a_run_of_another_machine_is_lost_by_its_heartbeat(made):
    run = made[0]
    run.update(state="running", host="elsewhere", pid=1, born=0.0)
    assert run.status()["state"] == "running"
    late = time.time() - store.LOST_AFTER - 1
    files.write_json(run.path("status.json"), {**files.read_json(run.path("status.json")), "heartbeat": late})
    assert run.status()["state"] == "lost" and store.summary(run)["state"] == "lost"
    run.cancel()
    assert run.status()["state"] == "cancelled"


def test_one_of_ours_that_does_not_answer_is_said(made):
    run = made[0]
    with run.lock():
        run.update(state="running")
        late = time.time() - 100
        files.write_json(run.path("status.json"), {**files.read_json(run.path("status.json")), "heartbeat": late})
        assert 99 < run.status()["silent"] < 110 and run.status()["state"] == "running"
        run.beat()
        assert "silent" not in run.status()


def test_two_hundred_finished_runs_are_listed_in_no_time(runs):
    many(runs, 200)
    began = time.perf_counter()
    rows = store.listing()
    cold = time.perf_counter() - began
    times = []
    for _ in range(5):
        began = time.perf_counter()
        assert store.listing() == rows
        times.append(time.perf_counter() - began)
    print(f"200 runs: read {cold:.2f} s, from the index {min(times):.3f} s ({cold / min(times):.0f} times faster)")
    assert len(rows) == 200 and min(times) < 0.2


def test_names_that_are_no_run_ids_are_not_listed(runs, made):
    for name in (".hidden", "-x", "a b", "é"):
        shutil.copytree(made[0].folder, runs / name)
    os.makedirs(os.fsencode(runs) + b"/\xff")
    (Path(os.fsdecode(os.fsencode(runs) + b"/\xff")) / "config.yaml").write_text("x")
    assert {row["id"] for row in store.listing()} == {run.id for run in made}


def test_a_folder_that_is_gone_is_said(made):
    run = made[0]
    shutil.rmtree(run.folder)
    assert run.status()["error"] == "its folder is gone." and store.summary(run)["state"] == "failed"
    run.beat()
    with pytest.raises(FileNotFoundError):
        run.update(state="done")
    with pytest.raises(InputError, match="its folder is gone"), run.lock():
        pass
    assert not run.folder.exists()
    assert json.dumps(store.summary(Run(run.folder)))
