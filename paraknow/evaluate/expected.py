"""How much benchmarks would ask, for the dry run: nothing is read from a hub (no torch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from paraknow.config import Benchmark, RunConfig
from paraknow.evaluate import benchmarks, catalogue
from paraknow.evaluate.benchmarks import Plan
from paraknow.recipes import Sizes


def plans(config: RunConfig) -> list[Plan]:
    """What benchmarks ask, less those of ours whose records would come from a hub. Raises InputError."""
    kept = tuple(b for b in config.evaluate.benchmarks if b.file or b.name not in catalogue.OURS)
    return benchmarks.plans(config.evaluate.model_copy(update={"benchmarks": kept}))


def requests(
    benchmark: Benchmark, config: RunConfig, planned: Sequence[Plan], sizes: Mapping[str, Sizes]
) -> int | None:
    """What a benchmark asks of a model: counted where its records are files, else from the sizes that recipes give its
    dataset by name, else None."""
    plan = next((p for p in planned if p.benchmark is benchmark), None)
    if plan is not None and plan.requests is not None:
        return plan.requests
    leaves = catalogue.leaves(benchmark.name)
    source, name = (leaves[0].settings.get(f"dataset_{k}") for k in ("path", "name"))
    found = [sizes[f"hub:{source}{part}"] for part in (f"/{name}", "/all", "") if f"hub:{source}{part}" in sizes]
    limit = benchmark.limit or config.evaluate.limit
    if not found or found[0].test is None or (len(leaves) > 1 and limit is not None):  # a limit is one of each task
        return None
    return found[0].choices * (found[0].test if limit is None else min(limit, found[0].test))
