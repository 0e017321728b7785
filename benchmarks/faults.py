"""`python -m benchmarks.faults [--kills N] [--seed N]`: runs that are killed and disks that fill, and what is left.

Every count in the table is of things that went wrong; docs/results.md keeps what it printed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from safetensors import safe_open

from paraknow import config as configs
from paraknow import files
from paraknow.config import RunConfig
from paraknow.runs import store
from paraknow.runs.store import Run
from paraknow.runs.worker import STAGE_NAMES
from paraknow.screen import table

ROOT = Path(__file__).parent.parent
SMALL = {  # every stage, in a second or two
    "pair": {"teacher": "demo:teacher", "student": "demo:student"},
    "task": "demo:people",
    "method": {"name": "seeking", "rank": 4},
    "controls": ["noise"],
    "locate": {"seeds": 2, "max_length": 64, "neurons": "first_order"},
    "similarity": {"parts": ["weights"]},
    "tune": {"epochs": 1, "max_length": 64},
    "evaluate": {"limit": 2, "resamples": 200, "reuse": False},
}


def small(**changes: Any) -> RunConfig:
    return configs.parse({**SMALL, **changes})


class Forks:
    """A process that has imported everything and forks itself for every run: a worker at once, as often as one likes.

    python -c … --runs FOLDER: reads run ids, answers with the process number of the child that carries the run out.
    """

    CODE = """
import os, signal, sys
from pathlib import Path
from paraknow.runs import worker
from paraknow.runs.store import Run
worker.quiet()
import peft, lm_eval.evaluator, torch, paraknow.runs.stages
torch.set_num_threads(1)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    child = os.fork()
    if child:
        print(child, flush=True)
        continue
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(2, 1)
        worker.execute(Run(Path(sys.argv[1]) / line.strip()), from_queue=True)
    except Exception as error:
        print(type(error).__name__, error, file=sys.stderr, flush=True)
    finally:
        os._exit(0)
"""

    def __init__(self, root: Path):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.CODE, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def start(self, run: Run) -> psutil.Process | None:
        """The process that carries the run out; None where it has ended already."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{run.id}\n")
        self.process.stdin.flush()
        try:
            return psutil.Process(int(self.process.stdout.readline()))
        except psutil.NoSuchProcess:
            return None

    def close(self) -> None:
        """End it and what it has started."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            child.kill()
        self.process.kill()
        self.process.communicate()


def wait_for_end(process: psutil.Process | None, seconds: float = 300) -> None:
    """Raises TimeoutError where it does not come."""
    until = time.monotonic() + seconds
    while process is not None and process.is_running():
        if time.monotonic() > until:
            raise TimeoutError(f"process {process.pid} is still at work after {seconds:.0f} s")
        time.sleep(0.02)


def unreadable(run: Run) -> list[str]:
    """Files of a run folder that cannot be read: there may be none, however the process ended."""
    bad = []
    for path in sorted(p for p in run.folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        try:
            if path.suffix == ".json":
                files.read_json(path)
            elif path.suffix == ".parquet":
                pd.read_parquet(path)
            elif path.suffix == ".safetensors":
                with safe_open(path, framework="numpy") as stream:
                    for name in stream.keys():  # noqa: SIM118 (not a dict)
                        stream.get_slice(name).get_shape()
            elif path.name == "config.yaml":
                configs.load(path)
        except Exception as error:
            bad.append(f"{path.relative_to(run.folder)}: {error}")
    return bad


def outcome(run: Run) -> dict[str, Any]:
    """What a run came to: its results, and every number of its adapters."""
    rows = files.read_json(run.path("evaluate", "deltas.json"))["rows"]
    weights = {}
    for path in sorted(run.path("adapters").rglob("*.safetensors")):
        with safe_open(path, framework="numpy") as stream:
            weights |= {f"{path.parent.parent.name}/{k}": stream.get_tensor(k).tobytes() for k in stream.keys()}  # noqa: SIM118
    losses = {p.parent.name: pd.read_parquet(p).to_json() for p in sorted(run.path("tune").glob("*/*.parquet"))}
    return {"rows": json.dumps(rows), "weights": weights, "losses": losses}


SHORT = 0.2  # seconds: a stage that is over before it can be hit


def _in_stage(run: Run, stage: str) -> bool:
    status = run.status()
    return status["state"] == "running" and status.get("stage") == stage


def kills(root: Path, count: int, seed: int) -> dict[str, Any]:
    """kill -9 of the process at work at `count` random moments, resuming after each, until every run is done.

    A moment: one of the stages still to come, and a time within what that stage took in an unbroken run.
    """
    forks, draw = Forks(root), random.Random(seed)
    found: dict[str, Any] = {"kills": 0, "unreadable": [], "stuck": [], "unequal": 0, "runs": 0, "stages": Counter()}
    try:
        whole = store.create(small(), root)
        wait_for_end(forks.start(whole))
        expected = outcome(whole)
        took = {e["stage"]: e["seconds"] for e in whole.events() if "seconds" in e}
        while found["kills"] < count:
            run = store.create(small(), root)
            found["runs"] += 1
            for _ in range(7):  # then it may end
                process = forks.start(run)
                to_come = [s for s in STAGE_NAMES if s == "load" or s not in run.status()["stages"]]
                at = draw.choice([s for s in to_come if took[s] > SHORT] or to_come)
                while process and process.is_running() and not _in_stage(run, at):
                    time.sleep(0.005)
                time.sleep(draw.uniform(0.0, took[at]))
                if process is None or not process.is_running() or found["kills"] == count:
                    break
                stage = run.status().get("stage") or "before the first"
                process.kill()
                wait_for_end(process)
                found["kills"] += 1
                found["stages"][stage] += 1
                found["unreadable"] += unreadable(run)
                if run.status()["state"] == "done":  # it had just ended by itself
                    break
                if run.status()["state"] not in ("lost", "queued"):
                    found["stuck"].append(f"{run.id}: {run.status()}")
                run.update(state="queued", error=None)
            wait_for_end(process)
            if run.status()["state"] != "done":
                wait_for_end(forks.start(run))
            if run.status()["state"] != "done":
                found["stuck"].append(f"{run.id}: {run.status()}")
            elif outcome(run) != expected:
                found["unequal"] += 1
    finally:
        forks.close()
    return found


def line(found: dict[str, Any]) -> dict[str, Any]:
    """The counts of `kills` as they are reported."""
    where = ", ".join(f"{stage} {n}" for stage, n in found["stages"].most_common())
    about = {name: len(found[name]) for name in ("unreadable", "stuck")}
    return {"kills": found["kills"], "in": where, "runs": found["runs"], **about, "unequal": found["unequal"]}


def main() -> None:
    from benchmarks import full_disk

    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table([line(kills(Path(folder), arguments.kills, arguments.seed))], "kill -9 at random moments, then resumed")
    try:
        *stages, whole, submitting = full_disk.rows()
    except full_disk.NoDisk as reason:
        print(f"A full disk was not tried: no small one can be made here ({reason}).")
        return
    shown = [{**row, **{name: len(row[name]) for name in ("unreadable", "half written")}} for row in stages]
    table(shown, "a disk that is full when the stage begins, then resumed with space")
    print(f"Equal to an unbroken run afterwards: {whole['equal']}. Submitting to a full disk: {submitting}.")


if __name__ == "__main__":
    main()
