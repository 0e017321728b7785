"""Small questions that a page puts to the worker: a mailbox of files beside the runs (no torch).

An ask is a folder runs/.asks/<id>/: ask.json (the question, whose it is, since when), taken.json (the supervisor that
has it, and how often it was taken), said.json (how far it is), cancel (nobody wants it any more), answer.json and
answer.safetensors. Every file is replaced as a whole. Ids are made here and say the order. Nothing of an ask goes into
a run's folder, and none holds a run's lock.

Reading never raises: a damaged ask or answer is one that failed, with a sentence.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from paraknow import access, files, limits
from paraknow.errors import InputError
from paraknow.runs import processes, questions
from paraknow.runs.questions import Answer, Question, RegionAnswer

FOLDER = ".asks"  # of a runs folder; hidden, so that no listing of runs looks into it
ID = re.compile(r"\d{20}-[0-9a-f]{16}")
KEPT = 3600.0  # seconds after which an ask is removed, answered or not
MOST = 100  # asks in the mailbox
ATTEMPTS = 2  # times an ask is handed out: once more where a supervisor is gone with it
MAX_ASK, MAX_ANSWER, MAX_VALUES = 256 * 2**10, 16 * 2**20, 4 * 2**20  # bytes


@dataclass(frozen=True)
class State:
    """How an ask stands: waiting, working, done, failed or gone (removed).

    message: what is being done, where it is worked on; error: why it failed. answer and values: where it is done.
    """

    name: Literal["waiting", "working", "done", "failed", "gone"]
    message: str = ""
    error: str = ""
    answer: Answer | None = None
    values: np.ndarray | None = None

    @property
    def over(self) -> bool:
        return self.name not in ("waiting", "working")


# -- the mailbox -----------------------------------------------------------------------------------------


class Ask:
    """One question in the mailbox. Reading never raises."""

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def id(self) -> str:
        return self.folder.name

    def path(self, name: str) -> Path:
        return self.folder / name

    @property
    def root(self) -> Path:
        """The runs folder."""
        return self.folder.parent.parent

    @property
    def device(self) -> str:
        """Where its run is carried out: auto, cpu or cuda."""
        return str(self._read("ask.json", MAX_ASK).get("device", "cpu"))

    def question(self) -> Question | None:
        """What is asked; None where that cannot be read."""
        return questions.read(self._read("ask.json", MAX_ASK).get("question"))

    def state(self) -> State:
        """How it stands."""
        if not self.folder.is_dir():
            return State("gone")
        if self.path("answer.json").exists():
            return self._answered()
        if self.question() is None:
            return State("failed", error="the question cannot be read any more; ask again.")
        if self._holder():
            return State("working", message=str(self._read("said.json", MAX_ASK).get("message", ""))[:200])
        return State("waiting")

    def _answered(self) -> State:
        found = self._read("answer.json", MAX_ANSWER)
        damaged = State("failed", error="its answer is damaged; ask again.")
        if found.get("error"):
            return State("failed", error=str(found["error"])[:2000])
        answer = questions.read_answer(found.get("answer"))
        if answer is None:
            return damaged
        if not isinstance(answer, RegionAnswer):
            return State("done", answer=answer)
        values = self._values()
        shape = (answer.rows[1] - answer.rows[0], answer.cols[1] - answer.cols[0])
        if values is None or values.shape != shape:
            return damaged
        return State("done", answer=answer, values=values)

    def _values(self) -> np.ndarray | None:
        try:
            if self.path("answer.safetensors").stat().st_size > MAX_VALUES:
                return None
            values = load_file(self.path("answer.safetensors"))["values"]
        except (OSError, KeyError, ValueError, TypeError, SafetensorError):
            return None
        sound = values.dtype == np.float32 and values.ndim == 2 and bool(np.isfinite(values).all())
        return values if sound else None

    def _read(self, name: str, most: int) -> dict[str, Any]:
        """A JSON file of the ask; empty where there is none, it is damaged or too large."""
        try:
            if self.path(name).stat().st_size > most:
                return {}
            return files.read_json(self.path(name))
        except (OSError, ValueError):
            return {}

    def _holder(self) -> Literal["here", "elsewhere", ""]:
        """Where a living supervisor has it. One of another machine is believed, until the ask is too old."""
        taken = self._read("taken.json", MAX_ASK)
        if not taken:
            return ""
        if taken.get("host") != socket.gethostname():
            return "elsewhere"
        pid, born = taken.get("pid"), taken.get("born")
        if not isinstance(pid, int) or not isinstance(born, float) or not 0 < pid < 2**31:
            return ""
        return "here" if processes.same(pid, born) is not None else ""

    # -- whoever asked ------------------------------------------------------------------------------

    def cancel(self) -> None:
        """Nobody wants it any more: asked to stop where a process of this machine works on it, else removed."""
        with suppress(OSError), _locked(self.root):
            if self.state().name == "working" and self._holder() == "here":
                self.path("cancel").touch()
            else:
                shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def cancelled(self) -> bool:
        return self.path("cancel").exists()

    def cancelled_for(self) -> float:
        """Seconds since it was cancelled; 0 where it was not."""
        try:
            return max(0.0, time.time() - self.path("cancel").stat().st_mtime)
        except OSError:
            return 0.0

    # -- whoever answers ----------------------------------------------------------------------------

    def say(self, message: str) -> None:
        """What is being done, for whoever waits."""
        self._write("said.json", {"message": message})

    def done(self, answer: Answer, values: np.ndarray | None = None) -> None:
        """Write the answer down."""
        if values is not None and self.folder.is_dir():
            with files.replacing(self.path("answer.safetensors")) as temporary:
                save_file({"values": np.ascontiguousarray(values, np.float32)}, temporary)
        self._write("answer.json", {"answer": answer.model_dump(mode="json")})

    def fail(self, sentence: str) -> None:
        """Write down why there is no answer; nothing where there is one by now."""
        try:
            if not self.path("answer.json").exists():
                self._write("answer.json", {"error": sentence})
        except OSError:  # no space is left: whoever waits sees that it is gone
            shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, name: str, values: dict[str, Any]) -> None:
        if self.folder.is_dir():  # else it was cancelled or removed: writing would make it anew
            files.write_json(self.path(name), values)


def put(asked: Question, root: Path, device: str) -> Ask:
    """Put a question into the mailbox. Raises InputError where too many wait."""
    sweep(root)
    waiting = len(list(_waiting(root)))
    limits.check_asks(waiting)
    if waiting >= MOST:
        raise InputError(f"asks: {waiting} questions wait already, the most there can be; try again later.")
    name = f"{time.time_ns():020d}-{secrets.token_hex(8)}"
    with files.replacing_folder(root / FOLDER / name) as folder:
        about = {"created": time.time(), "device": device, "question": asked.model_dump(mode="json")}
        files.write_json(folder / "ask.json", about)
        access.keep(folder)
    return Ask(root / FOLDER / name)


def named(id: str, root: Path) -> Ask:
    """The ask of an id; one that is gone where the id is none."""
    return Ask(root / FOLDER / (id if ID.fullmatch(id) else "none"))


def waiting(root: Path, serves: Callable[[str], bool] = lambda device: True) -> list[Ask]:
    """Asks that nobody has taken, in their order, of the devices that `serves` says."""
    return [ask for ask in _waiting(root) if serves(ask.device)]


def _all(root: Path) -> list[Ask]:
    try:
        names = sorted(name for name in os.listdir(root / FOLDER) if ID.fullmatch(name))
    except OSError:
        return []
    return [Ask(root / FOLDER / name) for name in names]


def _waiting(root: Path) -> Iterator[Ask]:
    """Those that still need somebody: their question unread, or unreadable, and no answer written."""
    for ask in _all(root):
        if not ask.path("answer.json").exists() and not ask._holder():
            yield ask


def take(root: Path, serves: Callable[[str], bool]) -> Ask | None:
    """Take the next ask for this process; None where none waits. One that was taken too often has failed."""
    if not waiting(root, serves):
        return None
    with _locked(root):
        for ask in waiting(root, serves):
            attempt = ask._read("taken.json", MAX_ASK).get("attempt", 0)
            attempt = 1 + (attempt if isinstance(attempt, int) else 0)
            if ask.cancelled or attempt > ATTEMPTS:
                ask.fail("cancelled." if ask.cancelled else "the worker ended twice while it worked on this.")
                continue
            me = {"host": socket.gethostname(), "pid": os.getpid(), "born": processes.born(), "attempt": attempt}
            ask._write("taken.json", me)
            return ask
    return None


def before(ask: Ask) -> int:
    """How many asks are answered before this one."""
    return sum(other.id < ask.id and not other.state().over for other in _all(ask.root))


def sweep(root: Path) -> None:
    """Remove what is older than an hour and what nobody can finish; of the answered ones the oldest beyond MOST."""
    found = _all(root)
    over = [ask for ask in found if ask.path("answer.json").exists()]
    spare = {ask.id for ask in over[: max(0, len(found) - MOST)]}
    for ask in found:
        old = time.time() - int(ask.id.partition("-")[0]) / 1e9 > KEPT
        if ask.id in spare or (old and ask._holder() != "here"):
            shutil.rmtree(ask.folder, ignore_errors=True)


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    with FileLock(root / FOLDER / ".lock", timeout=10):
        yield
