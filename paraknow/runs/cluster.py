"""Runs carried out side by side on Ray: on this machine, or on a cluster whose nodes share the runs folder (no torch).

The driver creates run folders and hands them to slots; a slot is a Ray actor, one process that carries out one run at a
time as any worker does and keeps the last pair in memory. All that is known of a run stands in its folder, so that
progress, cancelling and resuming are what they are elsewhere; between driver and slots go only strings and numbers.

An actor is not restarted by Ray: the driver sees its end, begins another one and resumes the run (see order.py).
"""

from __future__ import annotations

import io
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from paraknow import __version__, errors
from paraknow.errors import Cancelled, InputError, ParaKnowError, ResourceError, RunError
from paraknow.runs import queue
from paraknow.runs.order import AGAIN, Order, Work, room
from paraknow.runs.store import Run
from paraknow.runs.threads import cores

INSTALL = 'pip install "paraknow[ray]"'
POLL = 0.5  # seconds between two looks at the runs
SEEN_WITHIN = 10.0  # seconds until a new folder must be seen by another node
ANSWER_WITHIN = 30  # seconds for a cluster to answer
STORE_BYTES = 80 * 2**20  # the least Ray accepts: nothing large goes through its object store
# Read by Ray when it is imported or started: listen on loopback alone, ask for a token (see _token), begin no process
# before it is needed, and give workers the priority that this process has.
LOCAL = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_enable_worker_prestart": "0",
    "RAY_worker_niceness": "0",
}

Show = Callable[[str, dict[str, Any] | None], None]


def installed() -> bool:
    """Whether Ray is installed."""
    try:
        version("ray")
    except PackageNotFoundError:
        return False
    return True


class Slot:
    """One process that carries out runs, one at a time. Lives in a Ray actor."""

    def __init__(self) -> None:
        self.warm: dict[str, Any] = {}

    def about(self) -> list[str]:
        """Host and paraknow version."""
        return [socket.gethostname(), __version__]

    def carry_out(self, folder: str, place: str, threads: int) -> list[str]:
        """Carry out the run in `folder`, started from the folder `place`: [] or [kind of error, sentence]."""
        from paraknow.runs.worker import execute, quiet

        run = Run(Path(folder))
        until = time.monotonic() + SEEN_WITHIN
        while not run.path("config.yaml").is_file():  # another node's listing may be some seconds old
            if time.monotonic() > until:
                return ["unseen", socket.gethostname()]
            time.sleep(POLL)
        if Path(place).is_dir():
            os.chdir(place)  # configs may name files from there
        os.environ["PARAKNOW_RUNS"] = str(run.folder.parent)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        quiet()
        from paraknow.runs.threads import limited

        try:
            with limited(threads):
                execute(run, warm=self.warm)
        except ParaKnowError as error:
            self.warm.clear()
            return [type(error).__name__, str(error)]
        return []


class Cluster:
    """A Ray that is started (or joined, with `address`) when the first run needs it, and left at the end of `with`.

    `workers`: at most so many runs at once.
    """

    def __init__(self, address: str | None = None, workers: int | None = None, show: Show = lambda title, now: None):
        self.address, self.workers, self.show = address, workers, show
        self.ray: Any = None
        self.stack = ExitStack()  # what has to be undone
        if not installed():
            option = "--ray-address" if address else "--workers"
            raise InputError(f"{option}: Ray is not installed; {INSTALL} brings it.")
        if address:
            _reach(address)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.ray = None
        self.stack.close()

    def _start(self, threads: int) -> Any:
        """Ray, started or joined if it was not yet; one that the caller has begun is used as it is."""
        if self.ray:
            return self.ray
        if "ray" in sys.modules and sys.modules["ray"].is_initialized():
            return sys.modules["ray"]
        # With the second, Ray leaves alone what it would otherwise warn about: which GPUs a worker without one sees.
        wanted = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
        if not self.address:
            wanted |= {**LOCAL, "RAY_AUTH_TOKEN": _token()}
        self.stack.enter_context(_environment(wanted))
        # Ray prints what happens to its processes where our results go; what matters of it is said by notes.
        self.stack.enter_context(redirect_stdout(io.StringIO()))
        import ray

        given: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        if self.address:
            given |= {"address": self.address}
        else:
            # Paths of sockets may have a hundred letters, so never below a long TMPDIR.
            folder = tempfile.mkdtemp(prefix="paraknow-", dir="/tmp" if os.path.isdir("/tmp") else None)
            self.stack.callback(shutil.rmtree, folder, ignore_errors=True)
            given |= {"address": "local", "include_dashboard": False, "object_store_memory": STORE_BYTES}
            given |= {"num_cpus": max(cores(), (self.workers or 0) * threads), "_temp_dir": folder}
        self.stack.callback(ray.shutdown)
        handler = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(**given)
        except (OSError, RuntimeError, ValueError) as error:
            where = f"--ray-address {self.address!r}" if self.address else "Ray cannot be started here"
            raise ResourceError(f"{where}: {_line(error)}") from None
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)  # Ray puts its own in place
        self.ray = ray
        return ray

    def carry_out(
        self,
        work: Work,
        threads: int,
        gpu: bool,
        note: Callable[[str], None],
        failed: Callable[[int, ParaKnowError], None],
    ) -> None:
        """Carry out all of it; what fails is told to `failed(place, error)` and the rest goes on.

        Raises Cancelled once all runs have stopped at a step (Ctrl-C, or one of them was cancelled), and ResourceError
        where a node does not see the runs folder or has another version.
        """
        ray = self._start(threads)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        count, takes = room(nodes, threads, gpu, min(len(work.titles), self.workers or len(work.titles)))
        each = "a GPU" if takes["num_gpus"] else f"{threads} CPU thread{'s' * (threads != 1)}"
        note(f"Ray {self.address or 'on this machine'}: {count} at a time, {each} each.")
        with _interrupts() as stop:
            driver = _Driver(ray, work, threads, takes, note, failed, self.show, stop)
            try:
                driver.loop(count)
            finally:
                driver.close()


class _Driver:
    """The loop that hands work to slots and looks after them."""

    def __init__(
        self,
        ray: Any,
        work: Work,
        threads: int,
        takes: dict[str, float],
        note: Callable[[str], None],
        failed: Callable[[int, ParaKnowError], None],
        show: Show,
        stop: list[str],
    ):
        self.ray, self.work, self.threads, self.note = ray, work, threads, note
        self.failed, self.show, self.stop = failed, show, stop
        self.actor = ray.remote(Slot).options(max_restarts=0, max_task_retries=0, **takes)
        self.order, self.runs, self.ended = Order(work.after), dict[int, Run](), set[int]()
        self.starting, self.busy = dict[Any, Any](), dict[Any, tuple[Any, int]]()  # by the call that is under way
        self.idle: list[Any] = []
        self.lost = 0  # slots that ended before they had carried anything out

    def loop(self, count: int) -> None:
        told = time.monotonic()
        while True:
            if not self.stop:
                self._hand_out()
            if not self.busy and (self.stop or not self.order.waiting):
                break
            slots = len(self.starting) + len(self.busy) + len(self.idle)
            for _ in range(min(count, len(self.order.waiting) + len(self.busy)) - slots):
                actor = self.actor.remote()
                self.starting[actor.about.remote()] = actor
            calls = [*self.starting, *self.busy]
            for call in self.ray.wait(calls, num_returns=len(calls), timeout=POLL)[0]:
                self._started(call) if call in self.starting else self._returned(call)
            if self.busy or not self.starting:
                told = time.monotonic()
            elif time.monotonic() - told > 30:
                told = time.monotonic()
                self.note("waiting for the cluster to have room.")
            for _, place in self.busy.values():
                self.show(self.work.titles[place], self.runs[place].status())
                queue.enforce_cancel(self.runs[place])
                if self.stop:
                    self.runs[place].cancel()  # again and again: a run that is just beginning takes the flag away
        if self.stop:
            raise Cancelled(self.stop[0])

    def _hand_out(self) -> None:
        while self.idle and (place := self.order.next(self._located)) is not None:
            run = self.work.begin(place)
            if run is None:
                self.ended.add(place)
                continue
            self.runs[place], actor = run, self.idle.pop()
            call = actor.carry_out.remote(str(run.folder.resolve()), os.getcwd(), self.threads)
            self.busy[call] = (actor, place)

    def _located(self, place: int) -> bool:
        return place in self.ended or "similarity" in self.runs[place].status().get("stages", [])

    def _started(self, call: Any) -> None:
        actor = self.starting.pop(call)
        try:
            host, theirs = self.ray.get(call)
        except self.ray.exceptions.RayError as error:
            self.lost += 1
            if self.lost > AGAIN:
                raise ResourceError(f"Ray's workers cannot begin: {_line(error)}") from None
            return
        if theirs != __version__:
            raise ResourceError(f"node {host} has paraknow {theirs} and this machine {__version__}; install the same.")
        self.idle.append(actor)

    def _returned(self, call: Any) -> None:
        actor, place = self.busy.pop(call)
        run, title = self.runs[place], self.work.titles[place]
        self.show(title, None)
        try:
            found = self.ray.get(call)
        except self.ray.exceptions.RayTaskError as error:
            found = ["RunError", _line(error)]
        except self.ray.exceptions.RayError:
            self._killed(place)
            return
        self.idle.append(actor)
        if found[:1] == ["unseen"]:
            raise ResourceError(
                f"node {found[1]} does not see {run.folder.resolve()}; all nodes must share the runs folder "
                "($PARAKNOW_RUNS) under the same path."
            )
        self.ended.add(place)
        if found[:1] == ["Cancelled"]:
            self.stop.append(found[1])
        elif found:
            self.failed(place, getattr(errors, found[0], RunError)(found[1]))

    def _killed(self, place: int) -> None:
        run, title = self.runs[place], self.work.titles[place]
        if run.cancelled():  # it was ended because it did not stop
            self.stop.append(f"run {run.id} was cancelled.")
        if not self.stop and self.order.again(place):
            self.note(f"{title}: its worker was killed; its run {run.id} goes on from the last finished stage.")
            return
        self.ended.add(place)
        if self.stop:
            run.update(state="cancelled", finished=time.time(), error=None)
            return
        text = f"the worker that carried it out was killed {AGAIN + 1} times (is there enough memory?)."
        run.update(state="failed", finished=time.time(), error=text)
        self.failed(place, RunError(text))

    def close(self) -> None:
        for actor in [*self.starting.values(), *self.idle, *(actor for actor, _ in self.busy.values())]:
            self.ray.kill(actor)


@lru_cache
def _token() -> str:
    """What local Rays of this process are opened with: Ray reads it once, and keeps it for a second start."""
    return secrets.token_hex(32)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


@contextmanager
def _interrupts() -> Iterator[list[str]]:
    """A list that is filled by Ctrl-C or SIGTERM; the second one ends at once."""
    stop: list[str] = []

    def interrupt(*_: object) -> None:
        if stop:
            raise KeyboardInterrupt
        stop.append("stopped; the same command goes on.")

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _reach(address: str) -> None:
    """Whether a cluster answers, found out in bounded time and in another process: Ray itself waits for minutes and
    then ends the process it runs in. Raises ResourceError, InputError for an address that is none."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if address != "auto":
        if not separator or not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise InputError(f"--ray-address {address!r}: expected auto, HOST:PORT or ray://HOST:PORT.")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError as error:
            raise ResourceError(f"--ray-address {address!r}: no cluster can be reached there ({error}).") from None
    code = "import sys, ray\nray.init(address=sys.argv[1], log_to_driver=False, configure_logging=False)"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code, address],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=ANSWER_WITHIN,
        )
    except subprocess.TimeoutExpired:
        raise ResourceError(
            f"--ray-address {address!r}: no Ray cluster answered there within {ANSWER_WITHIN} s (Ray is "
            f"{version('ray')} here; a cluster needs the same one, and its token where it has one)."
        ) from None
    if done.returncode:
        raise ResourceError(f"--ray-address {address!r}: {_line(done.stderr)}")


def _line(error: object) -> str:
    """What Ray said, in one line: from the exception's own words on."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    start = max((n for n, line in enumerate(lines) if "Error: " in line), default=max(0, len(lines) - 1))
    words = " ".join(lines[start:]) or type(error).__name__
    return words.split("Error: ", 1)[-1][:400]
