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

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from paraknow.data import Encoded
from paraknow.errors import InputError, RunError
from paraknow.locate.agreement import rank_correlations
from paraknow.models import Loaded
from paraknow.progress import Beating, Progress, part, silent

Key = tuple[int, str]  # (layer, kind)
SUBLAYERS = ("attention", "ffn")
BUDGET = 2**24
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
    content tokens, `skipped` the seeds that have none.
    """

    scores: dict[Key, torch.Tensor]
    first_order: dict[Key, torch.Tensor]
    layer_scores: torch.Tensor
    summed: torch.Tensor
    activation: dict[Key, torch.Tensor]
    words: list[str]
    skipped: list[int]
    rank_correlation: dict[Key, float]


@dataclass
class States:
    """What the seeds leave at the position before their word, float32: (seeds, L, ·); c and words are (seeds,)."""

    x: torch.Tensor
    attention: torch.Tensor
    ffn: torch.Tensor
    u: torch.Tensor
    m: torch.Tensor
    c: torch.Tensor
    words: torch.Tensor
    skipped: list[int]


def content_position(ids: Sequence[int], answer_start: int, tokenizer: Any) -> int | None:
    """Index in `ids` of the answer's last token that holds a letter or digit, or None.

    Special tokens (the end token among them) never count.
    """
    special = set(tokenizer.all_special_ids)
    for position in range(len(ids) - 1, answer_start - 1, -1):
        if ids[position] not in special and any(c.isalnum() for c in tokenizer.decode([ids[position]])):
            return position
    return None


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
    """
    if how not in ("exact", "first_order"):
        raise ValueError(f"unknown way to attribute: {how!r}")
    budget = budget or (CPU_BUDGET if loaded.device.type == "cpu" else BUDGET)
    read, words, whole = _readout(loaded), states.words, []
    texts = [loaded.tokenizer.decode([word]) for word in words.tolist()]
    found = Attribution({}, {}, torch.empty(0), torch.empty(0), {}, texts, states.skipped, {})
    report = Beating(progress)
    for layer in range(loaded.architecture.layers):
        x, attention = states.x[:, layer], states.attention[:, layer]
        sublayers = {
            "attention": (x, attention, states.u[:, layer], "o"),
            "ffn": (x + attention, states.ffn[:, layer], states.m[:, layer], "down"),
        }
        row = []
        for kind, (residual, output, activations, module) in sublayers.items():
            key, matrix = (layer, kind), loaded.weight(module, layer)
            base, weights = (residual * states.c[:, None]) @ read.T, activations * states.c[:, None]
            first = weights * (_slope(base.softmax(-1), words, read) @ matrix.float())
            scores = first if how == "first_order" else _exact(base, words, weights, matrix, read, budget, report)
            found.scores[key], found.first_order[key] = scores.sum(0), first.sum(0)
            found.activation[key] = weights.mean(0)
            # A sublayer is one more neuron, whose column is its whole output.
            gain = _sublayer(base, words, output * states.c[:, None], read)
            row.append(torch.stack([gain, scores.sum(1)], -1))
            if how == "exact":
                both = (found.scores[key].cpu().numpy(), found.first_order[key].cpu().numpy())
                found.rank_correlation[key] = float(rank_correlations(*both)[0])
        for kept in (found.scores, found.first_order):
            kept[(layer, "value")] = _value_rows(kept[(layer, "attention")], loaded)
        whole.append(torch.stack(row, 1))
        report(layer + 1, loaded.architecture.layers)
    stacked = torch.stack(whole, 1).cpu()  # (seeds, L, 2 sublayers, own | summed)
    found.layer_scores, found.summed = stacked[..., 0], stacked[..., 1]
    return found


def _slope(p: torch.Tensor, words: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
    """∂ log p_w / ∂(c·v) = (e_w − p)ᵀ · W_U · diag(γ), (seeds, d).

    Written as Σ_{v≠w} p_v (W_w − W_v): with p_w near 1 the difference of two large vectors would be all rounding.
    """
    others = p.scatter(1, words[:, None], 0.0)
    return others.sum(1, keepdim=True) * read[words] - others @ read


def _gain(p: torch.Tensor, word: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
    """log p_w(base + added) − log p_w(base) for rows of `added` logits (n, V), p = softmax(base).

    It is −log Σ_v p_v exp(δ_v), δ = added − added_w, taken by expm1 so that a change of 1e-9 nats is not lost
    beside a log-probability of 1. A large gain is not sure to be right this way: see `_settle`.
    """
    shift = added.index_select(1, word[None])
    return -torch.log1p((added - shift).expm1_() @ p)


def _settle(
    gain: torch.Tensor, base: torch.Tensor, words: torch.Tensor, logits: Logits, budget: int = CPU_BUDGET
) -> None:
    """Take again, by logsumexp, what expm1 cannot: gains (seeds, n) above LARGE, where it cancels, or not finite.

    `logits(seeds, columns)` (k, V) are what those columns add for those seeds; at most `budget` numbers at once.
    """
    pairs = ((gain > LARGE) | ~torch.isfinite(gain)).nonzero()
    for some in pairs.split(max(1, budget // base.shape[1])):
        seeds, columns = some.unbind(1)
        after, before = (base[seeds] + logits(seeds, columns)).log_softmax(-1), base[seeds].log_softmax(-1)
        gain[seeds, columns] = (after - before).gather(1, words[seeds, None])[:, 0]


def _exact(
    base: torch.Tensor,
    words: torch.Tensor,
    weights: torch.Tensor,
    matrix: torch.Tensor,
    read: torch.Tensor,
    budget: int,
    progress: Beating,
) -> torch.Tensor:
    """log p_w(base + c·m_i·W[:, i]) − log p_w(base) for every seed and neuron (seeds, neurons).

    The logits that a column adds are computed once, chunk by chunk, and shared by all seeds.
    """
    p, scores = base.softmax(-1), torch.empty_like(weights)
    for columns in torch.arange(matrix.shape[1], device=matrix.device).split(max(1, budget // read.shape[0])):
        added = matrix[:, columns].float().T @ read.T  # (chunk, V)
        for seed, word in enumerate(words):
            scores[seed, columns] = _gain(p[seed], word, added * weights[seed, columns, None])
        progress.beat()

    def logits(seeds: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        return weights[seeds, columns, None] * (matrix[:, columns].float().T @ read.T)

    _settle(scores, base, words, logits, budget)
    return scores


def _sublayer(base: torch.Tensor, words: torch.Tensor, output: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
    """log p_w(base + lens(output)) − log p_w(base), (seeds,)."""
    added, p = output @ read.T, base.softmax(-1)
    gain = torch.stack([_gain(p[s], word, added[s : s + 1]) for s, word in enumerate(words)])  # (seeds, 1)
    _settle(gain, base, words, lambda seeds, _: added[seeds])
    return gain[:, 0]


def _value_rows(scores: torch.Tensor, loaded: Loaded) -> torch.Tensor:
    """Scores of v_proj's rows (g·e,) from those of o_proj's columns (h·e,)."""
    a = loaded.architecture
    return scores.reshape(a.kv_heads, a.heads // a.kv_heads, a.head_dim).sum(1).flatten()


def _readout(loaded: Loaded) -> torch.Tensor:
    """W_U · diag(γ) in float32 (V, d): the lens without c. A tied head is the embedding."""
    gamma = loaded.architecture.family.norm_offset + loaded.model.model.norm.weight.float()
    return loaded.model.get_output_embeddings().weight.float() * gamma


# -- reading the states ------------------------------------------------------------------------------


@contextmanager
def _reading(loaded: Loaded, taken: dict[str, list[torch.Tensor]]) -> Iterator[None]:
    """Hooks that append the last position's states of every layer to `taken`, in order of layers."""
    a, handles = loaded.architecture, []

    def keep(name: str, value: Any) -> None:  # returns nothing: a hook's result would replace the value
        value = value[0] if isinstance(value, tuple) else value
        taken[name].append(value[0, -1].float())

    def into(name: str) -> Any:
        return lambda _, inputs: keep(name, inputs[0])

    def out_of(name: str) -> Any:
        return lambda _, __, output: keep(name, output)

    try:
        for layer in range(a.layers):
            block = loaded.model.get_submodule(f"model.layers.{layer}")
            handles.append(block.register_forward_pre_hook(into("x")))
            for module, name, inner in (("o", "attention", "u"), ("down", "ffn", "m")):
                matrix = loaded.model.get_submodule(a.path(module, layer))
                handles.append(matrix.register_forward_pre_hook(into(inner)))
                handles.append(matrix.register_forward_hook(out_of(name)))
        handles.append(block.register_forward_hook(out_of("h")))
        yield
    finally:
        for handle in handles:
            handle.remove()


def collect(loaded: Loaded, items: Sequence[Encoded], progress: Progress = silent) -> States:
    """Run the model on every seed up to its last content token and keep what its layers did there.

    Raises InputError (no seed has a content token, or the head caps its logits), RunError (NaN, with the layer).
    """
    if getattr(loaded.model.config, "final_logit_softcapping", None):
        raise InputError(f"attribution: {loaded.checkpoint.spec!r} caps its logits, which the lens cannot follow.")
    positions = [content_position(item.ids, item.answer_start, loaded.tokenizer) for item in items]
    kept = [(item, p) for item, p in zip(items, positions, strict=True) if p is not None]
    if not kept:
        raise InputError(
            "attribution: no seed's answer holds a token with a letter or digit, so no word can be traced."
        )
    names = ("x", "attention", "ffn", "u", "m")
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in (*names, "h")}
    training = loaded.model.training
    try:
        loaded.model.eval()
        for number, (item, position) in enumerate(kept):
            taken: dict[str, list[torch.Tensor]] = {name: [] for name in rows}
            with torch.no_grad(), _reading(loaded, taken):
                # What follows the position is of no consequence to it, and left out.
                loaded.model.model(input_ids=torch.tensor([item.ids[:position]], device=loaded.device), use_cache=False)
            for name, values in taken.items():
                rows[name].append(torch.stack(values))
            progress(number + 1, len(kept))
    finally:
        loaded.model.train(training)
    stacked = {name: torch.stack(values) for name, values in rows.items()}
    for name, what in (("x", "input"), ("attention", "attention output"), ("ffn", "FFN output")):
        bad = (~torch.isfinite(stacked[name])).any(-1).any(0).nonzero()
        if len(bad):
            raise RunError(f"attribution: the {what} of layer {int(bad[0])} is NaN or infinite.")
    last = stacked.pop("h")[:, 0]
    c = (last.square().mean(-1) + loaded.model.config.rms_norm_eps).rsqrt()
    words = torch.tensor([item.ids[p] for item, p in kept], device=loaded.device)
    return States(**stacked, c=c, words=words, skipped=[i for i, p in enumerate(positions) if p is None])


# -- tables ------------------------------------------------------------------------------------------


def neurons_table(found: Attribution) -> pd.DataFrame:
    """One row per neuron: layer, kind, neuron, score, first_order (nats, summed over seeds)."""
    parts = [
        pd.DataFrame(
            {
                "layer": layer,
                "kind": kind,
                "neuron": range(len(values)),
                "score": values.cpu().numpy(),
                "first_order": found.first_order[(layer, kind)].cpu().numpy(),
            }
        )
        for (layer, kind), values in found.scores.items()
    ]
    return pd.concat(parts, ignore_index=True)


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
            for place, (score, index) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
                layer, neuron = divmod(index, width)
                vector = loaded.weight(module, layer)[:, neuron].float() * found.activation[(layer, kind)][neuron]
                top = (read @ vector).topk(min(tokens, len(read)))
                rows.append(
                    {
                        "layer": layer,
                        "kind": kind,
                        "neuron": neuron,
                        "place": place,
                        "score": score,
                        "tokens": [loaded.tokenizer.decode([t]) for t in top.indices.tolist()],
                        "logits": top.values.tolist(),
                    }
                )
    return pd.DataFrame(rows)
