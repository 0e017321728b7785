"""Matching two models' inner spaces layer by layer, for methods that carry weights across (METHODS 2.6).

Notation: rows are tokens of known text. N (d_S, d_T) maps what a student's sublayer reads to what the teacher's reads,
x_T ≈ x_S·N; M (d_T, d_S) maps the residual stream back, r_S ≈ r_T·M. E: token embeddings (V, d); γ: a norm's scale.
"""

from __future__ import annotations

from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from paraknow.errors import InputError
from paraknow.methods.base import Align, Place, Start

if TYPE_CHECKING:
    import torch

    from paraknow.architecture import Architecture
    from paraknow.models import Loaded
    from paraknow.similarity.points import Points

READS = ("q", "gate")  # one of the matrices that read the same input stands for all of them
NORMS = {"q": "input_layernorm", "gate": "post_attention_layernorm"}
LEARNT_RANK, LEARNT_WIDTH = 64, 32  # of maps that are trained (_trained)
Streams = dict[Place, "torch.Tensor"]


class Matching:
    """The maps between a pair, by the rule `name`, from the streams of both models."""

    def __init__(self, name: str, teacher: Loaded, student: Loaded):
        self.name, self.teacher, self.student = name, teacher, student

    def reads(self, module: str, layers: tuple[int, int], x_s: torch.Tensor, x_t: torch.Tensor) -> Any:
        """N for what `module` (q or gate) reads, layers (student, teacher), and the share of X_T it explains."""
        from paraknow.similarity import maps

        n = self.by_vocabulary(module, layers) if self.name == "vocabulary" else maps.MAPS[self.name](x_s, x_t)
        return n, maps.fit(x_s, x_t, n)

    def writes(self, r_t: torch.Tensor, r_s: torch.Tensor) -> Any:
        """M, and the share of R_S it explains."""
        from paraknow.similarity import maps

        if self.name != "vocabulary":
            m = maps.MAPS[self.name](r_t, r_s)
        else:
            m = maps.procrustes(_entry(self.teacher), _entry(self.student))
        return m, maps.fit(r_t, r_s, m)

    def by_vocabulary(self, module: str, layers: tuple[int, int]) -> torch.Tensor:
        """N from the embeddings alone: a norm makes every stream as long as the root of its width, scaled by γ."""
        scale = (self.turn.shape[1] / self.turn.shape[0]) ** 0.5
        one, other = (_gamma(m, k, module) for m, k in zip((self.student, self.teacher), layers, strict=True))
        return scale * self.turn * other / one[:, None]

    @cached_property
    def turn(self) -> torch.Tensor:
        """The rotation (d_S, d_T) that takes the student's token embeddings closest to the teacher's."""
        from paraknow.similarity import maps

        return maps.turn(*(m.weight("embed", 0).double() for m in (self.student, self.teacher)))

    def kinship(self) -> torch.Tensor:
        """How alike the layers' attention is, (L_T, L_S): the cosine of Wᵀ·W, summed over q, k and v, of both models
        once the teacher's is carried by the vocabulary. It does not depend on how many heads there are or in which
        order they stand, and reads no text."""
        import torch

        t, s = self.teacher.architecture.layers, self.student.architecture.layers
        norms = [_gamma(self.student, layer, "q") for layer in range(s)]
        own = [_gram(self.student, layer) for layer in range(s)]
        rows = []
        for source in range(t):
            # N·G·Nᵀ up to a factor; the costly product is one a teacher layer, whatever the student's norms are
            gamma = _gamma(self.teacher, source, "q")
            turned = self.turn @ (gamma[:, None] * _gram(self.teacher, source) * gamma) @ self.turn.T
            carried = [turned / one[:, None] / one for one in norms]
            rows.append(torch.stack([(a * b).sum() / (a.norm() * b.norm()) for a, b in zip(own, carried, strict=True)]))
        return torch.stack(rows)


def _entry(loaded: Loaded) -> torch.Tensor:
    """What the stream begins with at each token, (V, d)."""
    embedded = loaded.weight("embed", 0).double()
    return embedded * embedded.shape[1] ** 0.5 if loaded.architecture.family.scaled_embeddings else embedded


def _gram(loaded: Loaded, layer: int) -> torch.Tensor:
    """Σ Wᵀ·W over q, k and v, (d, d)."""
    import torch

    weight = torch.cat([loaded.weight(module, layer).double() for module in ("q", "k", "v")])
    return weight.T @ weight


def _gamma(loaded: Loaded, layer: int, module: str) -> torch.Tensor:
    """γ (d,) of the norm before a sublayer; never quite 0, since it is divided by."""
    weight = loaded.model.get_submodule(f"model.layers.{layer}.{NORMS[module]}").weight.double()
    gamma = loaded.architecture.family.norm_offset + weight
    return gamma.sign().where(gamma != 0, gamma.new_ones(())) * gamma.abs().clamp_min(1e-6)


def learnt_size(teacher: Architecture, student: Architecture) -> int:
    """Parameters of the network that trained maps come from."""
    rank = min(LEARNT_RANK, teacher.hidden, student.hidden)
    network = LEARNT_WIDTH * (3 * student.layers + LEARNT_WIDTH + rank)
    return network + 2 * rank * (teacher.hidden + student.hidden)


def known_points(align: Align) -> list[Points]:
    """Places of known text that both models read alike, at most `settings.rows` of them (whole examples).

    Raises InputError where there is no such text.
    """
    from paraknow.similarity import points

    if not align.known:
        raise InputError("transport needs text that both models know: give the task an align split.")
    pair = align.teacher, align.student
    contexts = [min(align.tune.max_length, m.architecture.context) for m in pair]
    found = points.aligned(
        align.known, pair[0].tokenizer, pair[1].tokenizer, (contexts[0], contexts[1]), 4096, whole=True, seed=align.seed
    )
    rows = accumulate(len(point.offsets) for point in found)
    return [point for point, total in zip(found, rows, strict=True) if total <= align.settings.rows] or found[:1]


def read_streams(loaded: Loaded, points: list[Points], side: str) -> dict[Place, torch.Tensor]:
    """What attention ("q"), FFN ("gate") and its second half ("down") of every layer read, and what layers put out
    ("residual"), at the points: (rows, ·) each."""
    from paraknow.similarity import activations

    texts, at = [getattr(p, f"{side}_ids") for p in points], [getattr(p, f"{side}_at") for p in points]
    found = activations.rows_of(loaded, texts, at, (*READS, "down"), inputs=True)
    return found | activations.rows_of(loaded, texts, at, ("residual",))


def rebuilt_so_far(student: Loaded, made: Start) -> Any:
    """The student with the layers that are carried already; a copy."""
    import copy

    import torch

    model = copy.deepcopy(student.model)
    for (layer, module), new in made.matrices.items():
        linear = model.get_submodule(student.architecture.path(module, layer))
        linear.weight = torch.nn.Parameter(new.to(linear.weight), requires_grad=False)
        if module == "k":
            attention = model.get_submodule(f"model.layers.{layer}.self_attn")
            attention.num_key_value_groups = made.matrices[(layer, "q")].shape[0] // new.shape[0]
    for (layer, module), (b, a) in made.factors.items():
        linear = model.get_submodule(student.architecture.path(module, layer))
        linear.weight += (b @ a).to(linear.weight)
    return model
