"""One run being carried out: its folder, what was checked, its loaded models and the places of its files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from paraknow import data
from paraknow.checks import Checked
from paraknow.config import RunConfig
from paraknow.evaluate import benchmarks
from paraknow.evaluate.benchmarks import Plan
from paraknow.methods.base import Candidate
from paraknow.models import Loaded
from paraknow.runs.store import Run

Warn = Callable[[str], None]


@dataclass
class Session:
    """One run being carried out: its folder, what was checked, and the models once they are loaded."""

    run: Run
    checked: Checked
    warn: Warn
    models: dict[str, Loaded] = field(default_factory=dict)
    _plans: list[Plan] | None = None

    @property
    def config(self) -> RunConfig:
        return self.checked.config

    def tasks(self, names: tuple[str, ...]) -> list[data.Task]:
        return [data.load_task(name, self.config.seed) for name in names]

    def plans(self) -> list[Plan]:
        """What the run's benchmarks ask, read once."""
        if self._plans is None:
            self._plans = benchmarks.plans(self.config.evaluate)
        return self._plans

    def jobs(self) -> Iterator[tuple[Candidate, int]]:
        """Every model the run makes, with each seed."""
        for candidate in self.checked.candidates:
            for seed in self.config.run_seeds:
                yield candidate, seed

    def adapter(self, candidate: Candidate, seed: int) -> Path:
        return self.run.path("adapters", candidate.label, str(seed))

    def start_file(self, candidate: Candidate, seed: int) -> Path:
        return self.run.path("align", candidate.label, f"{seed}.safetensors")

    def start_rows(self, candidate: Candidate, seed: int) -> Path:
        return self.run.path("align", candidate.label, f"{seed}.sizes.parquet")
