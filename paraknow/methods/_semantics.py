"""What SemAlign learns from: texts both models read, the teacher's layers worth following, and a map between the two
hidden spaces (arXiv 2510.24208v1; METHODS 2.3; no torch at import).

Notation: L layers, d hidden size, V vocabulary; T teacher, S student. W (V, d) is lm_head. Layers count from 0 here and
from 1 in METHODS. A sublayer output is what attention or FFN adds to the residual stream: the output of o or down.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paraknow.errors import InputError, RunError
from paraknow.methods.base import Align, Place
from paraknow.progress import Progress, silent

if TYPE_CHECKING:
    import torch

    from paraknow.data import Encoded, Example
    from paraknow.models import Loaded

SUBLAYERS = ("o", "down")  # the matrices whose outputs are attention's and FFN's own
HALF_SCALE = 4096.0  # float16 gradients of a model that knows the answer would be zero without it
CHUNK = 8192  # tokens of the vocabulary at a time, so that no second float64 matrix (V, d) is made

Rows = dict[Place, "torch.Tensor"]  # (layer, sublayer) → (rows, d)
Mix = dict[int, float]  # teacher layer → weight; the weights sum to 1
Pairing = dict[int, list[Mix]]  # student layer that is trained → its targets, which count equally


# -- texts ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """One example as both models read it; `teacher_at[i]` and `student_at[i]` index ids that end at the same place.

    Positions are those that predict the answer's tokens: the prompt's last one and the answer's own but the end token.
    """

    teacher: Encoded
    student: Encoded
    teacher_at: tuple[int, ...]
    student_at: tuple[int, ...]


def read_texts(align: Align, examples: Sequence[Example]) -> list[Text]:
    """Examples that both models can read, prompts cut from the left to tune.max_length and the shorter context.

    Where the models' ids differ, positions are those at which both tokenizers end a token at the same character of the
    answer (METHODS 3.1), and the prompt's end. Raises InputError: no example keeps its answer, or a tokenizer gives no
    character offsets.
    """
    from paraknow import data

    both = (align.teacher, align.student)
    context = min(align.tune.max_length, *(m.architecture.context for m in both))
    found = []
    for example in examples:
        one, other = (data.encode(example, m.tokenizer, context) for m in both)
        if one is None or other is None:
            continue
        if one.ids == other.ids and one.answer_start == other.answer_start:
            at = tuple(range(one.answer_start - 1, len(one.ids) - 1))
            found.append(Text(one, other, at, at))
        else:
            ends = [_ends(e, m, context) for e, m in zip((one, other), both, strict=True)]
            common = sorted(ends[0].keys() & ends[1].keys())
            found.append(Text(one, other, *(tuple(e[end] for end in common) for e in ends)))
    if not found:
        raise InputError(f"method 'semalign': no example keeps its answer within the context of {context} tokens.")
    return found


def _ends(item: Encoded, loaded: Loaded, context: int) -> dict[int, int]:
    """Characters of the answer that have been read → the position where they have; 0 is the prompt's end."""
    from paraknow.similarity.points import read

    if not getattr(loaded.tokenizer, "is_fast", False):
        raise InputError(
            f"method 'semalign': the tokenizer {type(loaded.tokenizer).__name__} gives no character offsets, so the "
            "two models' positions cannot be matched; use seeking or laten."
        )
    found = read(item.example, loaded.tokenizer, context)
    assert found is not None  # it was encoded before
    return {0: item.answer_start - 1} | {end: at for at, end in enumerate(found.ends) if end > 0}


def seeds_and_probe(texts: Sequence[Text], count: int, seed: int) -> tuple[list[Text], list[Text]]:
    """`count` texts to locate on, drawn by the seed, and as many others to measure on (the same where none is left)."""
    drawn = random.Random(seed).sample(list(texts), min(2 * count, len(texts)))
    return drawn[:count], drawn[count:] or drawn[:count]


def teacher_rows(teacher: Loaded, texts: Sequence[Text], batch: int = 16) -> Rows:
    """The teacher's sublayer outputs (rows, d_T) of every layer at the texts' positions, without gradients."""
    from paraknow.similarity.activations import rows_of

    return rows_of(teacher, [t.teacher.ids for t in texts], [t.teacher_at for t in texts], SUBLAYERS, False, batch)


def student_rows(student: Loaded, texts: Sequence[Text], batch: int = 16) -> Rows:
    """The same of the student, (rows, d_S)."""
    from paraknow.similarity.activations import rows_of

    return rows_of(student, [t.student.ids for t in texts], [t.student_at for t in texts], SUBLAYERS, False, batch)


# -- the teacher's layers ------------------------------------------------------------------------------


def layer_scores(loaded: Loaded, items: Sequence[Encoded], progress: Progress = silent) -> list[float]:
    """Gradient × activation of every layer: Σ |∂ℓ/∂h ⊙ h| over seeds, positions, directions and both sublayers.

    ℓ is a seed's mean cross-entropy over answer tokens, h a sublayer's output (t, d). One backward pass per seed,
    through activations alone: no parameter gets a gradient. Raises RunError where a score is not finite.
    """
    import torch

    from paraknow.methods._translate import frozen

    model, a = loaded.model, loaded.architecture
    scores = torch.zeros(a.layers, dtype=torch.float64, device=loaded.device)
    scale = HALF_SCALE if model.dtype == torch.float16 else 1.0

    def watch(layer: int) -> Any:
        def add(gradient: torch.Tensor, output: torch.Tensor) -> None:
            scores[layer] += (gradient.float() * output.float()).abs().sum(dtype=torch.float64)

        def hook(_: Any, __: Any, output: torch.Tensor) -> None:
            kept = output.detach()
            output.register_hook(lambda gradient: add(gradient, kept))

        return hook

    handles = []
    with frozen(model), torch.enable_grad():
        try:
            # gradients begin at the embedding's output, since no parameter takes any
            embedding = model.get_input_embeddings()
            handles.append(embedding.register_forward_hook(lambda _, __, output: output.requires_grad_()))
            for layer in range(a.layers):
                for sublayer in SUBLAYERS:
                    matrix = model.get_submodule(a.path(sublayer, layer))
                    handles.append(matrix.register_forward_hook(watch(layer)))
            for number, item in enumerate(items):
                ids = torch.tensor([item.ids], device=loaded.device)
                answer = len(item.ids) - item.answer_start
                logits = model(input_ids=ids, use_cache=False, logits_to_keep=answer + 1).logits[0, :-1]
                loss = torch.nn.functional.cross_entropy(logits.float(), ids[0, item.answer_start :])
                (scale * loss).backward()
                progress(number + 1, len(items))
        finally:
            for handle in handles:
                handle.remove()
    if not bool(torch.isfinite(scores).all()):
        raise RunError("align: semalign's layer scores of the teacher are NaN or infinite.")
    return (scores / scale).tolist()


def best_layers(scores: Sequence[float], count: int | None) -> list[int]:
    """The `count` layers of largest score (all for None), in index order; of equal scores the shallower first."""
    order = sorted(range(len(scores)), key=lambda layer: (-scores[layer], layer))
    return sorted(order[:count])


def pair(attributed: Sequence[int], layers: tuple[int, int], how: str = "floor") -> Pairing:
    """Which teacher layers each student layer follows; student layers that follow none are left out.

    layers: (L_T, L_S). Counted from 1: `floor`, student k takes teacher max(1, ⌊k·L_T/L_S⌋); an attributed layer that
    no k takes goes to the first k that takes a later one. `interpolate`: student k stands at depth max(1, k·L_T/L_S)
    and follows the two teacher layers beside it, weighted by nearness; attribution then says only which student layers
    take part: those beside an attributed layer, else the first at or after it.
    """
    theirs, ours = layers
    stands: dict[int, Mix] = {}  # student layer → the teacher layers at its depth
    for k in range(1, ours + 1):
        low, rest = max(1, k * theirs // ours), k * theirs % ours
        share = rest / ours if how == "interpolate" and k * theirs >= ours else 0.0
        stands[k - 1] = {low - 1: 1.0 - share} | ({low: share} if share else {})
    found: dict[int, set[int]] = {}
    for layer in attributed:
        takers = [k for k, mix in stands.items() if layer in mix]
        for k in takers or [next(k for k, mix in stands.items() if max(mix) > layer)]:
            found.setdefault(k, set()).add(layer)
    if how == "interpolate":
        return {k: [stands[k]] for k in sorted(found)}
    return {k: [{layer: 1.0} for layer in sorted(found[k])] for k in sorted(found)}


def mixed(rows: Rows, mix: Mix, sublayer: str) -> torch.Tensor:
    """A target's teacher outputs (rows, d_T) in float32, weighted over its layers."""
    import torch

    return torch.stack([weight * rows[(layer, sublayer)].float() for layer, weight in mix.items()]).sum(0)


# -- the map M (d_S, d_T) ------------------------------------------------------------------------------


def inverse(gram: torch.Tensor, rows: int) -> torch.Tensor:
    """(XᵀX)⁺ of a Gram matrix (d, d) in float64, X having `rows` rows, by its eigenvectors.

    Eigenvalues below max(rows, d)·ε times the largest count as zero: they are rounding.
    """
    import torch

    values, vectors = torch.linalg.eigh(gram)
    least = max(rows, len(gram)) * torch.finfo(gram.dtype).eps * values[-1]
    values = torch.where(values > least, 1.0 / values, 0.0)
    return (vectors * values) @ vectors.T


def vocabulary_frame(weight: torch.Tensor) -> Iterator[torch.Tensor]:
    """Columns of pinv(W), scaled to unit length, as rows (n, d) in float64, a chunk of tokens at a time; W (V, d).

    pinv(W) = (WᵀW)⁺Wᵀ, so that only (d, d) is decomposed. A token whose column is zero stays zero.
    """
    import torch

    parts = weight.detach().split(CHUNK)
    gram = torch.zeros(weight.shape[1], weight.shape[1], dtype=torch.float64, device=weight.device)
    for some in parts:
        gram += some.double().T @ some.double()
    back = inverse(gram, len(weight))
    for some in parts:
        yield _unit(some.double() @ back)


def random_frame(size: tuple[int, int], seed: int, device: Any = "cpu") -> Iterator[torch.Tensor]:
    """Gaussian columns of unit length in the same form, size (V, d); the same by seed on every device."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for first in range(0, size[0], CHUNK):
        count = min(CHUNK, size[0] - first)
        yield _unit(torch.randn(count, size[1], generator=generator, dtype=torch.float64).to(device))


def _unit(rows: torch.Tensor) -> torch.Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-300)


def between(student: Iterator[torch.Tensor], teacher: Iterator[torch.Tensor]) -> torch.Tensor:
    """M = S_S·S_Tᵀ (d_S, d_T) from two frames of one vocabulary, float32, on the student's device."""
    import torch

    total: torch.Tensor | None = None
    for one, other in zip(student, teacher, strict=True):
        part = one.T @ other.to(one.device)
        total = part if total is None else total.add_(part)
    assert total is not None
    return total.to(torch.float32)


def fitted(teacher: Rows, student: Rows, pairing: Pairing) -> torch.Tensor:
    """M (d_S, d_T) of least squares, one for all layers: unit-length student outputs from unit-length teacher ones.

    Of several solutions (fewer rows than d_T) the smallest.
    """
    import torch

    gram = product = None
    count = 0
    for layer, mixes in pairing.items():
        for sublayer in SUBLAYERS:
            y = _unit(student[(layer, sublayer)].double())
            for mix in mixes:
                x = _unit(mixed(teacher, mix, sublayer).double().to(y.device))
                gram = x.T @ x if gram is None else gram.addmm_(x.T, x)
                product = x.T @ y if product is None else product.addmm_(x.T, y)
                count += len(x)
    assert gram is not None and product is not None
    return (inverse(gram, count) @ product).T.to(torch.float32).contiguous()


def make_map(align: Align, how: str, pairing: Pairing, seeds: Sequence[Text]) -> torch.Tensor:
    """M (d_S, d_T) in float32 on the student's device, by the rule `how` (SemAlignSettings.map)."""
    student, teacher = align.student, align.teacher
    if how == "fitted":
        batch = align.tune.micro_batch
        return fitted(teacher_rows(teacher, seeds, batch), student_rows(student, seeds, batch), pairing)
    heads = [m.model.get_output_embeddings().weight for m in (student, teacher)]
    if how == "vocabulary":
        return between(*(vocabulary_frame(head) for head in heads))
    tokens = len(heads[0])  # as the control of a fitted map, for which the vocabularies may differ
    sizes, draws = [(tokens, head.shape[1]) for head in heads], (align.seed + 5_000_003, align.seed + 6_000_003)
    return between(*(random_frame(s, n, student.device) for s, n in zip(sizes, draws, strict=True)))
