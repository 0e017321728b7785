"""CKA against the PyPI package pytorch-cka on the same forward passes and layers."""

from __future__ import annotations

import torch

from benchmarks.measure import Ratio, require_same, slow_down
from benchmarks.models import SMALL, SMALLER, llama
from paraknow.models import Loaded
from paraknow.similarity.activations import batches
from paraknow.similarity.cka import Stream
from paraknow.similarity.points import Points

ROWS, LENGTH, MODULES = 256, 16, ("up", "down", "v", "residual")


def texts(count: int, length: int, vocabulary: int) -> list[Points]:
    """Random texts, one position each: the last."""
    draw = torch.Generator().manual_seed(1)
    rows = torch.randint(1, vocabulary, (count, length), generator=draw).tolist()
    at = (length - 1,)
    return [Points(i, tuple(row), tuple(row), at, at, (1,)) for i, row in enumerate(rows)]


class _Last(torch.nn.Module):
    """What their hooks see of a module: its output at the last position."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Tapped(torch.nn.Module):
    """A model for pytorch-cka: `taps` are modules whose outputs are the rows that we compare."""

    def __init__(self, loaded: Loaded, module: str):
        super().__init__()
        self.inner = loaded.model.model
        a = loaded.architecture
        self.taps = torch.nn.ModuleList(_Last() for _ in range(a.layers))
        for layer, tap in enumerate(self.taps):
            name = f"layers.{layer}" if module == "residual" else a.path(module, layer).removeprefix("model.")
            self.inner.get_submodule(name).register_forward_hook(self._pass_on(tap))

    @staticmethod
    def _pass_on(tap: torch.nn.Module):
        def hook(_: torch.nn.Module, __: tuple, output: torch.Tensor) -> None:
            tap((output[0] if isinstance(output, tuple) else output)[:, -1])

        return hook

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.inner(input_ids=ids, use_cache=False).last_hidden_state


def cka_cost(device: torch.device) -> list[Ratio]:
    """CKA of all layers of two models against each other, forward passes included, against the package pytorch-cka with
    the same texts, batches and layers. It compares layers of all kinds with each other in one matrix, so that the same
    work takes it one pass for each kind of output, and us one pass for all. Values agree to 1e-5 where they are not
    negative; it cuts those off.
    """
    from cka import compute_cka
    from torch.utils.data import DataLoader

    teacher = llama(device, **SMALL)
    student = llama(device, seed=1, **SMALLER)
    points = texts(2 * ROWS, LENGTH, teacher.architecture.vocabulary)
    ids = torch.tensor([p.teacher_ids for p in points])
    sizes = (teacher.architecture.layers, student.architecture.layers)
    found: dict[str, torch.Tensor] = {}

    def ours(modules: tuple[str, ...]) -> None:
        streams = {m: Stream(*sizes, resamples=0, permutations=0) for m in modules}
        for batch in batches(teacher, student, points, ROWS, modules, ROWS):
            for module, stream in streams.items():
                sides = (
                    [rows[(k, module)] for k in range(n)]
                    for rows, n in zip((batch.teacher, batch.student), sizes, strict=True)
                )
                stream.add(*sides, owners=batch.owners)
        found.update({m: torch.from_numpy(s.result().cka) for m, s in streams.items()})

    rivals = {}
    for module in MODULES:
        rivals[module] = tuple(Tapped(loaded, module) for loaded in (teacher, student))

    def theirs(modules: tuple[str, ...]) -> None:
        for module in modules:
            one, other = rivals[module]
            names = [[f"taps.{k}" for k in range(n)] for n in sizes]
            loader = DataLoader(ids, batch_size=ROWS)
            (matrix,) = compute_cka(
                one, other, loader, layers=names[0], model2_layers=names[1], device=device, progress=False
            )
            found[f"their {module}"] = matrix.cpu()

    results = [
        slow_down("CKA of one kind of output", "pytorch-cka", lambda: ours(("up",)), lambda: theirs(("up",)), 1.0, 4),
        slow_down("CKA of four kinds of output", "pytorch-cka", lambda: ours(MODULES), lambda: theirs(MODULES), 1.0, 4),
    ]
    # theirs is cut off below 0, where the unbiased estimator of two random models often lies
    gap = max(float((found[m].clamp(0, 1) - found[f"their {m}"].double()).abs().max()) for m in MODULES)
    require_same("CKA by both", gap, 1e-5)
    return results
