"""The worker of one device: takes questions and queued runs in turn and has a child process see to them (no torch).

The child (worker.py) holds the models; this process holds none, so it outlives whatever ends the child: a kill, the
system's want of memory, a run that has to be ended because it does not heed its cancelling. What was under way is
written down then, and the queue goes on with a new child.
"""

from __future__ import annotations

import argparse
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil
from filelock import FileLock, Timeout

from paraknow import access, devices, limits
from paraknow.errors import InputError, ParaKnowError, ResourceError
from paraknow.runs import asks, processes, queue, store
from paraknow.runs.asks import Ask
from paraknow.runs.store import Run

ASKS_IN_A_ROW = 20  # questions answered before the queue has its turn again
POLL = 0.3  # seconds between two looks at the queue, or at the run under way
AGAIN = 10.0  # seconds after which a run that could not be begun (somebody holds it, no space is left) is tried again


def enforce_cancels(root: Path) -> None:
    """End the processes of runs of this folder that do not heed their cancelling, whoever began them."""
    for row in queue.waiting(root):
        if row["state"] == "running":
            try:
                queue.enforce_cancel(Run(root / row["id"]))
            except OSError as error:  # no space is left, or its status is held: tried again at the next look
                print(f"{row['id']}: {error}", file=sys.stderr, flush=True)


class Child:
    """The process that carries out runs and answers questions, one at a time; it is told them on its standard input."""

    def __init__(self, root: Path, device: str):
        self.root, self.late = root, False
        command = [sys.executable, "-m", "paraknow.runs.worker", "--runs", str(root)]
        environment = {**os.environ, devices.GPU: device.partition(":")[2] or "0"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
        )
        self.answers = selectors.DefaultSelector()
        assert self.process.stdout
        self.answers.register(self.process.stdout, selectors.EVENT_READ)

    def carry_out(self, run: Run) -> bool:
        """Have a run carried out; False where the process ended before it said that it is through."""
        return self._told(f"run {run.id}", lambda: True)

    def answer(self, ask: Ask) -> bool:
        """Have a question answered; False where the process ended on it, does not heed its cancelling, or takes longer
        than whoever asked may have it take."""
        began = time.monotonic()

        def wanted() -> bool:
            with access.of_run(ask.folder):
                self.late = limits.ask_is_late(time.monotonic() - began - queue.HARD)  # it ends by itself before that
            return ask.cancelled_for() < queue.HARD and not self.late

        return self._told(f"ask {ask.id}", wanted)

    def _told(self, line: str, wanted: Callable[[], bool]) -> bool:
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(f"{line}\n".encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            return False
        while wanted():
            if self.answers.select(POLL):
                return bool(self.process.stdout.readline())
            enforce_cancels(self.root)
        return False

    def end(self) -> None:
        """End it, and whatever it has started."""
        self.answers.close()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()
        if self.process.poll() is None:
            processes.end(psutil.Process(self.process.pid))
        self.process.wait()


class Supervisor:
    """Works through the queue of one device until nothing has come for `idle` seconds (None: until told to leave)."""

    def __init__(self, root: Path, device: str, idle: float | None):
        self.root, self.device, self.idle = root, device, idle
        self.child: Child | None = None
        self.under_way: Run | Ask | None = None
        self.leaving = False
        self.put_off: dict[str, float] = {}  # run → when it may be tried again

    def leave(self, number: int, frame: FrameType | None) -> None:
        """On Ctrl-C or a request to end: the run under way is cancelled (and can be resumed), the queue stays.

        Only the flag is set here: the interrupted code may hold the lock of its status.
        """
        self.leaving = True
        if self.under_way is not None:
            with suppress(OSError):  # its folder may just have been removed
                self.under_way.path("cancel").touch()

    def serve(self) -> None:
        """Take run after run."""
        last, in_a_row = time.monotonic(), 0
        asks.sweep(self.root)
        try:
            while not self.leaving and (self.idle is None or time.monotonic() - last < self.idle):
                if in_a_row < ASKS_IN_A_ROW and (ask := self._asked()):
                    self.under_way = ask
                    self._answer(ask)
                    self.under_way = None
                    last, in_a_row = time.monotonic(), in_a_row + 1
                    continue
                in_a_row = 0
                now = time.monotonic()
                run = queue.next_queued(self.root, self.device, [r for r, at in self.put_off.items() if at > now])
                if run is None:
                    enforce_cancels(self.root)
                    self._rest()
                    continue
                self.under_way = run
                if self.leaving:  # asked for while the queue was looked through: this run stays queued
                    run.path("cancel").unlink(missing_ok=True)
                    break
                self._carry_out(run)
                self.under_way = None
                last = time.monotonic()
        finally:
            self._end_child()

    def _serves(self, device: str) -> bool:
        return queue.serves(self.device, device)

    def _asked(self) -> Ask | None:
        """The next question; none where the mailbox cannot be written, which does not hold up the queue."""
        try:
            return asks.take(self.root, self._serves)
        except OSError as error:
            print(f"{self.root / asks.FOLDER}: {error}", file=sys.stderr, flush=True)
            return None

    def _rest(self) -> None:
        """Sleep until the next look at the queue, or until somebody asks something: they are waiting at a page."""
        until = time.monotonic() + POLL
        while True:
            time.sleep(POLL / 6)
            if self.leaving or time.monotonic() >= until or asks.waiting(self.root, self._serves):
                return

    def _answer(self, ask: Ask) -> None:
        self.child = self.child or Child(self.root, self.device)
        if self.child.answer(ask):
            ask.fail("the worker gave no answer; ask again.")  # it has one by now, or its folder is gone
            return
        if ask.cancelled:
            how = "it did not stop when it was cancelled"
        else:
            how = "this took too long" if self.child.late else self._how_it_ended()
        self._end_child()
        ask.fail(f"the worker ended on the way: {how}. Ask again.")

    def _how_it_ended(self) -> str:
        """How the child's process ended, in words."""
        assert self.child
        code = self.child.process.wait()
        how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
        return how + ("; the system does so when memory runs out" if code == -signal.SIGKILL else "")

    def _carry_out(self, run: Run) -> None:
        self.child = self.child or Child(self.root, self.device)
        if self.child.carry_out(run):
            if run.status()["state"] == "queued":
                self.put_off[run.id] = time.monotonic() + AGAIN
            return
        how = self._how_it_ended()
        self._end_child()
        why = f"its process ended on the way: {how}. What it had finished is kept; resume it."
        print(f"{run.id}: {why}", file=sys.stderr, flush=True)
        if not run.folder.is_dir():
            return
        try:
            if run.status()["state"] == "queued":  # it ended before it began
                run.update(state="failed", error=why, finished=time.time())
            run.ended(why)
        except (ParaKnowError, OSError) as error:  # held by somebody else after all, or no space is left
            print(f"{run.id}: {error}", file=sys.stderr, flush=True)

    def _end_child(self) -> None:
        if self.child is not None:
            self.child.end()
        self.child = None


def serve(root: Path, device: str, idle: float | None) -> None:
    """Be the worker of a device of this runs folder, until idle. A second one leaves at once."""
    root.mkdir(parents=True, exist_ok=True)
    supervisor = Supervisor(root, device, idle)
    before = {number: signal.signal(number, supervisor.leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while True:
            try:
                with FileLock(queue.worker_lock(root, device), timeout=2):  # a page may just be asking for it
                    supervisor.serve()
            except Timeout:
                print(f"another worker is at work on {device} here; leaving.", file=sys.stderr)
                return
            # A run may have been queued after the last look, or a question put, by somebody who still saw a worker.
            more = asks.waiting(root, lambda wanted: queue.serves(device, wanted)) or queue.next_queued(root, device)
            if supervisor.leaving or not more:
                return
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def device_named(text: str) -> str:
    """cpu or cuda:N from what a user wrote (auto, cuda: the first GPU). Raises InputError, ResourceError."""
    gpus = devices.gpus()
    name = {"auto": "cuda:0" if gpus else "cpu", "cuda": "cuda:0"}.get(text, text)
    kind, _, number = name.partition(":")
    if name != "cpu" and not (kind == "cuda" and number.isdecimal()):
        raise InputError(f"--device {text!r}: choose auto, cpu or cuda:0, cuda:1 …")
    if kind == "cuda" and int(number) >= len(gpus):
        have = ", ".join(f"cuda:{gpu.index}" for gpu in gpus) or "none"
        raise ResourceError(f"--device {text}: there is no such GPU here; there is {have}.")
    return name


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m paraknow.runs.supervisor")
    parser.add_argument("--runs", type=Path, default=None)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--idle", type=float, default=queue.IDLE)
    arguments = parser.parse_args()
    serve(arguments.runs or store.runs_folder(), device_named(arguments.device), arguments.idle)


if __name__ == "__main__":
    main()
