"""A tuning that was broken off ends with the bits of one that was not."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from paraknow import budget, config, data, files, inject, savepoint, tune
from paraknow.errors import Cancelled
from paraknow.savepoint import Savepoint
from tests.test_inject import random_start

SETTINGS = config.Tune(epochs=3, batch_size=5, micro_batch=3, learning_rate=1e-2, weight_decay=0.1)
STEPS = 15


@pytest.fixture(scope="module")
def items(tiny_pair):
    _, student = tiny_pair
    return data.encode_all(data.load_task("demo:people").train[:24], student.tokenizer, 64, "tuning").items


class Stop(Exception):
    """A process that ends without a word."""


def tuned(pair, items, path=None, stop=None, error=Cancelled, every=1e9, changes=None, seed=0, about="a"):
    """One attempt: what it ended with, as plain values to compare, or None where it was broken off after `stop`."""
    said, counted = [], torch.zeros(2, dtype=torch.float64)

    def report(step, total, message="", **_):
        if step == stop:
            raise error("stop")

    def objective(ids, mask, labels, logits):
        counted.add_(torch.tensor([1.0, float(mask.sum())]))
        noise = 1 + 1e-3 * torch.rand(())  # a method may draw
        return noise * tune.cross_entropy(ids, mask, labels, logits)

    torch.manual_seed(7)
    values = SETTINGS.model_copy(update=changes or {})
    with inject.attached(pair[1], random_start(pair[1])) as wrapped, budget.counting(*pair) as spent:
        kept = Savepoint(path, {"model": about}, said.append, spent, every) if path else None
        if kept:
            kept.also["counted"] = counted
        try:
            found = tune.fine_tune(wrapped, items, values, seed, 0, report, objective, kept)
        except error:
            return SimpleNamespace(said=said)
        moving = [p.detach().clone() for p in wrapped.parameters() if p.requires_grad]
        draw = float(torch.rand(()))
    return SimpleNamespace(said=said, tuned=vars(found), spent=spent, counted=counted, moving=moving, draw=draw)


def assert_equal(one, other):
    assert one.tuned == other.tuned and one.spent == other.spent and one.draw == other.draw
    assert torch.equal(one.counted, other.counted)
    assert all(map(torch.equal, one.moving, other.moving))


@pytest.fixture(scope="module")
def unbroken(tiny_pair, items):
    found = tuned(tiny_pair, items)
    assert len(found.tuned["losses"]) == STEPS and found.spent["student_flops"] > 0
    return found


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stops=st.lists(st.integers(1, STEPS), min_size=1, max_size=3, unique=True).map(sorted))
def test_cancelled_after_any_steps_it_ends_with_the_same_bits(tiny_pair, items, unbroken, tmp_path, stops):
    path = tmp_path / f"{'-'.join(map(str, stops))}.safetensors"
    for stop in stops:
        tuned(tiny_pair, items, path, stop)
        assert path.is_file()
    last = tuned(tiny_pair, items, path)
    assert_equal(last, unbroken)
    assert not last.said


def test_a_killed_one_goes_on_from_the_last_writing(tiny_pair, items, unbroken, tmp_path, monkeypatch):
    """Written after every step here; what comes between the last writing and the end is made again."""
    monkeypatch.setattr(savepoint, "SHARE", 1e9)
    path = tmp_path / "0.safetensors"
    tuned(tiny_pair, items, path, 6, Stop, every=0)
    with safe_open(path, "pt") as stream:
        assert '"step": 5' in stream.metadata()["savepoint"]
    assert_equal(tuned(tiny_pair, items, path, every=0), unbroken)
    assert_equal(tuned(tiny_pair, items, path), unbroken)  # finished already, and not yet written as a result


def test_short_tunings_and_errors_write_nothing(tiny_pair, items, tmp_path):
    path = tmp_path / "0.safetensors"
    tuned(tiny_pair, items, path, 4, Stop, every=savepoint.EVERY)
    tuned(tiny_pair, items, path, every=savepoint.EVERY)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stops", [[10, 12], [13]])
def test_a_loss_that_runs_away_is_seen_across_a_break(tiny_pair, items, tmp_path, monkeypatch, stops):
    """Best after 8 steps, above the limit from the tenth on: five of those in a row end it."""
    script = [3, 2, 1.5, 1, 0.8, 0.6, 0.5, 0.4, 0.4, *[9] * 12]
    real = tune._backward

    def attempt(calls, *given, **named):
        def scripted(*wanted):
            calls.append(real(*wanted))
            return torch.tensor(float(script[len(calls) - 1]))

        monkeypatch.setattr(tune, "_backward", scripted)
        return tuned(tiny_pair, items, *given, **named, changes={"epochs": 4})

    whole, calls, path = attempt([]), [], tmp_path / "0.safetensors"
    for stop in stops:
        attempt(calls, path, stop)
    broken = attempt(calls, path)
    assert whole.tuned["stopped"] == 15 and whole.tuned["kept_step"] == 8 and len(calls) == 15
    assert_equal(broken, whole)


def attempt(student, items, kept=None, stop=None):
    """As a run does it: losses and weights, by name; None where it was broken off."""

    def report(step, total, message="", **_):
        if step == stop:
            raise Cancelled("stop")

    with inject.attached(student, random_start(student)) as wrapped, suppress(Cancelled):
        found = tune.fine_tune(wrapped, items, SETTINGS, 0, 0, report, savepoint=kept)
        moving = [p.detach().clone() for p in wrapped.parameters() if p.requires_grad]
        return {str(i): p for i, p in enumerate(moving)} | {"losses": torch.tensor(found.losses, dtype=torch.float64)}
    return None


def test_in_another_process(tiny_pair, items, tmp_path):
    student, path, out = tiny_pair[1], tmp_path / "0.safetensors", tmp_path / "out.safetensors"
    assert attempt(student, items, Savepoint(path, {}), 7) is None and path.is_file()
    code = f"""
from pathlib import Path
from safetensors.torch import save_file
from paraknow import data, models
from tests.test_savepoint import Savepoint, attempt
student = models.load({str(student.checkpoint.folder)!r}, device="cpu")
items = data.encode_all(data.load_task("demo:people").train[:24], student.tokenizer, 64, "tuning").items
kept = Savepoint(Path({str(path)!r}), {{}})
save_file(attempt(student, items, kept), {str(out)!r})
assert kept.kept
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert not done.returncode, done.stderr
    whole, broken = attempt(student, items), load_file(out)
    assert whole.keys() == broken.keys() and all(torch.equal(whole[name], broken[name]) for name in whole)


@pytest.mark.parametrize("fault", [OSError("No space left"), KeyboardInterrupt()])
def test_broken_off_while_writing_the_old_file_is_whole(tiny_pair, items, unbroken, tmp_path, monkeypatch, fault):
    path = tmp_path / "0.safetensors"
    tuned(tiny_pair, items, path, 4)
    before = path.read_bytes()

    def refuse(*_):
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", refuse)
        if isinstance(fault, OSError):  # the tuning itself is none the worse for it, and says so once
            found = tuned(tiny_pair, items, path, every=0)
            assert_equal(found, unbroken)
            assert len(found.said) == 1 and "cannot be written down (No space left)" in found.said[0]
        else:
            with pytest.raises(KeyboardInterrupt):
                tuned(tiny_pair, items, path, 9)
    assert [file.name for file in tmp_path.iterdir()] == [path.name] and path.read_bytes() == before
    assert_equal(tuned(tiny_pair, items, path), unbroken)


def rewritten(path, change):
    """The file with its notes changed and everything else as it was."""
    with safe_open(path, "pt") as stream:
        notes = stream.metadata()["savepoint"]
    assert change(notes) != notes
    save_file(load_file(path), path, metadata={"savepoint": change(notes)})


def flip(path):
    held = bytearray(path.read_bytes())
    held[-100] ^= 1
    path.write_bytes(held)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-50]), "it is damaged"),
        (lambda p: p.write_bytes(b""), "it is damaged"),
        (flip, "it is damaged"),
        (lambda p: save_file({"x": torch.zeros(1)}, p), "it is damaged"),
        (lambda p: rewritten(p, lambda n: n.replace('"step": 2', '"step": 3')), "it is damaged"),
        (lambda p: rewritten(p, lambda n: n.replace('"schema_version": 1', '"schema_version": 9')), "another version"),
    ],
)
def test_damaged_files_are_not_used(tiny_pair, items, unbroken, tmp_path, spoil, why):
    path = tmp_path / "0.safetensors"
    tuned(tiny_pair, items, path, 2)
    spoil(path)
    found = tuned(tiny_pair, items, path)
    assert len(found.said) == 1 and "tuning starts over: 0.safetensors" in found.said[0] and why in found.said[0]
    assert_equal(found, unbroken)


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"about": "b"}, "another model or other settings"),
        ({"seed": 1}, "other data, other settings or another start"),
        ({"changes": {"learning_rate": 2e-2}}, "other data, other settings or another start"),
        ({"fewer": 1}, "other data, other settings or another start"),
    ],
)
def test_foreign_files_are_not_used(tiny_pair, items, tmp_path, other, why):
    path, own = tmp_path / "0.safetensors", items[other.pop("fewer", 0) :]
    tuned(tiny_pair, items, path, 2)
    found = tuned(tiny_pair, own, path, **other)
    assert len(found.said) == 1 and why in found.said[0]
    assert_equal(found, tuned(tiny_pair, own, **other))


def test_another_start_or_shape_is_foreign():
    start = [torch.ones(2, 3), torch.ones(4)]
    seen = {savepoint.fingerprint(s, "x") for s in (start, [torch.ones(3, 2), start[1]], [2 * start[0], start[1]])}
    seen |= {savepoint.fingerprint(start, "y"), savepoint.fingerprint([t.double() for t in start], "x")}
    assert len(seen) == 5 and savepoint.fingerprint([t.clone() for t in start], "x") in seen


def test_only_ones_own_files_are_removed(tmp_path):
    names = ["1", "1.learn", "10", "11.learn"]
    for name in names:
        (tmp_path / f"{name}{savepoint.ENDING}").touch()
    (tmp_path / f".1{savepoint.ENDING}.a8d").touch()  # left by a process that was killed while it wrote
    own = Savepoint(tmp_path / f"1{savepoint.ENDING}", {})
    assert own.named("learn").path.name == f"1.learn{savepoint.ENDING}"
    own.remove()
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"10{savepoint.ENDING}", f"11.learn{savepoint.ENDING}"]


def test_writing_takes_a_small_share_of_the_time_however_slow_it_is(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(savepoint, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def slow(*_, **__):
        clock[0] += 3.0

    monkeypatch.setattr(savepoint.os, "fsync", slow)
    kept = Savepoint(tmp_path / "x", {})
    writings = 0
    while clock[0] < 3600:
        clock[0] += 0.5
        if kept.due():
            kept.write("", {"x": torch.zeros(1)}, {})
            writings += 1
    assert writings > 10 and 3 * writings <= savepoint.SHARE * clock[0] + 3
