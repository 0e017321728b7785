"""`python -m benchmarks.groups`: sensitivity in groups of layers: peak memory over its estimate, time over one group's.

A random Llama on the CPU. Maps are dropped group by group, as locating drops them. Times are the processor's, medians
of rounds in which every way has its turn, beside what counting operations says they should be.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import peak_bytes
from benchmarks.models import llama, seeds
from benchmarks.written import markdown, options, put
from paraknow import config as configs
from paraknow import methods, passes
from paraknow.checkpoints import Checkpoint
from paraknow.config import Locate
from paraknow.data import Encoded
from paraknow.locate.sensitivity import Passes, groups_of
from paraknow.memory import Case
from paraknow.models import Loaded
from paraknow.screen import emit, table

CPU = torch.device("cpu")
SIZES = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "vocab_size": 4096}
SEEDS, LENGTH, ROUNDS = 2, 64, 2
WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"groups": 2},
    {"groups": 4},
    {"accumulators": "disk"},
    {"groups": 4, "accumulators": "disk"},
)


def checkpoint(loaded: Loaded) -> Checkpoint:
    """What the estimate knows of a model."""
    sizes = [p.numel() for p in loaded.model.parameters()]
    return Checkpoint("benchmark", Path("nowhere"), loaded.architecture, sum(sizes), max(sizes))


def estimated(model: Checkpoint, settings: Locate) -> int:
    """Bytes beside weights and libraries that memory.py expects of the locate stage, for sequences of LENGTH tokens."""
    wanted = configs.parse(
        {
            "pair": {"teacher": "benchmark", "student": "benchmark"},
            "task": "benchmark",
            "locate": {**settings.model_dump(exclude_none=True), "max_length": LENGTH, "neurons": "none"},
        }
    )
    need = Case(model, model, methods.candidates(wanted), "cpu", {}).need(wanted)
    stage = need.stages["locate"]
    return stage.total - stage.weights - stage.libraries


def work(model: Checkpoint, settings: Locate) -> float:
    """Operations of one seed's passes."""
    one = passes.Pass("", "", "", 1, 1, LENGTH, False, model.parameters, passes.multiplied(model))
    found = passes._in_groups(one, model, settings).flops
    assert found is not None
    return found


def peak(loaded: Loaded, items: list[Encoded], settings: Locate) -> int:
    """Most bytes of tensors held beside the weights. torch's profiler counts mapped files as memory; sums on disk,
    which a group's passes hold from beginning to end, are taken off."""
    taken, most = Passes(loaded, items, settings, halves=True), 0
    for group in groups_of(loaded, settings):
        kept = sum(half.nbytes for both in taken.halves.values() for half in both)
        sizes = [p.numel() for n, p in taken.named if loaded.architecture.place(n)[0] in group]
        mapped = 4 * sum(sizes) if settings.accumulators == "disk" else 0
        most = max(most, kept - mapped + peak_bytes(lambda group=group: taken.over(group) and None, CPU))  # type: ignore[misc]
    return most


def measured() -> list[dict[str, Any]]:
    """One row per way."""
    loaded = llama(CPU, **SIZES)
    items, model = seeds(SEEDS, LENGTH, SIZES["vocab_size"]), checkpoint(loaded)
    hows = [Locate(**way) for way in WAYS]

    def run(settings: Locate) -> None:
        taken = Passes(loaded, items, settings, halves=True)
        for group in groups_of(loaded, settings):
            taken.over(group)

    def took(settings: Locate) -> float:
        began = time.process_time()
        run(settings)
        return time.process_time() - began

    run(hows[0])
    peaks = [peak(loaded, items, how) for how in hows]
    times = [[took(how) for how in hows] for _ in range(ROUNDS)]
    rows = []
    for k, (way, how) in enumerate(zip(WAYS, hows, strict=True)):
        need = estimated(model, how)
        rows.append(
            {
                "locate": " ".join(f"{name}={value}" for name, value in way.items()).lower() or "as by default",
                "peak (MB)": round(peaks[k] / 1e6),
                "estimated (MB)": round(need / 1e6),
                "peak / estimated": f"{peaks[k] / need:.2f}",
                "time / by default": f"{statistics.median(t[k] / t[0] for t in times):.2f}",
                "operations / by default": f"{work(model, how) / work(model, hows[0]):.2f}",
            }
        )
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    arguments = options(__doc__, "groups").parse_args(argv)
    rows = measured()
    if arguments.json:
        emit({"groups": rows})
    else:
        table(rows, "Sensitivity in groups of layers")
    if arguments.write:
        text = (
            f"A random Llama ({', '.join(f'{k} {v}' for k, v in SIZES.items())}) in float32, {SEEDS} seeds of {LENGTH} "
            "tokens. Peak: tensors beside the weights; sums on disk are not memory. Operations are those that the dry "
            f"run counts; times are the processor's, medians of {ROUNDS} rounds.\n\n"
        )
        put("groups", "Sensitivity in less memory", text + markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
