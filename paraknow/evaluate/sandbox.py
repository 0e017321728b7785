"""Run generated code in a box and say whether it passes its tests (HumanEval, MBPP).

Two boxes per item (see `isolation`): one runs the generated program and answers calls of its functions, the other
runs the tests and never any generated code. They exchange plain values only (see `crossing`), so a program can pass
only by answering right. Where the platform cannot make such boxes, nothing is run.

What the walls do not keep out: faults of the kernel itself, and the warmth of the processor. A program may read the
standard library and the system's shared libraries, knows the machine's kind and the time, and uses the processor until
its time is up.
"""

from __future__ import annotations

import ast
import builtins
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from paraknow.errors import ResourceError
from paraknow.progress import Progress, silent

SAID = 300  # characters of an outcome's text
REPORT = 1 << 16  # bytes kept of what a box reports
LEAST_MEMORY = 64 << 20  # bytes of address space
PATIENCE = 5.0  # seconds a box has to end itself before it is killed from outside

HOME = Path(__file__).resolve().parents[2]
# Our own folder is on the path for one import only, and last: nothing in it may hide a standard module.
START = """import sys
sys.path.append(sys.argv[4])
from paraknow.evaluate import isolation
sys.path.pop()
isolation.main()"""

Status = Literal["passed", "failed", "error", "timeout", "killed"]


@dataclass(frozen=True)
class Limits:
    """What one item may use. Each of its two boxes has these limits.

    seconds: of wall clock for the whole item, start included, and of processor time. memory: bytes of address space.
    processes: threads of the one process there is; it can start no other process. file_bytes: of all files together
    in the working folder, which is in memory. output_bytes: of one answer; printed output is thrown away.
    Raises: ValueError for a limit that is not positive, or memory in which Python does not start.
    """

    seconds: float = 10.0
    memory: int = 1 << 30
    processes: int = 16
    file_bytes: int = 16 << 20
    output_bytes: int = 8 << 20

    def __post_init__(self) -> None:
        if min(self.seconds, self.processes, self.file_bytes, self.output_bytes) <= 0 or self.memory < LEAST_MEMORY:
            raise ValueError(f"Limits: all must be positive, memory at least {LEAST_MEMORY:,} bytes; got {self}.")


@dataclass(frozen=True)
class Trial:
    """A program and its tests.

    program: the generated code. tests: code to execute against it; names in `entry` stand for the program's functions
    there. helpers: code of the publisher to execute before the tests.
    """

    program: str
    tests: str
    entry: tuple[str, ...]
    helpers: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    status: passed; failed (an assertion); error (an exception, or a value that cannot be tested); timeout (time or
    processor time used up); killed (the program's process ended before its tests did). seconds: wall clock. said: the
    assertion or the error in one line of at most 300 printable characters; "" for a pass.
    """

    passed: bool
    status: Status
    seconds: float
    said: str


def humaneval(record: Mapping[str, Any], completion: str) -> Trial:
    """The trial of a HumanEval record (prompt, test, entry_point) and a completion of its prompt.

    The tests may use the other functions of the prompt; those are the publisher's and run with the tests.
    """
    entry = record["entry_point"]
    body = [n for n in ast.parse(record["prompt"]).body if not (isinstance(n, ast.FunctionDef) and n.name == entry)]
    helpers = ast.unparse(ast.Module(body, []))
    return Trial(record["prompt"] + completion, f"{record['test']}\ncheck({entry})\n", (entry,), helpers)


def mbpp(record: Mapping[str, Any], completion: str) -> Trial:
    """The trial of an MBPP record (test_list; test_setup_code, test_imports and code where present) and a completion.

    Names the tests use and nothing else defines stand for the program's functions; a builtin's name does so only
    where the publisher's own solution defines it. Classes do not cross: such an item ends in an error that says so.
    """
    helpers = "\n".join([*(record.get("test_imports") or []), record.get("test_setup_code") or ""])
    tests = "\n".join(record["test_list"])
    used = _names(tests, ast.Load)
    try:
        solved = {getattr(node, "name", "") for node in ast.parse(record.get("code") or "").body}
    except SyntaxError:
        solved = set()
    ours = (set(dir(builtins)) - solved) | _names(f"{helpers}\n{tests}", ast.Store)
    return Trial(completion, tests, tuple(sorted(used - ours)), helpers)


def _names(code: str, use: type[ast.expr_context]) -> set[str]:
    """Names that code reads (ast.Load), or defines in any way (ast.Store)."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, use):
            found.add(node.id)
        elif use is ast.Store and isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif use is ast.Store and isinstance(node, ast.arg):
            found.add(node.arg)
        elif use is ast.Store and isinstance(node, ast.alias):
            found.add((node.asname or node.name).split(".")[0])
    return found


PROBE = '''
import os, threading

def reached():
    """What a program should not reach, and does."""
    found = []

    def attempt(name, act):
        try:
            act()
            found.append(name)
        except OSError:
            pass

    attempt("a second process", lambda: os.fork() or os._exit(0))
    attempt("the system's files", lambda: os.listdir("/etc"))
    attempt("the network", lambda: __import__("socket").socket())
    attempt("writing beside its folder", lambda: open(os.__file__, "a"))
    found += ["other processes"] * (os.getpid() > 2)
    open("file", "w").close()
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    return found
'''


@lru_cache(maxsize=1)
def available() -> str | None:
    """Why generated code cannot be isolated here, in one sentence; None where it can. Tried once per process."""
    if not sys.platform.startswith("linux"):
        return f"Generated code can be isolated only on Linux, not on {sys.platform}."
    trial = Trial(PROBE, "found = reached()\nassert not found, ', '.join(found)", ("reached",))
    try:
        outcome = _run([trial], Limits(seconds=30.0), 1, silent)[0]
    except ResourceError as error:
        return str(error)
    return None if outcome.passed else f"Generated code cannot be isolated here: a trial run ended in {outcome.said!r}."


def run(
    trials: Sequence[Trial], limits: Limits | None = None, workers: int | None = None, progress: Progress = silent
) -> list[Outcome]:
    """Outcomes of `trials`, in their order. Nothing is left when it returns or raises: no process, no file.

    Args:
        limits: per item; the defaults of `Limits` without it.
        workers: items at a time; as many as this process may use cores without it.
        progress: called after each item, with the items done and the share passed so far as `passed`; without it while
            items are waited for.
    Raises: ResourceError where the platform cannot isolate, before anything is run; what `progress` raises.
    """
    if reason := available():
        raise ResourceError(
            f"{reason} Use a Linux machine that permits user namespaces (in a container: a security profile that "
            "does), or leave out the tasks that run generated code."
        )
    return _run(trials, limits or Limits(), workers or len(os.sched_getaffinity(0)), progress)


def _run(trials: Sequence[Trial], limits: Limits, workers: int, progress: Progress) -> list[Outcome]:
    outcomes: dict[int, Outcome] = {}
    waiting = deque(enumerate(trials))
    active: dict[int, _Item] = {}
    try:
        while waiting or active:
            while waiting and len(active) < max(1, workers):
                number, trial = waiting.popleft()
                active[number] = item = _Item(limits)
                item.start(trial)
            _listen([box for item in active.values() for box in item.boxes if box.open])
            progress(len(outcomes), len(trials), "Running generated code")  # an item may take long
            for number, item in list(active.items()):
                if (found := item.outcome()) is None:
                    continue
                item.stop()
                del active[number]
                outcomes[number] = found
                passed = sum(o.passed for o in outcomes.values()) / len(outcomes)
                progress(len(outcomes), len(trials), "Running generated code", passed=passed)
    finally:
        for item in active.values():
            item.stop()
    return [outcomes[number] for number in range(len(trials))]


def _listen(boxes: Sequence[_Box]) -> None:
    """Take in what boxes report; a short while at most."""
    with selectors.DefaultSelector() as selector:
        for box in boxes:
            selector.register(box.report, selectors.EVENT_READ, box)
        for key, _ in selector.select(0.05):
            key.data.read()


class _Box:
    """A box's outer process and the pipe on which it, and what is inside and trusted, reports."""

    def __init__(self, job: dict[str, Any], channel: int) -> None:
        self.said: dict[str, Any] = {}
        self.open, self.closed = True, False
        self._data = b""
        self.report, write = os.pipe()
        source = os.memfd_create("job")
        try:
            with open(source, "wb", closefd=False) as file:
                file.write(json.dumps(job).encode())
            os.lseek(source, 0, os.SEEK_SET)
            python = [sys.executable, "-s", "-S", "-P", "-B", "-X", "utf8", "-c", START]
            self.process = subprocess.Popen(
                [*python, str(write), str(channel), str(os.getpid()), str(HOME)],
                stdin=source,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(write, channel),
                env={"PYTHONHASHSEED": "0"},
                cwd="/",
                start_new_session=True,
            )
        except BaseException:
            os.close(self.report)
            raise
        finally:
            os.close(source)
            os.close(write)

    def read(self) -> None:
        data = os.read(self.report, REPORT)
        self._data = (self._data + data)[:REPORT]
        if not data:
            self.open = False
        *lines, self._data = self._data.split(b"\n")
        for line in lines:
            self.said.update(json.loads(line))

    def stop(self) -> None:
        """End the box and wait until all in it are gone."""
        try:
            self.process.terminate()
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        if not self.closed:
            os.close(self.report)
            self.open, self.closed = False, True


@dataclass
class _Item:
    """One trial under way."""

    limits: Limits
    boxes: list[_Box] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    last: float | None = None  # when to stop waiting for how the program ended

    def start(self, trial: Trial) -> None:
        import socket

        ends = socket.socketpair()
        shared = asdict(self.limits)
        tested: dict[str, Any] = {"role": "program", "program": trial.program}
        testing: dict[str, Any] = {
            "role": "tests",
            "tests": trial.tests,
            "helpers": trial.helpers,
            "entry": trial.entry,
        }
        with ends[0], ends[1]:
            for end, job in zip(ends, (tested, testing), strict=True):
                self.boxes.append(_Box({**shared, **job}, end.fileno()))

    def outcome(self) -> Outcome | None:
        """How it ended, None while it has not. Raises ResourceError where a box could not be made."""
        tested, testing = self.boxes
        for box in self.boxes:
            if "refused" in box.said:
                raise ResourceError(f"Generated code cannot be isolated here: {_clean(box.said['refused'])}.")
        now = time.monotonic()
        status, said = testing.said.get("status"), testing.said.get("said", "")
        if status in ("passed", "failed", "error"):
            return self._as(status, said)
        if status == "gone":
            self.last = self.last or now + 1.0
            if tested.open and "ended" not in tested.said and now < self.last:
                return None
            return self._as(*_ended(tested.said.get("ended"), said))
        if not testing.open:
            return self._as(*_ended(testing.said.get("ended"), "the tests did not end of themselves", "the tests"))
        if now - self.began >= self.limits.seconds:
            return self._as("timeout", f"not done after {self.limits.seconds:g} s")
        return None

    def _as(self, status: Status, said: str) -> Outcome:
        return Outcome(status == "passed", status, time.monotonic() - self.began, _clean(said))

    def stop(self) -> None:
        for box in self.boxes:
            box.process.terminate()  # both at once: each takes a moment
        for box in self.boxes:
            box.stop()


def _ended(status: int | None, otherwise: str, who: str = "the program") -> tuple[Status, str]:
    """Status and text for a process that ended before its time, by its wait status."""
    if status is None:
        return "killed", otherwise
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGXCPU:
        return "timeout", f"{who} used up its processor time"
    return "killed", f"{who} was ended by signal {-code}" if code < 0 else f"{who} ended itself with code {code}"


def _clean(text: str) -> str:
    """One line of printable characters: it comes from generated code and goes to terminals and pages."""
    return "".join(c if c.isprintable() else " " for c in text[: 4 * SAID])[:SAID].strip()
