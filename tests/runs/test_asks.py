"""The mailbox of questions: what is put, taken, answered, given up; and what damaged files become."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paraknow import access, files, limits
from paraknow.errors import InputError, ResourceError
from paraknow.runs import asks, questions, queue, store, supervisor
from tests.runs import packed

SAID = questions.AnswersAnswer(models=[questions.Said(label="teacher", text="a", tokens=1, mean_logprob=-1.0)])


def everywhere(device: str) -> bool:
    return True


def put(root: Path, kind: str = "answers", **values: object) -> asks.Ask:
    given: dict = {"run": "some-run", "prompt": "q", **values}
    return asks.put(questions.make(kind, **given), root, "cpu")


def region(**values: object) -> questions.Question:
    place = {"run": "r", "model": "teacher", "layer": 0, "module": "q", "rows": (0, 2), "cols": (0, 3), **values}
    return questions.make("region", **place)


def gone(ask: asks.Ask) -> None:
    """As if the supervisor that has it had ended."""
    taken = files.read_json(ask.path("taken.json"))
    files.write_json(ask.path("taken.json"), {**taken, "born": taken["born"] - 1000})


def test_a_question_goes_there_and_back(tmp_path):
    first, second = put(tmp_path), put(tmp_path)
    assert [a.state().name for a in (first, second)] == ["waiting"] * 2 and asks.before(second) == 1
    taken = asks.take(tmp_path, everywhere)
    assert taken is not None and taken.id == first.id and taken.state().name == "working"
    taken.say("loading")
    assert taken.state().message == "loading"
    taken.done(SAID)
    state = first.state()
    assert state.over and state.answer == SAID
    taken.fail("too late")
    assert first.state().name == "done" and asks.before(second) == 0
    other = asks.take(tmp_path, everywhere)
    assert other is not None and other.id == second.id and asks.take(tmp_path, everywhere) is None
    second.fail("no")
    assert second.state().error == "no"


def test_single_weights_come_as_they_are(tmp_path):
    ask, values = asks.put(region(), tmp_path, "cpu"), np.arange(6, dtype=np.float32).reshape(2, 3)
    ask.done(questions.RegionAnswer(rows=(0, 2), cols=(0, 3), examples=4), values)
    state = ask.state()
    assert state.values is not None and np.array_equal(state.values, values) and state.answer.examples == 4
    ask.done(questions.RegionAnswer(rows=(0, 2), cols=(0, 4), examples=4), values)
    assert ask.state().name == "failed" and "damaged" in ask.state().error


def test_devices_take_their_own(tmp_path):
    put(tmp_path)
    assert asks.take(tmp_path, lambda device: device == "cuda") is None
    assert asks.take(tmp_path, lambda device: device == "cpu") is not None


def test_it_is_handed_out_again_once(tmp_path):
    ask = put(tmp_path)
    for _ in range(asks.ATTEMPTS):
        assert asks.take(tmp_path, everywhere) is not None
        assert asks.take(tmp_path, everywhere) is None
        gone(ask)
        assert ask.state().name == "waiting"
    assert asks.take(tmp_path, everywhere) is None
    assert "ended twice" in ask.state().error


def test_what_nobody_waits_for_is_removed_or_stopped(tmp_path):
    waiting, working = put(tmp_path), put(tmp_path)
    waiting.cancel()
    assert waiting.state().name == "gone" and not waiting.folder.exists()
    assert asks.take(tmp_path, everywhere) is not None
    working.cancel()
    assert working.cancelled and working.state().name == "working" and working.cancelled_for() < 5
    gone(working)
    assert asks.take(tmp_path, everywhere) is None and working.state().error == "cancelled."
    waiting.done(SAID)  # nothing is made anew
    assert not waiting.folder.exists()


def test_one_taken_on_another_machine_is_not_there_for_ever(tmp_path):
    ask = put(tmp_path)
    assert asks.take(tmp_path, everywhere) is not None
    taken = files.read_json(ask.path("taken.json"))
    files.write_json(ask.path("taken.json"), {**taken, "host": "another-machine"})
    asks.sweep(tmp_path)
    assert ask.state().name == "working" and asks.take(tmp_path, everywhere) is None  # it is believed
    aged = ask.folder.with_name(f"{time.time_ns() - int((asks.KEPT + 60) * 1e9):020d}{ask.id[20:]}")
    os.rename(ask.folder, aged)
    asks.sweep(tmp_path)
    assert not aged.exists()
    given_up = put(tmp_path)
    assert asks.take(tmp_path, everywhere) is not None
    files.write_json(given_up.path("taken.json"), {**taken, "host": "another-machine"})
    given_up.cancel()
    assert given_up.state().name == "gone"


def test_nobody_waits_for_a_device_that_is_not_here(runs, monkeypatch):
    monkeypatch.setattr("paraknow.devices.gpus", list)
    monkeypatch.setattr(queue, "ensure_workers", lambda root: None)
    run = packed.finished(runs)
    config = run.config().model_copy(update={"device": "cuda"})
    monkeypatch.setattr(store.Run, "config", lambda self: config)
    with pytest.raises(ResourceError, match="no CUDA device"):
        queue.ask(questions.make("answers", run=run.id, prompt="q"), runs)
    assert not asks.waiting(runs)


def test_a_visitor_s_question_is_ended_from_outside(tmp_path, monkeypatch):
    """A backward pass looks at no clock: the supervisor does."""
    ask, child = put(tmp_path), object.__new__(supervisor.Child)
    asked = []
    monkeypatch.setattr(supervisor.Child, "_told", lambda self, line, wanted: asked.append(wanted()))
    monkeypatch.setattr(limits, "ask_is_late", lambda seconds: True)
    child.answer(ask)
    assert asked == [False] and child.late
    monkeypatch.undo()
    assert not limits.ask_is_late(1e9)  # only visitors are held to it


def test_old_ones_go(tmp_path, monkeypatch):
    old, new = put(tmp_path), put(tmp_path)
    before = f"{time.time_ns() - int((asks.KEPT + 60) * 1e9):020d}{old.id[20:]}"
    os.rename(old.folder, old.folder.with_name(before))
    asks.sweep(tmp_path)
    assert not old.folder.with_name(before).exists() and new.state().name == "waiting"
    monkeypatch.setattr(asks, "MOST", 2)
    new.done(SAID)
    put(tmp_path), put(tmp_path)
    with pytest.raises(InputError, match="2 questions wait already"):
        put(tmp_path)
    assert new.state().name == "gone"  # answered, and beyond the most that are kept


def test_runs_do_not_see_them(runs, monkeypatch):
    monkeypatch.setattr(queue, "ensure_workers", lambda root: None)
    run = packed.finished(runs)
    before = packed.snapshot(run.folder)
    ask = queue.ask(questions.make("answers", run=run.id, prompt="q"), runs)
    assert ask.state().name == "waiting" and [r.id for r in store.all_runs(runs) if not r.recorded] == [run.id]
    assert queue.waiting(runs) == [] and queue.next_queued(runs) is None and packed.snapshot(run.folder) == before
    with pytest.raises(InputError, match="run nowhere is not here"):
        queue.ask(questions.make("answers", run="nowhere", prompt="q"), runs)


def test_workers_are_started_for_questions(runs, monkeypatch):
    started = []
    monkeypatch.setattr(queue, "start_worker", lambda root, device, idle: started.append(device))
    put(runs)
    queue.ensure_workers(runs)
    assert started == ["cpu"]


def test_visitors_have_limits(tmp_path, monkeypatch):
    monkeypatch.setenv(access.VARIABLE, access.Access(shared=True, models=(), data=()).dump())
    monkeypatch.setattr(limits, "ASKS", 1)
    ask = put(tmp_path)
    assert access.parse(files.read_json(ask.path(access.FILE))).shared  # the worker answers under them
    with pytest.raises(InputError, match="the most for a shared page"):
        put(tmp_path)


@pytest.mark.parametrize(
    "kind, values, said",
    [
        ("answers", {"prompt": " \n"}, "prompt: it is empty"),
        ("sensitivity", {"prompt": "q", "answer": ""}, "answer: it is empty"),
        ("answers", {"prompt": "x" * 8001}, "prompt: it is too long; at most 8000 characters"),
        ("answers", {"prompt": "q \ud800"}, "prompt: it holds half a character"),
        ("answers", {"prompt": "q", "max_tokens": 0}, "max_tokens: "),
        ("answers", {"prompt": "q", "run": "../x"}, "run: "),
        ("answers", {"prompt": "q", "code": "x"}, "code: "),
        ("other", {}, "question: "),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(kind, values, said):
    with pytest.raises(InputError) as error:
        questions.make(kind, **{"run": "r", **values})
    assert str(error.value).startswith(said) and "\n" not in str(error.value)


@pytest.mark.parametrize("rows", [(0, 513), (5, 5), (5, 1)])
def test_regions_are_bounded(rows):
    with pytest.raises(InputError, match="rows: .* 1 to 512 are accepted"):
        region(rows=rows)


@pytest.mark.parametrize("id", ["", "..", "../..", "a/b", "0" * 20 + "-" + "g" * 16])
def test_ids_are_none_but_our_own(tmp_path, id):
    assert asks.named(id, tmp_path).state().name == "gone"


# -- damage ----------------------------------------------------------------------------------------------

NAMES = ("ask.json", "taken.json", "said.json", "answer.json", "answer.safetensors")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def paths(value: object, at: tuple = ()) -> list[tuple]:
    """Places inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(p for key, child in inner for p in paths(child, (*at, key)))]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(NAMES),
    inside=st.booleans(),
    where=st.integers(0, 10**6),
    value=VALUES,
    noise=st.binary(max_size=20),
)
def test_damaged_files_become_sentences(tmp_path, name, inside, where, value, noise):
    """Whatever lies in one of the files, whoever looks gets a state, and the question has an end."""
    ask = asks.put(region(), tmp_path, "cpu")
    assert asks.take(tmp_path, everywhere) is not None
    ask.say("at it")
    if name.startswith("answer"):
        ask.done(questions.RegionAnswer(rows=(0, 2), cols=(0, 3), examples=4), np.ones((2, 3), np.float32))
    whole = ask.path(name).read_bytes()
    if name.endswith(".json") and inside:
        values = json.loads(whole)
        places = [p for p in paths(values) if p]
        *way, last = places[where % len(places)]
        inner = values
        for key in way:
            inner = inner[key]
        inner[last] = value
        ask.path(name).write_text(json.dumps(values))
    else:
        ask.path(name).write_bytes(whole[: where % (len(whole) + 1)] + noise)
    state = ask.state()
    assert state.name in ("waiting", "working", "done", "failed")
    assert (state.name == "failed") == bool(state.error) and (state.name == "done") == (state.answer is not None)
    asks.take(tmp_path, everywhere), asks.before(ask), asks.waiting(tmp_path), ask.device
    ask.fail("given up")
    assert ask.state().over
    ask.cancel()
    assert not ask.folder.exists()


def test_what_is_too_large_is_not_read(tmp_path):
    ask = put(tmp_path)
    ask.path("answer.json").write_bytes(b" " * (asks.MAX_ANSWER + 1))
    assert "damaged" in ask.state().error
    other = put(tmp_path)
    other.path("ask.json").write_bytes(b" " * (asks.MAX_ASK + 1))
    assert "cannot be read" in other.state().error
