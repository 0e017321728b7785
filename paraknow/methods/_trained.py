"""What transport may train once neurons are carried: the maps (`learn`), then every matrix of the layers (`heal`).

The maps are one network for all layers, conditioned on the layer, that starts from the fitted maps.

Notation as in _carry. A map of layer l and role ρ (what attention reads, what the FFN reads, what both write) is
N⁰ + P·diag(c(l, ρ))·Q: N⁰ the fitted map, P (d_in, r) and Q (r, d_out) shared by all layers, c a small network of an
embedding of (l, ρ) whose last layer starts at zero, so that the first step starts from N⁰ exactly. The teacher's own
neurons stay as they are; only what carries them moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from paraknow import results, tune
from paraknow.config import MODULES
from paraknow.methods._carry import LEARNT_RANK, LEARNT_WIDTH
from paraknow.methods.base import Align, Place, Start
from paraknow.progress import part

ROLES = {"q": 0, "k": 0, "v": 0, "gate": 1, "up": 1, "o": 2, "down": 2}


class Maps(nn.Module):
    """`fitted`: N⁰ by (layer, role), of one shape for the two roles that read and the other way round for the third."""

    def __init__(self, fitted: dict[tuple[int, int], torch.Tensor], layers: int, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed + 5_000_003)
        (student, teacher), device = fitted[(0, 1)].shape, fitted[(0, 1)].device
        rank = min(LEARNT_RANK, student, teacher)

        def drawn(*shape: int, scale: float) -> nn.Parameter:
            return nn.Parameter((torch.randn(shape, generator=generator) * scale).to(device))

        self.fitted = {place: n.float() for place, n in fitted.items()}
        self.layers = layers
        self.where = drawn(len(set(ROLES.values())) * layers, LEARNT_WIDTH, scale=1.0)
        self.hidden = drawn(LEARNT_WIDTH, LEARNT_WIDTH, scale=LEARNT_WIDTH**-0.5)
        self.last = nn.Parameter(torch.zeros(LEARNT_WIDTH, rank, device=device))
        # as large as a rotation's entries
        self.reads = nn.ParameterList([drawn(student, rank, scale=rank**-0.5), drawn(rank, teacher, scale=rank**-0.5)])
        self.writes = nn.ParameterList([drawn(teacher, rank, scale=rank**-0.5), drawn(rank, student, scale=rank**-0.5)])

    def forward(self, layer: int, role: int) -> torch.Tensor:
        """The map as it is by now: (d_S, d_T) for what is read, (d_T, d_S) for what is written."""
        coefficients = (self.where[role * self.layers + layer] @ self.hidden).relu() @ self.last
        p, q = self.writes if role == 2 else self.reads
        return self.fitted[(layer, role)] + (p * coefficients) @ q


class _Carried(nn.Module):
    """A matrix of the student's from the teacher's neurons (n, d_T), a row each, by the map of its layer."""

    def __init__(self, maps: Maps, layer: int, module: str):
        super().__init__()
        self.maps, self.layer, self.role = maps, layer, ROLES[module]

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        now = self.maps(self.layer, self.role)
        return ((rows @ now).T if self.role == 2 else rows @ now.T).to(rows.dtype)


def hang(model: nn.Module, paths: dict[Place, str], rows: dict[Place, torch.Tensor], maps: Maps) -> None:
    """Let the model's matrices at `paths` be computed from the teacher's neurons `rows` (n, d_T) at every pass.

    Only the maps require gradients then. The model is one of our own making: nothing is put back.
    """
    model.requires_grad_(False)
    for place, neurons in rows.items():
        linear: Any = model.get_submodule(paths[place])
        linear.weight = nn.Parameter(neurons.to(linear.weight.dtype), requires_grad=False)
        parametrize.register_parametrization(linear, "weight", _Carried(maps, *place), unsafe=True)
    maps.requires_grad_(True)


def learn(
    made: Start, align: Align, pairs: Sequence[int], fitted: dict[tuple[int, int], torch.Tensor], change: Any
) -> None:
    """Train the maps themselves on known text, the teacher's neurons (or what `change` makes of them) as they are."""
    model = results.rebuilt(align.student, made.matrices)
    paths = {place: align.student.architecture.path(place[1], place[0]) for place in made.matrices}
    rows = {}
    for layer, module in made.matrices:
        weight = align.teacher.weight(module, pairs[layer]).double()
        own = weight.T if module in ("o", "down") else weight
        rows[(layer, module)] = (own if change is None else change(own)).contiguous().to(align.student.device)
    maps = Maps(fitted, align.student.architecture.layers, align.seed)
    hang(model, paths, rows, maps)
    _train(made, align, model, align.settings.learn, "training maps")
    made.matrices = {place: model.get_submodule(path).weight.detach() for place, path in paths.items()}


def heal(made: Start, align: Align) -> None:
    """Tune every matrix of the layers of the new checkpoint on known text, by the run's own schedule."""
    student = align.student
    model = results.rebuilt(student, made.matrices)
    places = [(layer, module) for layer in range(student.architecture.layers) for module in MODULES]
    moving = {p: model.get_submodule(student.architecture.path(p[1], p[0])).weight for p in places}
    for weight in moving.values():
        weight.requires_grad_(True)
    _train(made, align, model, align.settings.heal, "healing")
    made.matrices = {place: weight.detach() for place, weight in moving.items()}


def _train(made: Start, align: Align, model: Any, wanted: int, doing: str) -> None:
    """About `wanted` steps, whole passes over the known text, on what requires gradients in `model`."""
    items = align.encode(align.known, align.student)
    epochs = max(1, round(wanted * align.tune.batch_size / max(1, len(items))))
    settings = align.tune.model_copy(update={"epochs": epochs})
    pad = align.student.tokenizer.pad_token_id or 0
    steps = tune.steps_of(len(items), settings)
    report, savepoint = part(align.progress, 0, steps, doing), align.part_of(doing.split()[0])
    tuned = tune.fine_tune(model, items, settings, align.seed, pad, report, savepoint=savepoint)
    made.losses, made.steps = [*made.losses, *tuned.losses], made.steps + tuned.steps
    made.trainable = max(made.trainable, tuned.trainable)
    if tuned.warning:
        made.facts["warning"] = tuned.warning
