"""Carry out runs: one in the foreground, or those that a supervisor names, one after the other.

Only this module (and the stages it imports inside functions) brings torch into a process.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from paraknow import access, limits
from paraknow.checks import Checked, check, prepare
from paraknow.errors import Cancelled, InputError, ParaKnowError, ResourceError, RunError
from paraknow.progress import Progress
from paraknow.runs import asks, failures, pairs, processes, queue, store
from paraknow.runs.pairs import Warm
from paraknow.runs.store import STAGE_NAMES, Run

WRITE_EVERY = 0.5  # seconds between two writings of status.json
RECENT = 20.0  # seconds of a stage that its speed is judged by at least
log = logging.getLogger("paraknow")


class Reporter:
    """Progress of one stage into status.json and events.jsonl, with ETA; raises Cancelled when asked to."""

    def __init__(self, run: Run, stage: str, show: Progress):
        self.run, self.stage, self.show = run, stage, show
        self.began = time.monotonic()
        self.written = -WRITE_EVERY
        self.marks: deque[tuple[float, int]] = deque()  # (time, step) as far back as speed is judged by

    def __call__(self, step: int, total: int, message: str = "", **values: float) -> None:
        if values:  # of a step that was made: before the cancelling, which may keep its state
            self.run.event(stage=self.stage, step=step, total=total, message=message, **values)
        if self.run.cancelled():
            raise Cancelled(f"run {self.run.id} was cancelled in stage {self.stage}.")
        limits.check_time(time.monotonic() - self.began, self.stage)
        self.show(step, total, message, **values)
        now = time.monotonic()
        if not self.marks:
            self.marks.append((self.began, step - 1))  # a resumed stage does not begin at 0
        if now - self.written < WRITE_EVERY and step < total:
            return
        self.written = now
        eta = self._left(step, total, now)
        self.run.update(stage=self.stage, step=step, total=total, message=message, eta=eta)

    def _left(self, step: int, total: int, now: float) -> float | None:
        """Seconds left at the speed of late: of the last third of the stage, as its parts differ in speed."""
        self.marks.append((now, step))
        since = now - max(RECENT, (now - self.began) / 3)
        while len(self.marks) > 2 and self.marks[1][0] <= since:
            self.marks.popleft()
        then, before = self.marks[0]
        return (now - then) / (step - before) * (total - step) if step > before else None


def execute(
    run: Run,
    until: str = STAGE_NAMES[-1],
    skip: tuple[str, ...] = (),
    show: Callable[[str], Progress] | None = None,
    warm: Warm | None = None,
    from_queue: bool = False,
) -> None:
    """Carry out a run under its lock, from its first unfinished stage to `until`.

    `from_queue`: only if it is still queued once the lock is held; it may have been cancelled meanwhile.

    `show(stage)` gives a further progress callback; `warm` keeps loaded models between runs.
    Raises what stopped it (Cancelled, InputError, RunError …) after the state has been written down.
    """
    run.refuse_read_only()
    with run.lock():
        if from_queue and run.status().get("state") != "queued":
            return
        if not from_queue:
            run.path("cancel").unlink(missing_ok=True)
        handler = _log_file(run)
        try:
            run.reserve()
            _begin(run)
            held = queue.device_held(run, run.config(), from_queue, _waiting(run))
            with access.of_run(run.folder), _beating(run), held:
                _execute(run, until, skip, show, warm)
        except Cancelled:
            run.update(state="cancelled", finished=time.time(), error=None)
            raise
        except BaseException as error:
            log.error("%s", "".join(traceback.format_exception(error)))
            if not run.path("config.yaml").is_file():
                raise RunError(f"run {run.id}: its folder was deleted while it was worked on.") from error
            failure = failures.explain(error, run, warm)
            run.update(state="failed", finished=time.time(), error=str(failure))
            if isinstance(error, Exception) and failure is not error:
                raise failure from error
            raise
        finally:
            log.removeHandler(handler)
            with suppress(OSError):
                handler.close()


def _begin(run: Run) -> None:
    """From here on the run is this process's, and says so."""
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "born": processes.born()}
    about = {"stage": "load", "step": 0, "total": None, "eta": None, "message": "", "error": None}
    run.update(state="running", started=time.time(), finished=None, **mine, **about)


def _waiting(run: Run) -> Callable[[str], None]:
    """What a run does while another one has its device."""

    def wait(why: str) -> None:
        if run.cancelled():
            raise Cancelled(f"run {run.id} was cancelled before it began.")
        run.update(message=why)

    return wait


@contextmanager
def _beating(run: Run) -> Iterator[None]:
    """Heartbeats as long as the block lasts, from a thread of its own: a step may take minutes."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(store.BEAT):
            run.beat()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _execute(
    run: Run, until: str, skip: tuple[str, ...], show: Callable[[str], Progress] | None, warm: Warm | None
) -> None:
    run.update(started=time.time(), message="")  # now that it has its device
    checked = _checked(run, warm)
    from paraknow.progress import silent
    from paraknow.runs import intact
    from paraknow.runs.stages import STAGES, Session

    def warn(text: str) -> None:
        log.warning(text)
        run.event(warning=text)

    session = Session(run, checked, warn)
    if warm:
        session.models = warm["models"]
    finished, removed = intact.mend(run)
    for name in removed:
        warn(f"{name} could not be opened, so it is made again.")
    for name in STAGE_NAMES[: STAGE_NAMES.index(until) + 1]:
        if name in skip or (name in finished and name != "load"):
            continue
        if run.cancelled():  # asked for at the last step of the stage before
            raise Cancelled(f"run {run.id} was cancelled before stage {name}.")
        log.info("stage %s", name)
        run.update(stage=name, step=0, total=None, eta=None, message="")
        began = time.monotonic()
        try:
            STAGES[name](session, Reporter(run, name, show(name) if show else silent))
        except (InputError, ResourceError) as error:
            raise RunError(str(error)) from error  # the run has begun: its state is kept, it can be resumed
        run.event(stage=name, seconds=round(time.monotonic() - began, 2))
        if name not in finished:
            finished.append(name)
        run.update(stages=finished)
    if warm is not None:
        pairs.keep(warm, checked.config, session.models)
    run.update(state="done", finished=time.time(), eta=0, message="")


def _checked(run: Run, warm: Warm | None) -> Checked:
    """A run's config as one that can be carried out here. A pair in memory that it uses needs no room a second time;
    another one is freed first."""
    checked = prepare(run.config())
    return check(checked, pairs.held(warm, checked.config, checked.case.pair, checked.free.device))


def _log_file(run: Run) -> logging.Handler:
    handler = logging.FileHandler(run.path("worker.log"), encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    return handler


def quiet() -> None:
    """Libraries' own bars and notices off: this process reports by itself. Call before they are imported."""
    os.environ["TQDM_DISABLE"] = "1"
    # Threads that spin while they wait make two processes on the same cores 30 times slower; threads that sleep
    # at once make one process half as fast. Measured best of both: spin shortly.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning)


def main() -> None:
    """Do what is told on standard input, one a line: `run ID` or `ask ID`; a line is answered when it is over."""
    parser = argparse.ArgumentParser(prog="python -m paraknow.runs.worker")
    parser.add_argument("--runs", type=Path, default=None)
    root = parser.parse_args().runs or store.runs_folder()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor decides what Ctrl-C means
    quiet()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print goes to the log
    warm: Warm = {}
    for line in sys.stdin:
        kind, _, name = line.strip().partition(" ")
        try:
            if kind == "ask":
                _answer(asks.named(name, root), warm)
            else:
                execute(Run(root / name), warm=warm, from_queue=True)
        except Exception as error:
            warm.clear()
            print(f"{name}: {error}", file=sys.stderr, flush=True)
        print(name, file=answers, flush=True)


def _answer(ask: asks.Ask, warm: Warm) -> None:
    """Answer a question of the mailbox. Nothing of a run is touched, and a refusal leaves the pair in memory."""
    from paraknow.runs import answering

    try:
        answering.post(ask, warm)
    except ParaKnowError as error:
        ask.fail(str(error))
    except Exception as error:
        warm.clear()
        ask.fail(failures.unforeseen(error))
        raise


if __name__ == "__main__":
    main()
