"""`python -m benchmarks.gpu`: the same ratios at the sizes of a 7B model, on a CUDA device, with absolute times."""

from __future__ import annotations

import sys
import time

import torch

from benchmarks import comparing, locating
from benchmarks.measure import Ratio, slow_down
from benchmarks.models import SEVEN, llama
from paraknow.config import Similarity
from paraknow.models import Loaded
from paraknow.screen import table
from paraknow.similarity.activations import OUTPUTS, batches
from paraknow.similarity.cka import Stream

ROWS, LENGTH = 512, 128


def cka_at_seven(device: torch.device) -> list[Ratio]:
    """All outputs of two models of 7B shapes, with intervals and nulls, over two bare forward passes of each text."""
    pair = [llama(device, torch.bfloat16, seed, **SEVEN) for seed in (0, 1)]
    points = comparing.texts(ROWS, LENGTH, SEVEN["vocab_size"])
    settings, layers = Similarity(), SEVEN["num_hidden_layers"]

    def ours() -> None:
        streams = {m: Stream(layers, layers, settings.resamples, settings.permutations) for m in OUTPUTS}
        for batch in batches(pair[0], pair[1], points, ROWS, OUTPUTS, 16):
            for module, stream in streams.items():
                sides = [[rows[(k, module)] for k in range(layers)] for rows in (batch.teacher, batch.student)]
                stream.add(sides[0], sides[1], batch.owners, batch.offsets)
        for stream in streams.values():
            stream.result()

    def bare(loaded: Loaded) -> None:
        with torch.no_grad():
            for first in range(0, ROWS, 16):
                ids = torch.tensor([p.teacher_ids for p in points[first : first + 16]], device=device)
                loaded.model.model(input_ids=ids, use_cache=False)

    def theirs() -> None:
        for loaded in pair:
            bare(loaded)

    return [slow_down("CKA at 7B shapes, 512 texts", "two bare forward passes", ours, theirs, 1.5, 3)]


def main() -> int:
    if not torch.cuda.is_available():
        print("benchmarks.gpu: no CUDA device is available here; nothing was measured.", file=sys.stderr)
        return 3
    device = torch.device("cuda")
    jobs = {
        "sensitivity": lambda: locating.sensitivity_cost(device, SEVEN, torch.bfloat16),
        "neurons": lambda: locating.attribution(device, 20),
        "cka": lambda: comparing.cka_cost(device),
        "cka 7B": lambda: cka_at_seven(device),
    }
    rows = []
    for name, job in jobs.items():
        began = time.perf_counter()
        rows += [r.row() for r in job()]
        print(f"{name}: {time.perf_counter() - began:.1f} s in all", file=sys.stderr, flush=True)
        torch.cuda.empty_cache()
    print(torch.cuda.get_device_name(device), torch.__version__)
    table([{k: r[k] for k in ("what", "rival", "value", "limit", "held")} for r in rows], "Ratios")
    return 0 if all(r["held"] for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
