"""Whether a run fits into memory, and if not, the nearest settings with which it does (no torch).

Settings are tried on the estimate itself, from those that change only speed to those that change what is computed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from paraknow import devices, files
from paraknow.config import RunConfig
from paraknow.errors import ResourceError
from paraknow.memory import Case, Need

GIB = 2**30
ROOM = 0.9  # of what is free beside the device is given to layers that wait
LEAST_LENGTH = 64  # tokens; shorter examples would hardly be the same task
PARTS = {
    "weights": "the weights",
    "gradients": "gradients",
    "accumulators": "the sensitivities of all parameters",
    "activations": "activations and logits",
    "optimizer": "adapters and their optimiser",
    "kept": "outputs that are kept",
    "other": "work space",
    "libraries": "torch and its like",
}
Change = tuple[str, Any]  # (a setting's dotted name, its value)


@dataclass(frozen=True)
class Free:
    """Free bytes: on the device, in host memory, on the GPUs beside it by their numbers, and on the disk where what
    does not fit lies (None: not looked at)."""

    device: str
    bytes: int
    host: int = 0
    others: Mapping[int, int] | None = None
    disk: int | None = None

    @classmethod
    def now(cls, device: str) -> Free:
        """What is free on this machine. Raises ResourceError where there is no such device."""
        kind, free = devices.free_bytes(device)
        disk = shutil.disk_usage(files.scratch()).free
        if kind == "cpu":
            return cls(kind, free, disk=disk)
        others = {g.index: g.free for g in devices.gpus() if g.index != devices.current()}
        return cls(kind, free, devices.free_bytes("cpu")[1], others, disk)


@dataclass(frozen=True)
class Short:
    """A stage that does not fit: where (a device, `host` or `disk`), what it needs and what is free, in bytes."""

    stage: str
    where: str
    need: int
    free: int


def shorts(need: Need, free: Free) -> list[Short]:
    """Every stage that does not fit, the worst first. Host memory counts with what other GPUs can take of it."""
    found = [Short(s, free.device, n, free.bytes) for s, n in need.totals.items() if n > free.bytes]
    host = free.host + sum((free.others or {}).values())
    found += [Short(s, "host", n, host) for s, n in need.host.items() if n > host]
    if free.disk is not None:
        found += [Short(s, "disk", n, free.disk) for s, n in need.disk.items() if n > free.disk]
    return sorted(found, key=lambda s: s.free - s.need)


@dataclass(frozen=True)
class Fit:
    """Changed settings by their dotted names, and what the run then needs at its peak on the device, in bytes."""

    settings: dict[str, Any]
    need: int

    @property
    def flags(self) -> str:
        """As the command line takes them."""
        return " ".join(f"--set {name}={_yaml(value)}" for name, value in self.settings.items())


def _yaml(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ",".join(value) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def changed(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """The config with some settings changed."""
    for name, value in settings.items():
        part, _, field = name.rpartition(".")
        if part:
            inner = getattr(config, part).model_copy(update={field: value})
            config = config.model_copy(update={part: inner})
        else:
            config = config.model_copy(update={field: value})
    return config


def value_of(config: RunConfig, name: str) -> Any:
    """The value of a setting by its dotted name."""
    found: Any = config
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _halves(value: int, least: int = 1) -> list[int]:
    found = []
    while value // 2 >= least:
        value //= 2
        found.append(value)
    return found


def ladders(config: RunConfig, case: Case) -> Iterator[tuple[str, list[Any]]]:
    """Settings that need less, the least intrusive first, each with its values from the mildest on.

    Same numbers, more steps: batches, layers computed again, groups of layers, sums elsewhere. Then what is compared
    more coarsely, longer examples cut, weights in half precision; last, layers that wait elsewhere, for every pass then
    brings all of them.
    """
    asked = config.evaluate.batch_size
    yield "evaluate.batch_size", _halves(case.requests(config)) if asked != "auto" or case.device == "cpu" else []
    yield "tune.micro_batch", _halves(min(config.tune.micro_batch, config.tune.batch_size))
    yield "similarity.forward_batch", _halves(config.similarity.forward_batch)
    yield "locate.checkpointing", [] if config.locate.checkpointing else [True]
    most = max(m.architecture.layers for m in case.pair) + 2
    yield "locate.groups", [2**k for k in range(1, 11) if config.locate.groups < 2**k < 2 * most]
    places = ("device", "host", "disk")[("device", "host", "disk").index(config.locate.accumulators) + 1 :]
    yield "locate.accumulators", [p for p in places if p != "host" or case.device == "cuda"]
    yield "similarity.batch_rows", _halves(min(config.similarity.batch_rows, config.similarity.examples), 32)
    yield "similarity.untrained", [False] if config.similarity.untrained else []
    for part in ("tune", "locate", "similarity"):
        yield f"{part}.max_length", _halves(getattr(config, part).max_length, LEAST_LENGTH)
    yield "similarity.parts", [p for p in (_without(config, "stitching"), ()) if p is not None]
    yield "dtype", ["bfloat16"] if config.dtype == "float32" else []
    for side in ("teacher", "student"):
        yield f"placement.{side}", ["auto"] if getattr(config.placement, side) == "device" else []


def _without(config: RunConfig, part: str) -> tuple[str, ...] | None:
    parts = config.similarity.parts
    return tuple(p for p in parts if p != part) if part in parts else None


def _lacking(config: RunConfig, case: Case, free: Free) -> int:
    """Bytes that are missing over all stages."""
    return sum(s.need - s.free for s in shorts(case.need(config), free))


def nearest(config: RunConfig, case: Case, free: Free) -> tuple[Fit | None, Fit]:
    """(the nearest settings that fit, or None; the ones that need least of all that were tried).

    Setting after setting is lowered where that helps until all stages fit; then each is put back as far as it goes,
    the most intrusive first.
    """
    tried = dict(ladders(config, case))
    current, lacking = config, _lacking(config, case, free)
    taken: dict[str, Any] = {}
    for name, values in tried.items():
        for value in values:
            if not lacking:
                break
            candidate = changed(current, {name: value})
            if (rest := _lacking(candidate, case, free)) < lacking:
                current, lacking, taken[name] = candidate, rest, value
    if lacking:
        return None, Fit(taken, max(case.need(current).totals.values()))
    for name in reversed(list(taken)):
        milder = [value_of(config, name), *tried[name][: tried[name].index(taken[name])]]
        for value in milder:
            candidate = changed(current, {name: value})
            if not _lacking(candidate, case, free):
                current, taken[name] = candidate, value
                break
    kept = {name: value for name, value in taken.items() if value != value_of(config, name)}
    fit = Fit(kept, max(case.need(current).totals.values()))
    return fit, fit


def less(config: RunConfig, case: Case, stage: str, asked: int = 0) -> Fit | None:
    """The nearest settings with which one stage needs less by what was asked for in vain, and by a tenth at least.

    The least that can be had where nothing saves so much; None where nothing saves anything.
    """
    if stage not in (before := case.need(config).totals):
        return None
    most = before[stage] - max(asked, before[stage] // 10)
    best: Fit | None = None
    for name, values in ladders(config, case):
        for value in values:
            need = case.need(changed(config, {name: value})).totals[stage]
            if need < (best.need if best else before[stage]):
                best = Fit({name: value}, need)
            if need <= most:
                return Fit({name: value}, need)
    return best


def refused(config: RunConfig, case: Case, free: Free) -> ResourceError | None:
    """Why a run does not fit: the stage, its largest part and the nearest settings that do. None where it fits."""
    need = case.need(config)
    found = shorts(need, free)
    if not found:
        return None
    worst = found[0]
    elsewhere = {"host": "in host memory beside the GPU", "disk": f"of files in {files.scratch()}"}
    where, biggest = elsewhere.get(worst.where, f"on {worst.where}"), ""
    if worst.where not in elsewhere:
        name, size = next(iter(need.stages[worst.stage].largest().items()))
        biggest = f", most of it for {PARTS[name]} ({gib(size)})"
    fit, least = nearest(config, case, free)
    if fit:
        hint = f"{fit.flags} would need {gib(fit.need)}"
    elif least.settings:
        hint = f"no settings fit: with {least.flags} it would still need {gib(least.need)}"
    else:
        hint = "no settings need less"
    return ResourceError(
        f"memory: the {worst.stage} stage needs about {gib(worst.need)} {where}{biggest}, {gib(worst.free)} are "
        f"free; {hint}.",
        fit.settings if fit else {},
    )


def rooms(config: RunConfig, case: Case, free: Free) -> dict[str, dict[int | str, int]]:
    """Bytes that the layers of a model placed `auto` may take, by place (a GPU's number, `cpu`), for each such model.

    What stages need beside the weights stays free. Two models share what is left by their sizes.
    """
    automatic = [n for n, how in enumerate((config.placement.teacher, config.placement.student)) if how == "auto"]
    whole = sum(case.pair[n].parameters for n in automatic)
    need = case.need(config)
    beside = max(parts.total - parts.weights for parts in need.stages.values())
    left = max(0, free.bytes - beside - need.stages["evaluate"].weights)
    found: dict[str, dict[int | str, int]] = {}
    for n in automatic:
        share = case.pair[n].parameters / whole
        own = int(left * share) + case.resident(config, n)
        if free.device == "cpu":
            found[("teacher", "student")[n]] = {"cpu": own}
            continue
        places: dict[int | str, int] = {devices.current(): own}
        places |= {number: int(ROOM * size * share) for number, size in (free.others or {}).items()}
        found[("teacher", "student")[n]] = places | {"cpu": int(ROOM * free.host * share)}
    return found


def gib(size: int) -> str:
    """A size in words."""
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.0f} MiB"
