"""Neuron attribution: what one neuron adds to the log-probability of the answer's last word.

LaTen; Neural Incompatibility, arXiv 2505.14436 (METHODS 1.4). Measured at the last position before the answer's
last content token w. Notation: x_l the layer's input, r_l the residual after attention, u the input of o_proj
(h·e), m the input of down_proj (f), h the last layer's output, γ the effective scale of the final norm,
c = (mean(h²) + eps)^(−1/2), lens(v) = lm_head(γ ⊙ v · c), log p in float32.

Kinds of neurons: `ffn`, the f columns of down_proj; `attention`, the h·e columns of o_proj; `value`, the g·e rows
of v_proj. With grouped queries a row of v feeds one column of o in every query head of its group, so its score is
the sum over those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from paraknow.data import Encoded
from paraknow.locate.agreement import rank_correlations
from paraknow.locate.states import States, collect
from paraknow.models import Loaded
from paraknow.progress import Beating, Progress, part, silent

Key = tuple[int, str]  # (layer, kind)
SUBLAYERS = ("attention", "ffn")
BUDGET = 2**25  # numbers of a chunk of neurons × vocabulary: enough work for every processor of a large GPU
TILE = 128  # a GPU multiplies rows in tiles of so many; two rows above that would take as long as twice as many
CPU_BUDGET = 2**19  # what a core's own cache holds: four times as fast as 2**24 there
LARGE = 0.5  # nats
Logits = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class Attribution:
    """Scores of one model's neurons and sublayers, in nats.

    `scores` and `first_order` hold a float32 tensor per (layer, kind), summed over seeds: attention (h·e,),
    ffn (f,), value (g·e,). `scores` are exact where that was asked for, else they are the first-order ones.
    `layer_scores` (seeds, L, 2) is what attention and FFN as a whole add; `summed` (seeds, L, 2) is the sum of
    their neurons' scores. `activation` is the mean over seeds of c·m (of c·u for attention). `words` are the
    content tokens, `skipped` the seeds that have none. `each` holds the scores of every seed alone (seeds, ·).
    """

    scores: dict[Key, torch.Tensor]
    first_order: dict[Key, torch.Tensor]
    layer_scores: torch.Tensor
    summed: torch.Tensor
    activation: dict[Key, torch.Tensor]
    words: list[str]
    skipped: list[int]
    rank_correlation: dict[Key, float]
    each: dict[Key, torch.Tensor]


def attribute(
    loaded: Loaded,
    items: Sequence[Encoded],
    how: str = "exact",
    budget: int | None = None,
    progress: Progress = silent,
) -> Attribution:
    """Score every neuron of every layer on `items` (METHODS 1.4): `collect`, then `score`.

    Raises InputError (no seed has a content token, or the head caps its logits), RunError (NaN, with the layer).
    The model is left as it was found.
    """
    layers = loaded.architecture.layers
    states = collect(loaded, items, part(progress, 0, len(items) + layers))
    return score(loaded, states, how, budget, part(progress, len(items), len(items) + layers))


@torch.no_grad()
def score(
    loaded: Loaded, states: States, how: str = "exact", budget: int | None = None, progress: Progress = silent
) -> Attribution:
    """Score every neuron from what the seeds left.

    `how`: `exact` puts each neuron's own contribution through the lens, in chunks so that neurons × vocabulary
    stays under `budget` float32 numbers; `first_order` follows the derivative and needs no such matrix. With
    `exact` both are computed and their Spearman correlation is reported.

    The host looks at the device once, after the last layer, to see which gains `_settle` has to take again.
    """
    if how not in ("exact", "first_order"):
        raise ValueError(f"unknown way to attribute: {how!r}")
    budget = budget or (CPU_BUDGET if loaded.device.type == "cpu" else BUDGET)
    read, words, layers = _readout(loaded), states.words, range(loaded.architecture.layers)
    texts = [loaded.tokenizer.decode([word]) for word in words.tolist()]
    found = Attribution({}, {}, torch.empty(0), torch.empty(0), {}, texts, states.skipped, {}, {})
    own: dict[Key, torch.Tensor] = {}
    report = Beating(progress)
    for layer in layers:
        for kind in SUBLAYERS:
            key, job = (layer, kind), _sublayer(loaded, states, layer, kind)
            p = (job.residual @ read.T).softmax(-1)
            first = job.weights * (_slope(p, words, read) @ job.matrix.float())
            found.first_order[key], found.activation[key] = first.sum(0), job.weights.mean(0)
            # A sublayer is one more neuron, whose column is its whole output.
            own[key] = _output_gain(p, words, job.output @ read.T)
            exact = how == "exact"
            found.each[key] = _exact(p, words, job.weights, job.matrix, read, budget, report) if exact else first
        report(layer + 1, len(layers))
    _settle_all(loaded, states, read, own, found.each if how == "exact" else {}, budget)
    found.scores = {key: values.sum(0) for key, values in found.each.items()}
    for layer in layers:
        found.each[(layer, "value")] = _value_rows(found.each[(layer, "attention")], loaded)
        for kept in (found.scores, found.first_order):
            kept[(layer, "value")] = _value_rows(kept[(layer, "attention")], loaded)

    def over_layers(of: Callable[[Key], torch.Tensor]) -> torch.Tensor:
        """(seeds, L, 2) on the host."""
        return torch.stack([torch.stack([of((layer, k)) for k in SUBLAYERS], -1) for layer in layers], 1).cpu()

    found.layer_scores, found.summed = over_layers(own.__getitem__), over_layers(lambda key: found.each[key].sum(1))
    for kind in SUBLAYERS if how == "exact" else ():
        both = (torch.stack([s[(layer, kind)] for layer in layers]) for s in (found.scores, found.first_order))
        rho = rank_correlations(*(s.cpu().numpy() for s in both))
        found.rank_correlation |= {(layer, kind): float(rho[layer]) for layer in layers}
    return found


@dataclass
class _Sublayer:
    """One sublayer as the seeds met it, times c: the residual before it and its output (seeds, d), its neurons'
    activations (seeds, n); and its matrix (d, n) in the model's own type."""

    residual: torch.Tensor
    output: torch.Tensor
    weights: torch.Tensor
    matrix: torch.Tensor


def _sublayer(loaded: Loaded, states: States, layer: int, kind: str) -> _Sublayer:
    x, attention, c = states.x[:, layer], states.attention[:, layer], states.c[:, None]
    if kind == "attention":
        return _Sublayer(x * c, attention * c, states.u[:, layer] * c, loaded.weight("o", layer))
    return _Sublayer(
        (x + attention) * c, states.ffn[:, layer] * c, states.m[:, layer] * c, loaded.weight("down", layer)
    )


def _slope(p: torch.Tensor, words: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
    """∂ log p_w / ∂(c·v) = (e_w − p)ᵀ · W_U · diag(γ), (seeds, d).

    Written as Σ_{v≠w} p_v (W_w − W_v): with p_w near 1 the difference of two large vectors would be all rounding.
    """
    others = p.scatter(1, words[:, None], 0.0)
    return others.sum(1, keepdim=True) * read[words] - others @ read


def _gain(p: torch.Tensor, word: torch.Tensor, added: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """log p_w(base + δ) − log p_w(base) for rows of logits δ = weights · added, (n,) and (n, V), p = softmax(base).

    It is −log Σ_v p_v exp(δ_v − δ_w), taken by expm1 so that a change of 1e-9 nats is not lost beside a
    log-probability of 1. A large gain is not sure to be right this way: see `_settle`.
    """
    moved = added - added.index_select(1, word[None])
    return -torch.log1p(moved.mul_(weights[:, None]).expm1_() @ p)


def _output_gain(p: torch.Tensor, words: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
    """The same where every seed has a row of logits of its own: p and added (seeds, V), the gains (seeds,)."""
    return -torch.log1p(((added - added.gather(1, words[:, None])).expm1_() * p).sum(1))


def _exact(
    p: torch.Tensor,
    words: torch.Tensor,
    weights: torch.Tensor,
    matrix: torch.Tensor,
    read: torch.Tensor,
    budget: int,
    progress: Beating,
) -> torch.Tensor:
    """log p_w(base + c·m_i·W[:, i]) − log p_w(base) for every seed and neuron (seeds, neurons); see `_gain`.

    The logits that a column adds are computed once, chunk by chunk, and shared by all seeds.
    """
    scores, size = torch.empty_like(weights), max(1, budget // read.shape[0])
    size -= size % TILE if size > TILE else 0
    for first in range(0, matrix.shape[1], size):
        some = slice(first, first + size)
        added = matrix[:, some].float().T @ read.T  # (chunk, V)
        for seed in range(len(words)):
            scores[seed, some] = _gain(p[seed], words[seed], added, weights[seed, some])
        progress.beat()
    return scores


def _settle_all(
    loaded: Loaded,
    states: States,
    read: torch.Tensor,
    own: dict[Key, torch.Tensor],
    each: dict[Key, torch.Tensor],
    budget: int,
) -> None:
    """Take again, where it is needed, gains of sublayers `own` (seeds,) and of neurons `each` (seeds, n)."""
    unsure = [_unsure(gain).any() | (key in each and _unsure(each[key]).any()) for key, gain in own.items()]
    for (layer, kind), needed in zip(own, torch.stack(unsure).tolist(), strict=True):
        if not needed:
            continue
        job = _sublayer(loaded, states, layer, kind)
        base = job.residual @ read.T

        def of_neurons(seeds: torch.Tensor, columns: torch.Tensor, job: _Sublayer = job) -> torch.Tensor:
            return job.weights[seeds, columns, None] * (job.matrix[:, columns].float().T @ read.T)

        def of_outputs(seeds: torch.Tensor, _: torch.Tensor, job: _Sublayer = job) -> torch.Tensor:
            return job.output[seeds] @ read.T

        _settle(own[(layer, kind)][:, None], base, states.words, of_outputs, budget)
        if each:
            _settle(each[(layer, kind)], base, states.words, of_neurons, budget)


def _unsure(gain: torch.Tensor) -> torch.Tensor:
    """Gains that expm1 cannot give: those above LARGE, where it cancels, and what is not finite."""
    return (gain > LARGE) | ~torch.isfinite(gain)


def _settle(gain: torch.Tensor, base: torch.Tensor, words: torch.Tensor, logits: Logits, budget: int) -> None:
    """Take the unsure ones of gains (seeds, n) again, by logsumexp, where they lie.

    `logits(seeds, columns)` (k, V) are what those columns add for those seeds; at most `budget` numbers at once.
    """
    for some in _unsure(gain).nonzero().split(max(1, budget // base.shape[1])):
        seeds, columns = some.unbind(1)
        after, before = (base[seeds] + logits(seeds, columns)).log_softmax(-1), base[seeds].log_softmax(-1)
        gain[seeds, columns] = (after - before).gather(1, words[seeds, None])[:, 0]


def _value_rows(scores: torch.Tensor, loaded: Loaded) -> torch.Tensor:
    """Scores of v_proj's rows (…, g·e) from those of o_proj's columns (…, h·e)."""
    a = loaded.architecture
    return scores.unflatten(-1, (a.kv_heads, a.heads // a.kv_heads, a.head_dim)).sum(-2).flatten(-2)


def _readout(loaded: Loaded) -> torch.Tensor:
    """W_U · diag(γ) in float32 (V, d): the lens without c. A tied head is the embedding."""
    gamma = loaded.architecture.family.norm_offset + loaded.model.model.norm.weight.float()
    return loaded.model.get_output_embeddings().weight.float() * gamma


# -- tables ------------------------------------------------------------------------------------------


def neurons_table(found: Attribution) -> pd.DataFrame:
    """One row per neuron: layer, kind, neuron, score, first_order (nats, summed over seeds)."""
    keys, counts = list(found.scores), [len(values) for values in found.scores.values()]
    columns = [torch.cat([s[key] for key in keys]).cpu().numpy() for s in (found.scores, found.first_order)]
    return pd.DataFrame(
        {
            "layer": np.repeat([layer for layer, _ in keys], counts),
            "kind": np.repeat(np.array([kind for _, kind in keys], dtype=object), counts),
            "neuron": np.concatenate([np.arange(n) for n in counts]),
            "score": columns[0],
            "first_order": columns[1],
        }
    )


def layers_table(found: Attribution) -> pd.DataFrame:
    """Per seed (−1: their sum), layer and sublayer: its own score and the sum over its neurons."""
    own = torch.cat([found.layer_scores.sum(0, keepdim=True), found.layer_scores])
    summed = torch.cat([found.summed.sum(0, keepdim=True), found.summed])
    rows = [
        {"seed": seed - 1, "layer": layer, "kind": kind, "score": score, "summed": total}
        for seed, (by_layer, totals) in enumerate(zip(own.tolist(), summed.tolist(), strict=True))
        for layer, (both, sums) in enumerate(zip(by_layer, totals, strict=True))
        for kind, score, total in zip(SUBLAYERS, both, sums, strict=True)
    ]
    return pd.DataFrame(rows)


def promoted(loaded: Loaded, found: Attribution, neurons: int = 20, tokens: int = 8) -> pd.DataFrame:
    """The tokens that the best `neurons` of each kind promote: the lens of their value vectors.

    `logits` is what the neuron adds to each token's logit at its mean activation over the seeds, so a neuron
    that is active with a negative sign promotes what its vector points away from.
    """
    rows = []
    with torch.no_grad():
        read = _readout(loaded)
        for kind, module in (("ffn", "down"), ("attention", "o")):
            every = torch.cat([found.scores[(layer, kind)] for layer in range(loaded.architecture.layers)])
            width = len(found.scores[(0, kind)])
            best = every.topk(min(neurons, len(every)))
            scores, indices = best.values.tolist(), best.indices.tolist()
            places = [divmod(index, width) for index in indices]
            vectors = [
                loaded.weight(module, layer)[:, neuron].float() * found.activation[(layer, kind)][neuron]
                for layer, neuron in places
            ]
            top = (torch.stack(vectors) @ read.T).topk(min(tokens, len(read)))
            words, logits = top.indices.tolist(), top.values.tolist()
            rows += [
                {
                    "layer": layer,
                    "kind": kind,
                    "neuron": neuron,
                    "place": place,
                    "score": scores[place],
                    "tokens": [loaded.tokenizer.decode([t]) for t in words[place]],
                    "logits": logits[place],
                }
                for place, (layer, neuron) in enumerate(places)
            ]
    return pd.DataFrame(rows)
