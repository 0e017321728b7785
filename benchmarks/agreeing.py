"""Does a device give what the CPU gives? Small models with grouped queries, tied and untied, the same weights on both.

The weights are rounded to bfloat16 once, so that float32 on the CPU, float32 on the device and bfloat16 on the device
have the very same ones. Tolerances of bfloat16 are about three times what it costs on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import torch

from benchmarks.models import llama
from benchmarks.shapes import Work, named, task
from benchmarks.sized import MODULES, align_of
from paraknow import data
from paraknow.locate.blocks import Block, Factors, choose_block, factor
from paraknow.locate.layers import choose_layers
from paraknow.locate.neurons import Attribution, attribute
from paraknow.locate.sensitivity import Sensitivity, sensitivity
from paraknow.methods import _translate, laten
from paraknow.models import Loaded
from paraknow.progress import silent
from paraknow.similarity.activations import batches
from paraknow.similarity.cka import Stream
from paraknow.similarity.points import Points

TEACHER = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 3, "vocab_size": 1024}
STUDENT = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "vocab_size": 1024}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
WORK = Work(seeds=2, length=24, texts=48, positions=2, examples=4)
CPU = torch.device("cpu")
WIDEN = 4.0  # on transformers' own spread of 0.02 every output is nearly the same

Pair = tuple[Loaded, Loaded]
# what: tolerance in float32, in bfloat16 (None: it has no such form)
TOLERANCES: dict[str, tuple[float, float | None]] = {
    "sensitivity maps": (1e-3, 0.06),
    "chosen layers": (1e-3, 0.02),
    "chosen blocks": (1e-3, 0.02),
    "factors, exact: residual": (1e-5, None),
    "factors, exact: subspace": (1e-3, None),
    "factors, randomised: residual": (1e-4, None),
    "factors, randomised: subspace": (1e-3, None),
    "attribution, exact": (1e-3, 0.1),
    "attribution, first order": (1e-3, 0.1),
    "CKA": (1e-3, 0.01),
    "LaTen step: loss": (1e-4, 0.005),
    "LaTen step: gradient": (1e-3, 0.05),
}


def pair(tied: bool, device: torch.device, dtype: torch.dtype) -> Pair:
    """Teacher and student with weights that bfloat16 holds exactly, drawn on the CPU."""
    made = []
    for number, sizes in enumerate((TEACHER, STUDENT)):
        loaded = llama(CPU, torch.float32, number, **sizes, **HEADS, tie_word_embeddings=tied)
        with torch.no_grad():
            for parameter in loaded.model.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(WIDEN)
                parameter.data = parameter.bfloat16().to(dtype)  # not the buffers: rotations stay float32
        made.append(named(replace(loaded, model=loaded.model.to(device)), ("teacher", "student")[number]))
    return made[0], made[1]


def check(device: torch.device) -> list[dict[str, Any]]:
    """Everything in float32 on the CPU against the device in float32 and in bfloat16: rows of differences."""
    rows = []
    for tied in (False, True):
        reference = _Found(pair(tied, CPU, torch.float32))
        for place, dtype in enumerate((torch.float32, torch.bfloat16)):
            found = _Found(pair(tied, device, dtype), reference)
            for what, tolerance in ((w, t[place]) for w, t in TOLERANCES.items()):
                if tolerance is not None:
                    value = DIFFERENCES[what](reference, found)
                    rows.append(
                        {
                            "what": what,
                            "embeddings": "tied" if tied else "untied",
                            "type": str(dtype).removeprefix("torch."),
                            "difference": value,
                            "tolerance": tolerance,
                            "held": value <= tolerance,  # NaN is not
                        }
                    )
    return rows


class _Found:
    """What one pair on one device gives; a LaTen step takes the neurons of `reference`."""

    def __init__(self, pair: Pair, reference: _Found | None = None):
        self.pair, (teacher, student) = pair, pair
        self.device = teacher.device
        texts = task(teacher.architecture.vocabulary, WORK)
        self.items = data.encode_all(texts.train, teacher.tokenizer, WORK.length, "seeds").items
        self.sensitivity: Sensitivity = sensitivity(teacher, self.items)
        self.scores = self.sensitivity.layer_scores(teacher.architecture.layers)
        self.attribution: Attribution = attribute(teacher, self.items)
        self.cka = cka(pair)
        align = align_of(pair, WORK, silent)
        examples, pairs, modules = laten._examples(align), align.pairs, list(laten.PAPER_MODULES)
        with _translate.frozen(teacher.model), _translate.frozen(student.model):
            if reference:
                both = reference.matched
            else:
                scores = [laten.neuron_scores(m, examples.student, "exact", (), silent) for m in pair]
                moved = laten.counts(student.architecture, align.settings.rate)
                both = _translate.match(*({k: s.sum(0) for k, s in side.items()} for side in scores), pairs, moved)
            self.matched = _translate.Matched(*(_at(side, self.device) for side in (both.teacher, both.student)))
            vectors = _translate.extract(teacher, modules, pairs, self.matched.teacher)
            dims = (teacher.architecture.hidden, student.architecture.hidden)
            network = _translate.Hypernetwork(modules, dims, 0.02, 0, self.device)
            loss, _ = _translate.gradients(
                student, network, vectors, self.matched.student, examples.batch(1, WORK.examples - 1), 1.0, 2
            )
        self.loss = float(loss)
        self.gradient = torch.cat([_grad(p).flatten() for p in network.parameters()]).cpu()

    def block(self, module: str, layer: int) -> Block:
        """The window of the student's shape in a teacher's map."""
        teacher, student = (loaded.architecture for loaded in self.pair)
        scores = self.sensitivity.maps[(layer, module)]
        shapes = teacher.shape(module), student.shape(module)
        return choose_block(module, (layer, 0), scores, *shapes, "window", torch.Generator())


def _at(side: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: values.to(device) for name, values in side.items()}


def _grad(parameter: torch.Tensor) -> torch.Tensor:
    if parameter.grad is None:
        raise RuntimeError("a hypernetwork was left without a gradient")
    return parameter.grad


@torch.no_grad()
def cka(pair: Pair) -> torch.Tensor:
    """CKA of all layer pairs, (modules, L_T, L_S)."""
    layers, at = [loaded.architecture.layers for loaded in pair], tuple(range(WORK.positions))
    draw = torch.Generator().manual_seed(5)
    ids = torch.randint(1, TEACHER["vocab_size"], (WORK.texts, WORK.positions + 6), generator=draw).tolist()
    points = [Points(i, tuple(row), tuple(row), at, at, tuple(k + 1 for k in at)) for i, row in enumerate(ids)]
    streams = {m: Stream(layers[0], layers[1], 0, 0) for m in MODULES}
    for batch in batches(*pair, points, WORK.texts, MODULES):
        for module, stream in streams.items():
            sides = (
                [side[(k, module)] for k in range(n)]
                for side, n in zip((batch.teacher, batch.student), layers, strict=True)
            )
            stream.add(*sides, batch.owners, batch.offsets)
    return torch.stack([torch.from_numpy(stream.result().cka) for stream in streams.values()])


# -- differences -----------------------------------------------------------------------------------------


def _maps(reference: _Found, found: _Found) -> float:
    """The worst matrix's Σ|S − S'| / ΣS."""
    pairs = [(r, found.sensitivity.maps[p].cpu()) for p, r in reference.sensitivity.maps.items()]
    return max(float((one - other).abs().sum() / one.sum()) for one, other in pairs)


def _layers(reference: _Found, found: _Found) -> float:
    """How much less sensitive, by the CPU's scores, the layers are that the device chooses."""
    count = found.pair[1].architecture.layers
    sums = [sum(reference.scores[k] for k in choose_layers(f.scores, count, "sensitivity")) for f in (reference, found)]
    return 1 - sums[1] / sums[0]


def _blocks(reference: _Found, found: _Found) -> float:
    """How much less sensitive, by the CPU's map, the worst block is that the device chooses."""
    losses = []
    for layer in range(TEACHER["num_hidden_layers"]):
        for module in ("q", "k", "o", "up", "down"):
            scores = reference.sensitivity.maps[(layer, module)]
            best, other = (float(f.block(module, layer).cut(scores).sum()) for f in (reference, found))
            losses.append(1 - other / best)
    return max(losses)


def _neurons(what: str, reference: _Found, found: _Found) -> float:
    """The largest difference of a score over the largest score, the worst of all layers and kinds."""
    ours, theirs = (getattr(f.attribution, what) for f in (reference, found))
    return max(float((ours[k] - theirs[k].cpu()).abs().max() / ours[k].abs().max()) for k in ours)


def planted(shape: tuple[int, int]) -> torch.Tensor:
    """A matrix whose singular values fall by a fifth each, so that its first directions are told apart."""
    draw = torch.Generator().manual_seed(11)
    u, v = (torch.linalg.qr(torch.randn(side, 24, generator=draw))[0] for side in shape)
    return (u * 0.8 ** torch.arange(24)) @ v.T + 1e-4 * torch.randn(shape, generator=draw)


@lru_cache
def _factored(shape: tuple[int, int], device: torch.device, rank: int = 8) -> Factors:
    return factor(planted(shape).to(device), rank)


def _factors(shape: tuple[int, int], subspace: bool, _: _Found, found: _Found) -> float:
    """Of the residual, or of the row space: the sine of the largest angle between the two."""
    one, other = _factored(shape, CPU), _factored(shape, found.device)
    if not subspace:
        return abs(one.residual - other.residual)
    a, b = (x.a.double().cpu() for x in (one, other))
    return float(torch.linalg.matrix_norm(b - b @ a.T @ a, 2))


def _cka(reference: _Found, found: _Found) -> float:
    return float((reference.cka - found.cka).abs().max())


def _loss(reference: _Found, found: _Found) -> float:
    return abs(reference.loss - found.loss) / reference.loss


def _gradients(reference: _Found, found: _Found) -> float:
    return float((reference.gradient - found.gradient).norm() / reference.gradient.norm())


SMALL_SIDES, LARGE_SIDES = (96, 160), (1040, 1056)  # either side of blocks.EXACT_SIDE
DIFFERENCES: dict[str, Callable[[_Found, _Found], float]] = {
    "sensitivity maps": _maps,
    "chosen layers": _layers,
    "chosen blocks": _blocks,
    "factors, exact: residual": partial(_factors, SMALL_SIDES, False),
    "factors, exact: subspace": partial(_factors, SMALL_SIDES, True),
    "factors, randomised: residual": partial(_factors, LARGE_SIDES, False),
    "factors, randomised: subspace": partial(_factors, LARGE_SIDES, True),
    "attribution, exact": partial(_neurons, "scores"),
    "attribution, first order": partial(_neurons, "first_order"),
    "CKA": _cka,
    "LaTen step: loss": _loss,
    "LaTen step: gradient": _gradients,
}


def failed(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The checks that did not hold, by name."""
    return [f"{r['what']} ({r['embeddings']}, {r['type']})" for r in rows if not r["held"]]
