"""Generated code in its box. The programs in hostile/ each try one way out; never run them anywhere else."""

from __future__ import annotations

import gzip
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from paraknow.errors import Cancelled, ResourceError
from paraknow.evaluate import isolation, sandbox

HOSTILE = {path.stem: path.read_text() for path in sorted((Path(__file__).parent / "hostile").glob("*.py"))}
HONEST = sandbox.Trial("def double(x):\n    return 2 * x\n", "assert double(4) == 8", ("double",))
ENDLESS = sandbox.Trial("while True: pass", "", ())
SMALL = sandbox.Limits(seconds=3.0, memory=256 << 20, file_bytes=4 << 20, output_bytes=1 << 20)
# What a program that comes to nothing says: proof that it tried, and that it got nothing.
EMPTY = {
    "fork_bomb": "made 0",
    "memory_uncounted": "got []",
    "deletes_outside": "deleted []",
    "reads_outside": "read []",
    "writes_outside": "wrote []",
    "links": "got []",
    "proc": "got [False]",
    "sockets": "got []",
    "sockets_by_libc": "got []",
    "traces_parent": "got []",
    "runs_programs": "ran []",
    "new_namespaces": "got []",
    "reads_the_tests": "nothing",
    "environment": "['LC_CTYPE', 'PYTHONHASHSEED'] box",
    "kills_others": "killed",
}
STATUS = {
    **dict.fromkeys(("endless_loop", "ignores_signals", "sleeps", "sleeps_at_import", "output_flood"), "timeout"),
    **dict.fromkeys(("endless_iterator",), "timeout"),
    **dict.fromkeys(("exit_at_once", "clears_death"), "killed"),
    **dict.fromkeys(("memory_without_limits", "huge_value", "huge_list", "deep_value", "endless_value"), "error"),
    **dict.fromkeys(
        ("garbage", "deep_message", "equal_object", "syntax_error", "terminal_codes", "exit_at_import"), "error"
    ),
    **dict.fromkeys(EMPTY, "failed"),
}


@pytest.fixture(scope="module", autouse=True)
def isolated():
    if reason := sandbox.available():
        pytest.skip(reason)


def boxes(parent: int) -> list[psutil.Process]:
    """Live processes of boxes that `parent` made, found by their command line: orphans keep it."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if sandbox.START in words and words[-2] == str(parent):
            found.append(process)
    return found


def gone(parent: int, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while boxes(parent) and time.monotonic() < end:
        time.sleep(0.02)
    return not boxes(parent)


def one(program: str, tests: str, *entry: str, limits: sandbox.Limits | None = None) -> sandbox.Outcome:
    return sandbox.run([sandbox.Trial(program, tests, entry)], limits)[0]


@pytest.fixture(scope="module")
def attacked():
    """All hostile programs in one run, an honest one after each, watched from outside."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)  # it is the box that keeps the canary, not the mode of its folder
    try:
        yield attack(folder)
    finally:
        shutil.rmtree(folder)


def attack(folder):
    canary = folder / "canary"
    secret, expected = secrets.token_hex(8), f"expected-{secrets.token_hex(8)}"
    canary.write_text(secret)
    canary.chmod(0o666)
    os.environ["PARAKNOW_SECRET"] = secret
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        tests = f"x = answer({str(canary)!r}, {port})\nassert x == {expected!r}, x if isinstance(x, str) else repr(x)"
        trials = [t for program in HOSTILE.values() for t in (sandbox.Trial(program, tests, ("answer",)), HONEST)]
        most, done = [0], threading.Event()

        def watch():
            while not done.wait(0.05):
                most[0] = max(most[0], len(boxes(os.getpid())))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            outcomes = sandbox.run(trials, SMALL, workers=4)
        finally:
            done.set()
            watcher.join()
            del os.environ["PARAKNOW_SECRET"]
        left = boxes(os.getpid())
        server.settimeout(0)
        try:
            called = server.accept()
        except BlockingIOError:
            called = None
    return SimpleNamespace(
        outcomes=dict(zip(HOSTILE, outcomes[::2], strict=True)),
        honest=dict(zip(HOSTILE, outcomes[1::2], strict=True)),
        most=most[0],
        left=left,
        called=called,
        canary=canary,
        secret=secret,
        expected=expected,
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_no_hostile_program_passes_or_gets_anything_and_the_next_item_runs(attacked, name):
    outcome = attacked.outcomes[name]
    assert not outcome.passed and outcome.status != "passed"
    assert outcome.status == STATUS.get(name, outcome.status), outcome
    assert outcome.said and len(outcome.said) <= 300 and outcome.said.isprintable()
    assert attacked.secret not in outcome.said
    if name in EMPTY:
        assert outcome.said.endswith(f" {EMPTY[name]}"), outcome
    assert outcome.seconds < SMALL.seconds + 5
    assert attacked.honest[name].passed, attacked.honest[name]


def test_nothing_is_left_of_the_hostile_programs_and_nothing_outside_changed(attacked):
    assert attacked.left == []
    assert attacked.called is None
    assert attacked.canary.read_text() == attacked.secret
    assert [p.name for p in attacked.canary.parent.iterdir()] == ["canary"]
    assert 0 < attacked.most <= 4 * 2 * 4  # items × boxes × (outer, helper, first, working)


def test_memory_threads_and_the_folder_stay_within_limits(attacked):
    amount = {name: int(attacked.outcomes[name].said.split()[-2]) for name in ("memory_hog", "fills_folder")}
    assert 0 < amount["memory_hog"] < 256 and 0 < amount["fills_folder"] <= 4  # MiB
    assert 0 < int(attacked.outcomes["thread_bomb"].said.split()[-1]) <= SMALL.processes


def test_values_come_across_as_they_are():
    program = """
import collections, enum

class Color(enum.IntEnum):
    RED = 3

def back(x):
    return x

def kinds():
    pair = collections.namedtuple("Pair", "a b")
    return [collections.Counter("aab"), collections.OrderedDict(a=1), pair(1, 2), Color.RED]

def made(what):
    return {"map": map(str, [1, 2]), "keys": {1: 2}.keys(), "deque": collections.deque([1])}[what]

def many():
    while True:
        yield 1
"""
    tests = """
import collections, math
for x in (None, True, 0, -1, 10**5000, 1.5, -0.0, math.inf, 2j, "", "é\\ud800\\0", b"\\0\\xff", bytearray(b"a"), [],
          [[1]], (1,), (), {1, 2}, frozenset({(1, "a")}), {"a": [1, {2: (3,)}], (1, 2): None}, range(3, 9, 2)):
    y = back(x)
    assert y == x and type(y) is type(x), (x, y)
assert back(True) is True and math.copysign(1, back(-0.0)) == -1 and math.isnan(back(math.nan))
assert back(x=[1]) == [1]
assert kinds() == [{"a": 2, "b": 1}, {"a": 1}, (1, 2), 3]
assert made("map") != ["1", "2"] and list(made("map")) == ["1", "2"]  # an iterator stays one
assert made("keys") == {1} and made("deque") != [1] and made("deque") == collections.deque([1])
assert next(many()) == 1
"""
    outcome = one(program, tests, "back", "kinds", "made", "many")
    assert outcome.passed, outcome


def test_exceptions_come_across_as_the_nearest_builtin():
    program = "class Mine(KeyError): pass\ndef f(x):\n    raise {1: Mine('m'), 2: SystemExit(0), 3: ValueError('v')}[x]"
    tests = """
for x, kind in ((1, KeyError), (2, RuntimeError), (3, ValueError)):
    try:
        f(x)
    except kind as error:
        assert type(error) is kind, error
    else:
        assert False
"""
    assert one(program, tests, "f").passed
    assert one(program, "f(3)", "f").said == "ValueError: v"


def test_a_program_that_ends_cannot_pass_though_the_tests_catch_everything():
    tests = "try:\n    f()\nexcept BaseException:\n    pass\n"
    outcome = one("import os\ndef f():\n    os._exit(0)", tests, "f")
    assert (outcome.passed, outcome.status) == (False, "killed") and "code 0" in outcome.said


@pytest.mark.parametrize("kind", ["StopIteration", "StopAsyncIteration"])
def test_a_program_cannot_end_the_tests_iteration(kind):
    """all() of nothing holds: the end of an iteration must not come from the program's side."""
    outcome = one(f"def f(x):\n    raise {kind}\n", "assert all(map(f, [1, 2, 3]))", "f")
    assert not outcome.passed and kind in outcome.said


def test_tests_that_call_nothing_pass_nothing():
    assert one("def f(): pass", "assert True", "f").said == "the tests called nothing of the program"


def test_an_item_ends_the_same_way_every_time():
    program = "import random\ndef f(x):\n    return x, random.random(), list({'a', 'b', 'c', 'd'})"
    tests = "import random\nx = f(random.random())\nassert False, x"
    first, second = sandbox.run([sandbox.Trial(program, tests, ("f",))] * 2)
    assert first.said == second.said and first.status == "failed"


def test_processor_time_is_limited_within_the_wall_clock():
    program = "import threading\ndef f():\n    while True: pass\n[threading.Thread(target=f).start() for _ in range(3)]"
    assert one(program, "f()", "f", limits=sandbox.Limits(seconds=1.0)).status == "timeout"


def test_mbpp_names_setup_and_what_does_not_cross():
    record = {
        "task_id": 1,
        "text": "Write a function to add.",
        "code": "def sum(a, b):\n    set = [a, b]\n    return a + b",
        "test_setup_code": "import math\nfive = 5",
        "test_list": ["assert sum(2, 3) == five", "assert set([sum(0, 1)]) == {1} and math.isclose(sum(1, 1), 2)"],
    }
    right = sandbox.mbpp(record, "def sum(a, b):\n    return a + b\ndef set(x):\n    return None")
    assert right.entry == ("sum",)  # set is the builtin: the publisher's solution does not define one
    wrong = sandbox.mbpp(record, "def sum(a, b):\n    return 5")
    pair = {"task_id": 2, "code": "", "test_list": ["assert first(Pair(1, 2)) == 1"]}
    classes = sandbox.mbpp(pair, "class Pair:\n    def __init__(self, a, b): pass\ndef first(p): return 1")
    assert classes.entry == ("Pair", "first")
    outcomes = sandbox.run([right, wrong, classes, sandbox.mbpp(record, "x = 1")])
    assert [o.status for o in outcomes] == ["passed", "failed", "error", "error"]
    assert "math.isclose" in outcomes[1].said and "'Pair' cannot be tested" in outcomes[2].said
    assert "'sum' is not defined" in outcomes[3].said


@pytest.fixture(scope="module")
def problems(benchmark_data):
    path = benchmark_data / "humaneval" / "HumanEval.jsonl.gz"
    if not path.is_file():
        pytest.skip("the folder with real benchmark records has no HumanEval")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_the_publishers_solutions_of_humaneval_pass(problems):
    outcomes = sandbox.run([sandbox.humaneval(p, p["canonical_solution"]) for p in problems])
    assert [(p["task_id"], o.said) for p, o in zip(problems, outcomes, strict=True) if not o.passed] == []


def test_no_humaneval_problem_is_passed_by_doing_nothing(problems):
    outcomes = sandbox.run([sandbox.humaneval(p, "    return None\n") for p in problems])
    assert len(outcomes) == 164 and {o.status for o in outcomes} <= {"failed", "error"}


def test_progress_counts_and_cancelling_leaves_nothing():
    seen = []

    def progress(step, total, message="", **values):
        if values:  # else an item is waited for
            seen.append((step, total, values["passed"]))
        if step == 2:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        sandbox.run([HONEST, HONEST, ENDLESS, ENDLESS], workers=2, progress=progress)
    assert seen == [(1, 4, 1.0), (2, 4, 1.0)]
    assert boxes(os.getpid()) == []


def test_boxes_end_with_the_process_that_made_them():
    code = (
        "from paraknow.evaluate import sandbox\n"
        "trial = sandbox.Trial('import ctypes\\nctypes.CDLL(None).prctl(1, 0, 0, 0, 0)\\nwhile True: pass', '', ())\n"
        "assert sandbox.available() is None\nprint('go', flush=True)\n"
        "sandbox.run([trial] * 2, sandbox.Limits(seconds=60), workers=2)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"go\n"
            end = time.monotonic() + 20
            while len(boxes(process.pid)) < 12 and time.monotonic() < end:
                time.sleep(0.02)
            assert len(boxes(process.pid)) == 12  # items × boxes × (outer, first, working)
        finally:
            process.kill()
    assert gone(process.pid)


def test_limits_are_checked():
    for wrong in ({"seconds": 0}, {"memory": 1 << 20}, {"processes": -1}):
        with pytest.raises(ValueError, match="Limits: all must be positive"):
            sandbox.Limits(**wrong)


def test_where_the_platform_cannot_isolate_nothing_runs(monkeypatch):
    monkeypatch.setattr(sandbox, "available", lambda: "No walls here.")
    monkeypatch.setattr(sandbox, "_run", lambda *_: pytest.fail("it ran"))
    with pytest.raises(ResourceError, match="No walls here. Use a Linux machine"):
        sandbox.run([HONEST])


def test_other_platforms_and_refused_namespaces_are_told_apart(monkeypatch):
    sandbox.available.cache_clear()
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    assert sandbox.available() == "Generated code can be isolated only on Linux, not on darwin."
    sandbox.available.cache_clear()
    monkeypatch.undo()
    monkeypatch.setattr(sandbox, "PROBE", "def reached():\n    return ['the network']")
    assert "the network" in (sandbox.available() or "")
    sandbox.available.cache_clear()


def test_a_machine_whose_system_calls_are_not_listed_is_refused():
    assert all(len(isolation.filter_program(machine)) % 8 == 0 for machine in ("x86_64", "aarch64"))
    with pytest.raises(isolation.Refused, match="not for riscv64"):
        isolation.filter_program("riscv64")
