"""Growing files read on from where one was; a log's end."""

from __future__ import annotations

import json
import os
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paraknow import cli, config
from paraknow.runs import events, store
from paraknow.runs.events import EventsReader, Lines, harmless
from tests.test_bad_input import QUICK


def append(path, text):
    with path.open("ab") as stream:
        stream.write(text.encode())


TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\n"), max_size=9)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(TEXT, max_size=12), cuts=st.lists(st.integers(0, 200), max_size=6))
def test_every_line_comes_once_wherever_writing_is_cut(tmp_path, lines, cuts):
    path, whole = tmp_path / "lines", "".join(f"{line}\n" for line in lines).encode()
    path.unlink(missing_ok=True)
    reader, found, before = Lines(path), [], 0
    for cut in (*sorted(cuts), len(whole)):
        with path.open("ab") as stream:
            stream.write(whole[before:cut])
        before = max(before, min(cut, len(whole)))
        found += reader.new()
    assert found == lines and reader.new() == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(TEXT, max_size=12), count=st.integers(0, 15), torn=st.booleans(), block=st.integers(1, 40))
def test_the_end_of_a_file_is_its_last_lines(tmp_path, lines, count, torn, block):
    path = tmp_path / "lines"
    path.write_bytes("".join(f"{line}\n" for line in lines).encode() + b"torn" * torn)
    reader, before = Lines(path), events.BLOCK
    try:
        events.BLOCK = block
        found = reader.last(count)
    finally:
        events.BLOCK = before
    wanted = [*lines, *["torn"] * torn]
    assert found == wanted[len(wanted) - min(count, len(wanted)) :]
    append(path, "x\ny\n")
    assert reader.new() == ["x", "y"]


def test_only_what_is_new_is_read(tmp_path, monkeypatch):
    path, read, take = tmp_path / "events.jsonl", [], Lines._take
    monkeypatch.setattr(Lines, "_take", lambda lines, whole: read.append(len(whole)) or take(lines, whole))
    append(path, "".join(json.dumps({"step": s}) + "\n" for s in range(2000)))
    reader = EventsReader(path)
    assert len(reader.new()) == 2000 and reader.again
    append(path, '{"step": 1}\nnot json\n[1]\n{"st')
    assert [reader.new() for _ in range(3)] == [[{"step": 1}], [], []] and not reader.again
    append(path, 'ep": 2}\n')
    assert reader.new() == [{"step": 2}] and read[1:] == [25, 0, 0, 12]


def test_a_file_that_was_cut_or_replaced_is_read_from_its_beginning(tmp_path):
    path = tmp_path / "events.jsonl"
    reader = EventsReader(path)
    assert reader.new() == [] and not reader.again  # not there yet
    append(path, '{"a": 1}\n{"a": 2}\n')
    assert len(reader.new()) == 2 and reader.again
    os.truncate(path, 9)
    assert reader.new() == [{"a": 1}] and reader.again
    other = tmp_path / "other"
    other.write_text('{"b": 1}\n{"b": 2}\n')
    os.replace(other, path)
    assert reader.new() == [{"b": 1}, {"b": 2}] and reader.again
    path.unlink()
    assert reader.new() == [] and not reader.again


def test_a_log_of_one_endless_line_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(events, "LONGEST", 1000)
    monkeypatch.setattr(events, "BLOCK", 100)
    path = tmp_path / "log"
    path.write_bytes(b"x" * 10_000)
    (line,) = Lines(path).last(5)
    assert line == "x" * 1000


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("plain\tümläut 漢字", "plain\tümläut 漢字"),
        ("\x1b[2J\x1b]0;title\x07", "\\u001b[2J\\u001b]0;title\\u0007"),
        ("a\u202eb\u2028c\x85d\r", "a\\u202eb\\u2028c\\u0085d"),
    ],
)
def test_control_characters_are_written_out(line, shown):
    assert harmless(line) == shown


def called(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(["runs", "log", *arguments])
    return int(stop.value.code or 0)


def test_the_log_on_the_command_line(runs, capsys):
    run = store.create(config.parse(QUICK))
    assert called(run.id) == 2 and "has written no log" in capsys.readouterr().err
    run.path("worker.log").write_text("".join(f"line {n}\x1b[0m\n" for n in range(100)))
    assert called(run.id) == 0
    found = capsys.readouterr().out.splitlines()
    assert len(found) == 40 and found[-1] == "line 99\\u001b[0m"
    assert called(run.id, "-n", "2") == 0 and len(capsys.readouterr().out.splitlines()) == 2
    assert called(run.id, "-n", "-1") == 2
    assert called("nothing") == 2


def test_following_ends_with_the_run(runs, capsys):
    run = store.create(config.parse(QUICK))
    run.update(state="queued")

    def write() -> None:
        for n in range(3):
            time.sleep(0.2)
            append(run.path("worker.log"), f"{n}\n")
        run.update(state="done")
        append(run.path("worker.log"), "last\n")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert called(run.id, "--follow", "-n", "1") == 0
    finally:
        writer.join()
    assert capsys.readouterr().out.split() == ["0", "1", "2", "last"]
