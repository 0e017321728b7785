"""What SemAlign reads and compares: layers by attribution, their pairing, and maps into the student's space
(METHODS 2.3; arXiv 2510.24208v1).

Notation: h a sublayer's output (attention or FFN) before it is added to the stream, (rows, d). W the lm_head (V, d);
S (d, V) the columns of pinv(W), each scaled to unit length; M (d_S, d_T) maps a teacher's h, scaled to unit length,
into the student's space: h* = M·h/‖h‖. Student layers k and teacher layers count from 1 in the pairing rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import floor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from paraknow.data import Encoded
    from paraknow.models import Loaded

SUBLAYERS = ("o", "down")  # the last matrices of attention and FFN: their outputs are the sublayers' outputs
Outputs = dict[tuple[int, str], "torch.Tensor"]
Batch = tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]


@contextmanager
def sublayer_outputs(loaded: Loaded, layers: Sequence[int], kept: Outputs) -> Iterator[None]:
    """Hooks that put the outputs of both sublayers of some layers into `kept`, gradients and all."""
    handles = []

    def keeper(key: tuple[int, str]) -> Any:
        def keep(_: Any, __: Any, output: torch.Tensor) -> None:
            kept[key] = output

        return keep

    try:
        for layer in layers:
            for module in SUBLAYERS:
                found = loaded.model.get_submodule(loaded.architecture.path(module, layer))
                handles.append(found.register_forward_hook(keeper((layer, module))))
        yield
    finally:
        for handle in handles:
            handle.remove()


def batch_of(items: Sequence[Encoded], pad: int, device: torch.device) -> Batch:
    """ids, mask (rows, T), and the positions (rows, T) whose next token is part of an answer."""
    import torch

    from paraknow.data import padded

    ids, mask, labels = (torch.tensor(x, device=device) for x in padded(items, pad))
    ahead = torch.zeros_like(labels, dtype=torch.bool)
    ahead[:, :-1] = labels[:, 1:] != -100
    return ids, mask, ahead


def layer_scores(loaded: Loaded, items: Sequence[Encoded]) -> torch.Tensor:
    """Σ |∂ℓ/∂h ⊙ h| over answer positions, both sublayers and seeds, one backward pass a seed: (L,).

    ℓ is the mean cross-entropy over answer tokens. No parameter requires a gradient: it flows from the embeddings.
    """
    import torch

    layers = range(loaded.architecture.layers)
    kept: Outputs = {}
    scores = torch.zeros(len(layers), dtype=torch.float64, device=loaded.device)
    entry = loaded.model.get_input_embeddings().register_forward_hook(lambda _, __, out: out.requires_grad_())
    try:
        with torch.enable_grad(), sublayer_outputs(loaded, layers, kept):
            for item in items:
                ids, mask, ahead = batch_of([item], 0, loaded.device)
                logits = loaded.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
                wanted = ids[0, 1:][ahead[0, :-1]]
                loss = torch.nn.functional.cross_entropy(logits[0][ahead[0]].float(), wanted)
                places = [(layer, module) for layer in layers for module in SUBLAYERS]
                slopes = torch.autograd.grad(loss, [kept[p] for p in places])
                both = zip(places, slopes, strict=True)
                parts = [(g.float() * kept[p].detach().float())[ahead].abs().sum() for p, g in both]
                scores += torch.stack(parts).reshape(len(layers), len(SUBLAYERS)).sum(1).double()
                kept.clear()
    finally:
        entry.remove()
    return scores


def pairing(teacher: int, student: int, attributed: Sequence[int]) -> dict[int, list[int]]:
    """Teacher layers of each student layer that learns, all counted from 0 (METHODS 2.3).

    Student layer k (from 1) takes teacher layer max(1, ⌊k·L_T/L_S⌋). An attributed layer that none takes goes to the
    first k whose own lies at or after it. A student layer learns from the attributed layers it got.
    """
    takes = {k: max(1, floor(k * teacher / student)) for k in range(1, student + 1)}
    made: dict[int, list[int]] = {}
    for layer in sorted(x + 1 for x in attributed):
        k = next(k for k, own in takes.items() if own >= layer)  # the last student layer takes the last of the teacher
        made.setdefault(k - 1, []).append(layer - 1)
    return made


def fractional(teacher: int, student: int, layer: int) -> list[tuple[int, float]]:
    """The teacher layers at a student layer's depth k·L_T/L_S, with weights that sum to 1 (both from 0)."""
    depth = max(1.0, (layer + 1) * teacher / student)
    low = floor(depth)
    share = depth - low
    return [(low - 1, 1 - share), *([(low, share)] if share > 0 else [])]


def unit_inverse(weight: torch.Tensor) -> torch.Tensor:
    """S (d, V): columns of pinv(W) for W (V, d), at unit length; by the Gram matrix, in float64."""
    import torch

    w = weight.double()
    values, vectors = torch.linalg.eigh(w.T @ w)
    good = values > values.max() * len(values) * torch.finfo(torch.float64).eps
    inverse = (vectors[:, good] / values[good]) @ (vectors[:, good].T @ w.T)
    return inverse / inverse.norm(dim=0).clamp_min(1e-300)


def random_frame(d: int, vocabulary: int, seed: int) -> torch.Tensor:
    """(d, V) columns of unit length that point anywhere."""
    import torch

    columns = torch.randn(d, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return columns / columns.norm(dim=0)


def fitted(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """M (d_S, d_T) of least squares from the teacher's rows to the student's, both at unit length (n, ·)."""
    import torch

    one, other = (x.double() / x.double().norm(dim=1, keepdim=True).clamp_min(1e-300) for x in (teacher, student))
    gram = one.T @ one
    strength = 1e-4 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram + strength, one.T @ other).T
