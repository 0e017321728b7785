"""The queue as processes: what ends them, what goes on without them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.faults import small
from paraknow import devices
from paraknow.errors import InputError, ResourceError
from paraknow.runs import queue, store, supervisor
from paraknow.runs.store import Run
from tests.processes import end_serving, serving, until

LONG = {"epochs": 10000, "max_length": 64}


@pytest.fixture
def processes_end(runs, monkeypatch) -> Iterator[None]:
    """Every process that serves this folder is ended afterwards."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    end_serving(runs)


def state(run: Run) -> str:
    return run.status()["state"]


def supervisors(runs: Path) -> list[psutil.Process]:
    return [p for p in serving(runs) if "paraknow.runs.supervisor" in p.cmdline()]


@pytest.mark.timeout(900)
def test_what_ends_a_process_ends_no_queue(runs, processes_end):
    """Killed, deaf to its cancelling, without its supervisor: every run has an end, and the next one is taken."""
    killed = queue.submit(small(tune=LONG))
    deaf, last = store.create(small(tune=LONG)), store.create(small())
    until(lambda: queue.worker_alive(runs))
    (alive,) = supervisors(runs)
    late = subprocess.run([*alive.cmdline()], capture_output=True, text=True, timeout=60)
    assert "another worker" in late.stderr and late.returncode == 0

    until(lambda: killed.status().get("stage") == "tune")
    assert state(deaf) == "queued"
    psutil.Process(killed.status()["pid"]).kill()
    until(lambda: state(killed) == "lost", 15)
    until(lambda: "SIGKILL" in (killed.status()["error"] or ""), 15)

    until(lambda: deaf.status().get("stage") == "tune")  # a new process has taken it
    psutil.Process(deaf.status()["pid"]).send_signal(signal.SIGSTOP)
    deaf.cancel()
    until(lambda: state(deaf) == "cancelled", queue.HARD + 20)
    assert "did not stop within 10 s" in deaf.status()["error"]

    until(lambda: state(last) == "running")
    alive.kill()  # its child goes on to the end of the run, and leaves
    child = psutil.Process(last.status()["pid"])
    until(lambda: not queue.worker_alive(runs))
    queue.resume(killed)  # a new worker waits for the device
    until(lambda: state(last) == "done")
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    until(lambda: killed.status().get("stage") == "tune")
    assert killed.status()["started"] >= last.status()["finished"] - 1

    supervisors(runs)[0].send_signal(signal.SIGTERM)  # asked to leave: the run under way is cancelled
    until(lambda: state(killed) == "cancelled" and not queue.worker_alive(runs), 30)


def test_a_run_that_cannot_be_begun_does_not_hold_up_the_others(runs, monkeypatch):
    """Somebody holds the first; the second is taken, the first again later."""
    first, second = store.create(small()), store.create(small())
    carried = []

    class Child:
        def __init__(self, *_: object) -> None: ...

        def carry_out(self, run: Run) -> bool:
            carried.append(run.id)
            if run.id == second.id or carried.count(first.id) == 2:
                run.update(state="done")
            return True

        def end(self) -> None: ...

    monkeypatch.setattr(supervisor, "Child", Child)
    monkeypatch.setattr(supervisor, "AGAIN", 0.5)
    supervisor.Supervisor(runs, "cpu", idle=1.0).serve()
    assert carried == [first.id, second.id, first.id]


def test_a_worker_that_is_leaving_still_takes_what_came_last(runs, monkeypatch):
    """The submitter saw it alive and started none."""
    served = []
    monkeypatch.setattr(supervisor.Supervisor, "serve", lambda self: served.append(1))
    monkeypatch.setattr(queue, "next_queued", lambda *_: "run" if len(served) < 3 else None)
    supervisor.serve(runs, "cpu", 0.0)
    assert len(served) == 3


def test_every_device_has_its_worker(runs, monkeypatch):
    gpus = [devices.Gpu(k, f"GPU-{k}", "card", 1, 1) for k in range(3)]
    started = []
    monkeypatch.setattr(devices, "gpus", lambda: gpus)
    monkeypatch.setattr(queue, "start_worker", lambda root, device, idle: started.append(device))
    for device in ("auto", "cuda", "cpu"):
        run = store.create(small(), runs)
        run.update(device=device)
    queue.ensure_workers(runs)
    assert started == ["cpu", "cuda:0", "cuda:1"]
    assert queue.next_queued(runs, "cpu").status()["device"] == "cpu"
    assert queue.next_queued(runs, "cuda:2").status()["device"] == "auto"
    monkeypatch.setattr(devices, "gpus", lambda: [])
    assert queue.next_queued(runs, "cpu").status()["device"] == "auto"
    with pytest.raises(ResourceError, match="no such GPU"):
        supervisor.device_named("cuda:1")
    with pytest.raises(InputError, match="choose auto"):
        supervisor.device_named("tpu")


def test_two_runs_on_one_gpu_wait_for_each_other(runs, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    gpus = [devices.Gpu(k, f"GPU-{k}", "card", 1, 1) for k in range(2)]
    monkeypatch.setattr(devices, "gpus", lambda: gpus)
    first, second = store.create(small(), runs), store.create(small(), runs)
    on_gpu, on_cpu = small(device="cuda"), small(device="cpu")
    on_all = small(placement={"teacher": "auto"})
    said = []

    def wait(why: str) -> None:
        said.append(why)
        raise TimeoutError

    with queue.device_held(first, on_gpu, False, wait):
        for config in (small(), on_all):
            with pytest.raises(TimeoutError), queue.device_held(second, config, False, wait):
                pass
        with queue.device_held(second, on_cpu, False, wait):
            pass
        monkeypatch.setenv(devices.GPU, "1")
        with queue.device_held(second, on_gpu, False, wait):
            pass
        monkeypatch.setenv(devices.GPU, "0")
    assert said == ["waiting for GPU 0, which another run uses"] * 2
    with queue.device_held(second, on_all, True, wait):
        monkeypatch.setenv(devices.GPU, "1")
        with pytest.raises(TimeoutError), queue.device_held(first, on_gpu, True, wait):
            pass


def test_only_the_process_that_began_the_run_is_ended(runs):
    """Its number may be another's by now."""
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        run = store.create(small(), runs)
        with run.lock():
            run.update(state="running", host=os.uname().nodename, pid=other.pid, born=1.0)
            run.cancel()
            assert not queue.enforce_cancel(run, 0.0) and other.poll() is None
            born = psutil.Process(other.pid).create_time() - psutil.boot_time()
            run.update(born=born)
            assert not queue.enforce_cancel(run, 60.0) and other.poll() is None
            assert queue.enforce_cancel(run, 0.0) and other.poll() is not None
            assert state(run) == "running"  # held by somebody: this test
    finally:
        other.kill()
        other.wait()
