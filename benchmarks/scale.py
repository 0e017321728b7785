"""`python -m benchmarks.scale [--part PART] [--write]`: formulas of time and memory against counts at true shapes, and
constants of this machine.

Prints, and with --write puts into docs/scale.md: what torch counts on shapes alone beside the formulas; operations and
bytes a second reached here (on a GPU where there is one); what every stage needs at 70B → 8B and 405B → 70B; a sweep of
100 points. Nothing of a large model is ever allocated.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks import counted
from benchmarks.measure import seconds
from benchmarks.models import SMALL, llama
from benchmarks.written import machine, markdown, options
from paraknow import config as configs
from paraknow import files, methods, operations, passes, recipes
from paraknow.architecture import from_config
from paraknow.config import RunConfig
from paraknow.dryrun import dry_run
from paraknow.memory import Case, Need
from paraknow.recipes import Sizes
from paraknow.runs import sweepcost
from paraknow.screen import emit, table

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scale.md"
Rows = list[dict[str, Any]]
LLAMA = "meta-llama/Llama-3.1-"
PAIRS = {"70B → 8B": ("70B", "8B"), "405B → 70B": ("405B", "70B")}
CARDS = {"80 GB": 80e9, "141 GB": 141e9}
ROOM = 0.9  # of a card is given to what waits there (fitting.ROOM)
ASSUMED = 4e14  # operations a second, for the worked example alone
TASK = "hub:openai/gsm8k"  # the sizes of its splits are in recipes/
SIZES = {TASK: Sizes(train=6726, align=747, test=1319, tokens=512)}
BASE: dict[str, Any] = {
    "task": TASK,
    "dtype": "bfloat16",
    "device": "cuda",
    "method": {"name": "seeking", "rank": 16},
    "controls": ["zero", "noise", "random_window"],
    "locate": {"neurons": "first_order"},
    "tune": {"micro_batch": 1},
    "evaluate": {"batch_size": 8},
}
WAYS: dict[str, dict[str, Any]] = {
    "both on one card": {},
    "teacher waits": {"placement": {"teacher": "offload"}},
    "both wait": {"placement": {"teacher": "offload", "student": "offload"}},
}
GROUPS = {"neurons": "first_order", "groups": 16, "accumulators": "host", "checkpointing": True}
LESS = {"batch_rows": 64, "forward_batch": 1, "parts": ["cka", "weights", "interference"]}
WAYS["both wait, 16 groups of layers, small batches, no stitching"] = WAYS["both wait"] | {
    "locate": GROUPS,
    "similarity": LESS,
}
METHODS = ("seeking", "laten", "semalign", "transport")


# -- counts ----------------------------------------------------------------------------------------------


def counts() -> Rows:
    """Formulas against what torch counts, for the three models."""
    made = []
    for name in ("8B", "70B", "405B"):
        made += [{**one.row(), "model": f"Llama-3.1 {name}"} for one in counted.held(LLAMA + name)]
        print(f"counted {name}", file=sys.stderr, flush=True)
    return made


def left_out() -> Rows:
    """Attention scores over what 2·N counts, by length: at most, for a causal kernel may leave out half of them."""
    rows = []
    for name in ("8B", "70B", "405B"):
        values = recipes.model_configs()[LLAMA + name]["config"]
        a = from_config(values, name)
        n = passes.multiplied(counted.sizes(values, a.layers, counted.parameters_of(a)))
        shares = {t: operations.attention(a, t) / (2.0 * n * t) for t in (512, 2048, 8192)}
        rows.append({"model": f"Llama-3.1 {name}"} | {f"{t} tokens": f"{100 * s:.1f} %" for t, s in shares.items()})
    return rows


# -- constants -------------------------------------------------------------------------------------------


def best(work: Callable[[], Any], rounds: int = 5) -> float:
    """Seconds of one call, the least of some: a shared machine only ever adds to it."""
    work()
    return min(seconds(work) for _ in range(rounds))


def constants(device: torch.device) -> Rows:
    """What is reached here: operations a second of products and passes, bytes a second of reading and adding up."""
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    side, tokens = (8192, 512) if device.type == "cuda" else (1024, 256)
    x = torch.randn(side, side, dtype=kind, device=device)
    peak = 2 * side**3 / best(lambda: x @ x)
    loaded = llama(device, kind, **SMALL)
    n = sum(p.numel() for p in loaded.model.parameters()) - SMALL["vocab_size"] * SMALL["hidden_size"]
    ids = torch.randint(1, SMALL["vocab_size"], (1, tokens), device=device)

    def forward() -> Any:
        with torch.no_grad():
            return loaded.model(input_ids=ids, use_cache=False)

    loaded.model.requires_grad_(True)

    def both() -> None:
        loaded.model(input_ids=ids, use_cache=False).logits.float().mean().backward()
        for parameter in loaded.model.parameters():
            parameter.grad = None

    ahead, whole = best(forward), best(both)
    rates = {
        f"product of two matrices, {side}²": peak,
        f"forward pass of {n / 1e6:.0f}M parameters, {tokens} tokens": 2 * n * tokens / ahead,
        "its backward pass": 4 * n * tokens / max(whole - ahead, 1e-9),
    }
    rows = [
        {"what": what, "reached": f"{rate / 1e9:.1f} GFLOP/s", "share of the product": f"{rate / peak:.2f}"}
        for what, rate in rates.items()
    ]
    slope, weight, into = (torch.randn(2**22, device=device) for _ in range(3))
    taken = best(lambda: into.add_((slope * weight).abs_()))
    rows.append({"what": "sizes of gradient × weight added up, float32", **_bytes(12 * 2**22 / taken)})
    with TemporaryDirectory() as folder:
        rows.append({"what": "weights read from a file", **_bytes(_reading(Path(folder), device))})
    square = torch.randn(512, 512, device=device)
    rate = operations.svd(512, 512) / best(lambda: torch.linalg.svd(square), 3)
    rows.append(
        {
            "what": "SVD of 512² (6·m·n² + 20·n³)",
            "reached": f"{rate / 1e9:.2f} GFLOP/s",
            "share of the product": f"{rate / peak:.3f}",
        }
    )
    return rows


def _bytes(rate: float) -> dict[str, str]:
    return {"reached": f"{rate / 1e9:.2f} GB/s", "share of the product": "–"}


def _reading(folder: Path, device: torch.device) -> float:
    """Bytes a second of weights that the system has in its cache."""
    from safetensors.torch import load_file, save_file

    save_file({"w": torch.randn(2**24)}, folder / "w.safetensors")
    return 4 * 2**24 / best(lambda: load_file(folder / "w.safetensors")["w"].clone().to(device), 3)


# -- true sizes ------------------------------------------------------------------------------------------


def config(pair: str, changes: dict[str, Any] | None = None) -> RunConfig:
    """A run of one pair at these sizes."""
    teacher, student = (LLAMA + name for name in PAIRS[pair])
    return configs.parse({**BASE, **(changes or {}), "pair": {"teacher": teacher, "student": student}})


def power(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1e}"


def work() -> Rows:
    """Operations of every stage, and of aligning by each of the four methods."""
    rows = []
    for pair in PAIRS:
        for name in METHODS:
            found = dry_run(config(pair, {"method": {"name": name}, "controls": ["zero"]}), SIZES)
            stages = found.stage_flops
            if name == METHODS[0]:
                rows += [_worked(pair, stage, value) for stage, value in stages.items() if stage != "align"]
            rows.append(_worked(pair, f"align by {name}", stages.get("align", 0.0)))
        print(f"worked out {pair}", file=sys.stderr, flush=True)
    return rows


def _worked(pair: str, stage: str, value: float | None) -> dict[str, Any]:
    minutes = (value or 0.0) / ASSUMED / 60
    said = "unknown" if value is None else f"{minutes:,.0f}" if minutes >= 10 else f"{minutes:.1f}"
    return {"pair": pair, "stage": stage, "operations": power(value), "minutes at 400 TFLOP/s (assumed)": said}


def need(pair: str, changes: dict[str, Any]) -> Need:
    """What a run needs in memory on a GPU, with sequences as long as its settings let them be."""
    wanted = config(pair, changes)
    sides = (_checkpoint(wanted.pair.teacher), _checkpoint(wanted.pair.student))
    return Case(*sides, methods.candidates(wanted), "cuda", {}).need(wanted)


def _checkpoint(spec: str) -> Any:
    values = recipes.model_configs()[spec]["config"]
    a = from_config(values, spec)
    return counted.sizes(values, a.layers, counted.parameters_of(a))


def cards(wanted: Need, size: float) -> str:
    """Cards of one size: one does the work, and what waits elsewhere lies on further ones."""
    if max(wanted.totals.values()) > size:
        return "does not fit"
    waiting = max(wanted.host.values(), default=0)
    return str(1 + -(-waiting // int(ROOM * size)))


def fits() -> Rows:
    """GiB of every stage on the card, in host memory beside it, and how many cards hold all of it."""
    rows = []
    for pair in PAIRS:
        for way, changes in WAYS.items():
            wanted = need(pair, changes)
            row: dict[str, Any] = {"pair": pair, "where": way}
            row |= {stage: f"{total / 2**30:,.0f}" for stage, total in wanted.totals.items()}
            row["host memory"] = f"{max(wanted.host.values(), default=0) / 2**30:,.0f}"
            rows.append(row | {f"cards of {name}": cards(wanted, size) for name, size in CARDS.items()})
    return rows


# -- a sweep ---------------------------------------------------------------------------------------------

GRID = {
    "method.rank": [4, 8, 16, 32],
    "tune.learning_rate": [1e-4, 2e-4, 3e-4, 5e-4, 1e-3],
    "tune.epochs": [1, 2, 3, 4, 5],
}


def sweep() -> tuple[sweepcost.Cost, Rows]:
    """100 points of 70B → 8B: four ranks × five learning rates × five numbers of epochs."""
    base = config("70B → 8B").model_dump(mode="json")
    found = sweepcost.plan({"name": "hundred", "base": base, "grid": GRID}, SIZES)
    whole, rows = found.flops or 0.0, []
    for gpus in (1, 2, 4, 8, 16, 32, 64, 100):
        row = found.spans(gpus) or 0.0
        rows.append(
            {
                "GPUs": gpus,
                "operations in a row": power(row),
                "hours at 400 TFLOP/s (assumed)": f"{row / ASSUMED / 3600:.1f}",
                "times faster than one": f"{whole / row:.1f}",
                "busy": f"{100 * whole / row / gpus:.0f} %",
            }
        )
    return found, rows


# -- the page --------------------------------------------------------------------------------------------


def put(part: str, body: str, page: Path = PAGE) -> None:
    """Replace what stands between a part's two comments. Raises ValueError where the page has no such part."""
    text = page.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {part} -->\n).*?(<!-- /{part} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"{page.name} has no part {part!r}")
    with files.replacing(page) as temporary:
        Path(temporary).write_text(pattern.sub(lambda m: f"{m[1]}{body.strip()}\n{m[2]}", text), encoding="utf-8")


def measured() -> tuple[str, Rows]:
    """The constants of this machine's GPU, or of its CPU."""
    return f"Machine: {machine()}", constants(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def hundred() -> tuple[str, Rows]:
    """The sweep in a sentence, and by number of GPUs."""
    found, rows = sweep()
    said = (
        f"{len(found.points)} points, of which {found.located} locates and {found.compared} compare the models: "
        f"{power(found.flops)} operations in all; as runs that share nothing {power(found.alone())}."
    )
    return said, rows


PARTS: dict[str, Callable[[], tuple[str, Rows]]] = {  # of the page
    "counts": lambda: ("", counts()),
    "attention": lambda: ("", left_out()),
    "constants": measured,
    "work": lambda: ("", work()),
    "fits": lambda: ("", fits()),
    "sweep": hundred,
}


def main(argv: list[str] | None = None) -> int:
    parser = options(__doc__, "scale")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this table; all by default")
    arguments = parser.parse_args(argv)
    began, made = time.perf_counter(), {}
    for part in arguments.part or PARTS:
        said, rows = PARTS[part]()
        made[part] = {"about": said, "rows": rows}
        if arguments.write:
            put(part, "\n\n".join(filter(None, [said, markdown(rows)])))
        elif not arguments.json:
            table(rows, part)
            if said:
                print(said)
    if arguments.json:
        emit({"scale": made})
    print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
