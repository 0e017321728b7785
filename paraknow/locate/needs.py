"""What locating needs in memory, from sizes and settings alone (no torch). Sizes are bytes; see memory.py."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from paraknow.checkpoints import BYTES, Checkpoint
from paraknow.config import MODULES, RunConfig
from paraknow.locate.groups import largest

if TYPE_CHECKING:
    from paraknow.memory import Case, Parts

COARSE = 512**2  # cells of a coarse map (locate.sensitivity)
LENS = {"cpu": 2**19, "cuda": 2**24}  # numbers of a chunk of neurons × vocabulary (locate.neurons)
PINNED = 2 * 4 * 2**22  # two buffers that scores pass through on their way to host memory (locate.accumulators)


def sums(case: Case, config: RunConfig, number: int) -> dict[str, int]:
    """Sums of one model's sensitivities that are held at once, by place: `device`, `host` (beside a GPU), `disk`.

    They are those of the largest group of layers; of several tasks there are two, the sum and the one at work.
    """
    model, gpu = case.pair[number], case.device == "cuda"
    layers = model.architecture.layers * sum(prod(model.architecture.shape(m)) for m in MODULES)
    numbers, times = largest(model.architecture, model.parameters, config.locate.groups), min(2, len(config.located_on))
    whole = 4 * times * numbers
    how = config.locate.accumulators
    if how == "disk":
        return {"device": 0, "host": 0, "disk": whole}
    if how == "host" and gpu:
        return {"device": 0, "host": whole + PINNED, "disk": 0}
    if gpu and case.waits(config, number):  # what waits elsewhere has its sums there
        own = 4 * times * min(numbers, model.parameters - layers)
        return {"device": own, "host": 4 * times * min(numbers, layers), "disk": 0}
    return {"device": whole, "host": 0, "disk": 0}


def halves(model: Checkpoint, config: RunConfig) -> int:
    """Coarse maps of two halves of the seeds, of every task; always in host memory."""
    a = model.architecture
    cells = sum((a.layers if m in MODULES else 1) * min(prod(a.shape(m)), COARSE) for m in a.matrices)
    return 4 * 2 * len(config.located_on) * cells


def located(case: Case, base: Parts, config: RunConfig, number: int, tokens: int, layer: int) -> Parts:
    """One model at its peak: a group of layers' passes over the seeds, or choosing their blocks; or scoring neurons,
    when no sums are left. `layer`: what a layer keeps of the longest example's `tokens` for its backward pass."""
    model, settings, width = case.pair[number], config.locate, BYTES[config.dtype]
    a, there = model.architecture, sums(case, config, number)["device"]
    kept = halves(model, config) if case.device == "cpu" else 0
    found = base.plus(accumulators=there, kept=kept)
    # of layers that are computed again: what each reads, and all of one of them
    held = a.layers * tokens * a.hidden * width + 2 * layer if settings.checkpointing else (a.layers + 1) * layer
    # the widest gradient, the one it is made from, and its score
    passes = found.plus(gradients=2 * width * model.largest, activations=held + 3 * 4 * tokens * a.vocabulary)
    # a summed-area table in float64 and what is made of it, beside a map that is brought
    widest = max(prod(a.shape(module)) for module in MODULES)
    ways = [passes, found.plus(other=2 * 8 * widest + 4 * model.largest)]
    if settings.neurons != "none":
        seeds, query = settings.seeds, a.heads * a.head_dim
        states = 4 * seeds * a.layers * (3 * a.hidden + query + a.ffn)
        lens = 4 * a.vocabulary * a.hidden * (1 if width == 4 else 2)
        chunk = 4 * max(LENS[case.device], a.vocabulary)
        work = 3 * chunk + 4 * 4 * seeds * a.vocabulary + 4 * 3 * seeds * max(query, a.ffn)
        ways.append(base.plus(kept=kept + states, other=lens + work))
    return max(ways, key=lambda p: p.total)
