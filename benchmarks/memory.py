"""`python -m benchmarks.memory [--pair demo|larger] [--set FIELD=VALUE]`: what each stage takes, over the estimate.

Every stage runs in a fresh process that reads what the stages before it left. Measured: the most memory that process
and its children hold while the models are loaded and the stage runs, the libraries included (memory.LIBRARIES is the
estimate for those). Of files that a process maps, weights count (they are not copied where they are
stored in the type they are loaded in), libraries do not: the system drops and reads them again as it likes. Linux only.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from benchmarks.written import markdown, options, put
from paraknow import config as configs
from paraknow import resources
from paraknow.config import RunConfig
from paraknow.errors import RunError
from paraknow.screen import emit, table

EVERY = 0.002  # seconds between two looks
TEACHER = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8, "vocab_size": 8192}
STUDENT = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6, "vocab_size": 8192}
WORDS = 220  # of a question: about as many tokens as the settings below let through
SETTINGS: dict[str, Any] = {
    "method": {"name": "seeking", "rank": 16},
    "controls": ["zero"],
    "locate": {"seeds": 4, "max_length": 256, "neurons": "first_order"},
    "similarity": {"examples": 32, "permutations": 2, "resamples": 100, "forward_batch": 4, "max_length": 256},
    "tune": {"epochs": 1, "batch_size": 16, "micro_batch": 16, "max_length": 256},
    "evaluate": {"limit": 16, "batch_size": 16, "reuse": False},
}


def own(process: psutil.Process) -> int:
    """Bytes of a process that are no pages of files."""
    info = process.memory_info()
    return info.rss - getattr(info, "shared", 0)


ABOUT = """Every stage in a fresh process, on the CPU. Measured and estimated with the libraries, as pages show it; the
second ratio leaves them out of both, but for tune's fresh process, whose own cannot be told apart.
*Left behind*: what libraries keep when the stage is over and the models are gone,
buffers and room on the heap. `larger`: two random Llamas of 277 and 111 MB on questions of 256 tokens; `demo`: the
built-in pair of 14 MB, where libraries are nearly all. *Parts* are the estimate's largest."""


def code() -> int:
    """Bytes of this process's pages of files that are no weights: libraries' code and data as they lie on disk."""
    total, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):  # a mapping begins: its addresses, and at the end its file
            counts = len(rest) == 5 and rest[-1].startswith("/") and not rest[-1].endswith(".safetensors")
        elif counts and name in ("Rss:", "Anonymous:"):
            total += 1024 * int(rest[0]) * (1 if name == "Rss:" else -1)
    return total


class Watch(threading.Thread):
    """Looks at the memory of this process and its children, and keeps the most it saw.

    What children map of files, this process has mapped too: libraries, and the weights of the same models.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.process, self.stop, self.most = psutil.Process(), threading.Event(), 0
        self.command = self.process.cmdline()

    def held(self) -> int:
        total = self.process.memory_info().rss
        for child in self.process.children(recursive=True):
            try:
                # between fork and exec a child holds this process's own pages once more
                total += own(child) if child.cmdline() != self.command else 0
            except psutil.NoSuchProcess:
                continue
        return total

    def run(self) -> None:
        while not self.stop.wait(EVERY):
            self.most = max(self.most, self.held())


@contextmanager
def watched() -> Iterator[Watch]:
    watch = Watch()
    watch.start()
    try:
        yield watch
    finally:
        watch.stop.set()
        watch.join()


def one_stage(folder: Path, stage: str) -> None:
    """Run one stage of a run here and print the bytes that the libraries hold, and the most beyond them."""
    import lm_eval.evaluator
    import lm_eval.models.huggingface  # noqa: F401
    import peft  # noqa: F401

    from paraknow.checks import check
    from paraknow.models import load
    from paraknow.progress import silent
    from paraknow.runs.stages import STAGES, Session
    from paraknow.runs.store import Run

    run = Run(folder)
    session = Session(run, check(run.config()), lambda text: None)
    load("demo:student", device="cpu")  # what transformers imports when a model is loaded
    gc.collect()
    with watched() as watch:
        before, libraries, touched = watch.held(), own(watch.process), code()
        for name in dict.fromkeys(("load", stage)):
            STAGES[name](session, silent)
    finished = dict.fromkeys((*run.status().get("stages", []), stage))
    run.update(stages=list(finished))
    beyond = watch.most - before - (code() - touched)  # code that was run for the first time
    session.models.clear()
    gc.collect()
    print(json.dumps({"libraries": libraries, "beyond": beyond, "left": own(watch.process) - libraries}))


def _model(folder: Path, seed: int, sizes: dict[str, int]) -> str:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    heads = sizes["hidden_size"] // 64
    made = LlamaConfig(**sizes, num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=1024)
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(made).save_pretrained(folder)
    AutoTokenizer.from_pretrained(resources.demo_model("student")).save_pretrained(folder)
    return str(folder)


def _records(file: Path) -> str:
    import random

    draw = random.Random(0)
    with file.open("w") as out:
        for number in range(60):
            text = " ".join(draw.choice("red green blue one two three".split()) for _ in range(WORDS))
            out.write(json.dumps({"question": f"{number} {text}", "answer": draw.choice(["red", "blue"])}) + "\n")
    return str(file)


def whole_demo(scratch: Path, changes: dict[str, Any]) -> RunConfig:
    """The built-in pair at the demo's own settings."""
    from paraknow.demo.story import demo_config

    values = demo_config().model_dump(mode="json")
    values["evaluate"]["reuse"] = False
    return configs.parse({**values, **changes})


def demo(scratch: Path, changes: dict[str, Any]) -> RunConfig:
    """The same with fewer steps and questions, which are as large as the others."""
    values = whole_demo(scratch, {}).model_dump(mode="json")
    values["tune"]["epochs"] = 1
    values["evaluate"]["limit"] = 60
    return configs.parse({**values, **changes})


def larger(scratch: Path, changes: dict[str, Any]) -> RunConfig:
    """Two random Llamas of some 280 and 110 MB in float32, on questions as long as the settings let through."""
    sides = {"teacher": _model(scratch / "t", 0, TEACHER), "student": _model(scratch / "s", 1, STUDENT)}
    return configs.parse({**SETTINGS, "pair": sides, "task": _records(scratch / "task.jsonl"), **changes})


PAIRS: dict[str, Callable[[Path, dict[str, Any]], RunConfig]] = {"demo": demo, "larger": larger}


VARIANTS = {  # settings that move the peak elsewhere
    "bfloat16": ["dtype=bfloat16"],
    "small batches": ["method.rank=64", "tune.micro_batch=4", "evaluate.batch_size=4", "similarity.forward_batch=1"],
    "other methods": ["baselines=[laten, semalign, transport, pissa, sft]", "similarity.parts=[]"],
}


def rows(name: str, changes: dict[str, Any], scratch: Path) -> Iterator[dict[str, Any]]:
    """One row per stage: MB measured and estimated, their ratio, and the estimate's largest parts."""
    from paraknow.checks import check
    from paraknow.runs import store
    from paraknow.runs.worker import STAGE_NAMES

    wanted = PAIRS[name](scratch, changes)
    checked = check(wanted)
    run = store.create(wanted, scratch / "runs")
    for stage in (name for name in STAGE_NAMES if name in checked.parts):  # diagnosing loads nothing
        command = [sys.executable, "-m", "benchmarks.memory", "--stage", stage, "--run", str(run.folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RunError(f"{name}: {stage}: {done.stderr.strip().splitlines()[-1]}")
        found = json.loads(done.stdout.splitlines()[-1])
        measured, parts = found["libraries"] + found["beyond"], checked.parts[stage]
        shown = {k: round(v / 1e6) for k, v in parts.largest().items() if v > 1e6}
        print(f"{name}: {stage}: {measured / 1e6:.0f} MB of {parts.total / 1e6:.0f}", file=sys.stderr, flush=True)
        yield {
            "stage": stage,
            "measured (MB)": round(measured / 1e6),
            "estimated (MB)": round(parts.total / 1e6),
            "measured / estimated": round(measured / parts.total, 2),
            "without libraries": round(found["beyond"] / (parts.total - parts.libraries), 2),
            "libraries (MB)": round(found["libraries"] / 1e6),
            "left behind (MB)": round(found["left"] / 1e6),
            "parts (MB)": " ".join(f"{k} {v}" for k, v in shown.items()),
        }


def main(argv: list[str] | None = None) -> int:
    parser = options(__doc__, "memory")
    parser.add_argument("--pair", choices=sorted(PAIRS), action="append", help="both by default")
    parser.add_argument("--set", action="append", metavar="FIELD=VALUE", help="a change of the config, as in run")
    parser.add_argument("--variant", choices=VARIANTS, action="append", help="these changes too, after the plain run")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.stage:
        one_stage(arguments.run, arguments.stage)
        return 0
    made: list[dict[str, Any]] = []
    for name in arguments.pair or sorted(PAIRS):
        for variant in ("as it is", *(arguments.variant or ())):
            with TemporaryDirectory() as scratch:
                changes = configs.overridden({}, [*VARIANTS.get(variant, ()), *(arguments.set or ())])
                made += [{"pair": name, "settings": variant, **row} for row in rows(name, changes, Path(scratch))]
    if arguments.write and not (arguments.pair or arguments.set or arguments.variant):
        put("memory", "Memory of the stages, over the estimate", f"{ABOUT}\n\n{markdown(made)}")
    if arguments.json:
        emit({"memory": made})
    else:
        table(made, "Memory of the stages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
