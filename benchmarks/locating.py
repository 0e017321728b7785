"""Sensitivity, block choice and neuron attribution against the literal way of doing the same.

What each function's docstring says first stands above its ratios in docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.measure import Ratio, peak_bytes, require_same, slow_down, speed_up
from benchmarks.models import SMALL, llama, seeds
from paraknow.data import Encoded
from paraknow.locate.blocks import best_window
from paraknow.locate.neurons import attribute, collect, score
from paraknow.locate.sensitivity import sensitivity
from paraknow.models import Loaded, gradients_on


def _backward(loaded: Loaded, item: Encoded) -> None:
    """One seed forward and back, by the model's own loss; gradients stay at the parameters."""
    ids = torch.tensor([item.ids], device=loaded.device)
    labels = ids.clone()
    labels[:, : item.answer_start] = -100
    loaded.model(input_ids=ids, labels=labels, use_cache=False).loss.backward()


def bare_passes(loaded: Loaded, items: Sequence[Encoded]) -> None:
    """Forward and backward on the same seeds. Gradients stay where backward adds them up, as in any such loop."""
    with gradients_on(loaded.model):
        for item in items:
            _backward(loaded, item)


def sensitivity_cost(
    device: torch.device, sizes: dict | None = None, dtype: torch.dtype = torch.float32, count: int = 2
) -> list[Ratio]:
    """Sensitivity of every parameter, against forward and backward passes on the same seeds of 512 tokens that leave
    the gradients where they add up and compute nothing from them. Peak memory is of tensors beyond the weights: ours
    against what the bare passes held, with one float32 accumulator and the largest gradient in place of all gradients.
    """
    loaded = llama(device, dtype, **(sizes or SMALL))
    items = seeds(count, 512, loaded.architecture.vocabulary)

    def ours() -> None:
        sensitivity(loaded, items)

    def theirs() -> None:
        bare_passes(loaded, items)

    time = slow_down("sensitivity, time", "bare forward and backward passes", ours, theirs, 1.2)
    sizes_of = [p.numel() for p in loaded.model.parameters()]
    width = loaded.model.dtype.itemsize
    bare, own = peak_bytes(theirs, device), peak_bytes(ours, device)
    allowed = bare - sum(sizes_of) * width + 4 * sum(sizes_of) + max(sizes_of) * width
    what = "sensitivity, peak memory"
    rival = "bare peak − all gradients + accumulator + largest gradient"
    return [time, Ratio(what, rival, own / allowed, 1.05, False, [own / allowed])]


def literal_sensitivity(loaded: Loaded, items: Sequence[Encoded]) -> dict[str, torch.Tensor]:
    """S by parameter: every seed's gradients are kept, each in a dictionary, and made into scores afterwards."""
    kept = []
    with gradients_on(loaded.model):
        for item in items:
            _backward(loaded, item)
            kept.append({name: p.grad for name, p in loaded.model.named_parameters()})
            loaded.model.zero_grad(set_to_none=True)
    named = loaded.model.named_parameters()
    return {name: sum((p.detach() * seed[name]).abs() for seed in kept) for name, p in named}


def literal_sensitivity_cost(device: torch.device) -> list[Ratio]:
    """Sensitivity as it is described: one backward pass per seed, all gradients of all seeds kept in dictionaries, then
    |w · gradient| summed over seeds. Eight seeds of 128 tokens. Ours keeps one float32 sum and drops every gradient as
    soon as it is there. The maps agree to 1e-4 of each matrix's largest entry.
    """
    loaded = llama(device, **SMALL)
    items, place = seeds(8, 128, loaded.architecture.vocabulary), loaded.architecture.place

    def ours() -> None:
        sensitivity(loaded, items)

    def theirs() -> None:
        literal_sensitivity(loaded, items)

    literal, own = literal_sensitivity(loaded, items), sensitivity(loaded, items).maps
    gap = max(float((own[place(name)] - s).abs().max() / s.max()) for name, s in literal.items())
    require_same("sensitivity and its literal version", gap, 1e-4)
    del literal, own
    memory = peak_bytes(ours, device) / peak_bytes(theirs, device)
    rival = "all gradients in dictionaries"
    return [
        slow_down("sensitivity, time", rival, ours, theirs, 1.1, 4),
        Ratio("sensitivity, peak memory", rival, memory, 0.25, False, [memory]),
    ]


def literal_window(scores: torch.Tensor, n: int, m: int) -> tuple[int, int]:
    """Every offset's sum in turn."""
    best, place = -1.0, (0, 0)
    for row in range(scores.shape[0] - n + 1):
        for col in range(scores.shape[1] - m + 1):
            total = scores[row : row + n, col : col + m].sum().item()
            if total > best:
                best, place = total, (row, col)
    return place


def block_choice(device: torch.device) -> list[Ratio]:
    """The window of 320² with the largest sum in a map of 640²: a summed-area table against a loop that sums every
    window in turn. Both choose the same window. The gap grows with the number of offsets.
    """
    draw = torch.Generator().manual_seed(0)
    scores = torch.rand(640, 640, generator=draw).to(device)
    scores[100:420, 150:470] += 0.01  # so that no two windows tie in float32
    found: list[tuple[int, int]] = []
    result = speed_up(
        "block choice, 320² of 640²",
        "a loop over all offsets",
        lambda: found.append(best_window(scores, 320, 320)),
        lambda: found.append(literal_window(scores, 320, 320)),
        100,
        rounds=4,
    )
    require_same("block choice (windows beside the first)", len(set(found)) - 1, 0)
    return [result]


@torch.no_grad()
def literal_neurons(loaded: Loaded, item: Encoded, layer: int, count: int) -> torch.Tensor:
    """log p of the word with one FFN neuron added, neuron by neuron, for the first `count` of a layer."""
    states: dict[str, torch.Tensor] = {}
    model, position = loaded.model, len(item.ids) - 2
    block = model.model.layers[layer]
    handles = [
        block.mlp.register_forward_pre_hook(lambda _, given: states.update(normed=given[0])),
        block.post_attention_layernorm.register_forward_pre_hook(lambda _, given: states.update(r=given[0])),
        block.mlp.down_proj.register_forward_pre_hook(lambda _, given: states.update(m=given[0])),
        model.model.layers[-1].register_forward_hook(
            lambda _, __, out: states.update(h=out[0] if isinstance(out, tuple) else out)
        ),
    ]
    try:
        model(input_ids=torch.tensor([item.ids], device=loaded.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    h, r, m = (states[k][0, position].float() for k in ("h", "r", "m"))
    c = (h.square().mean() + model.config.rms_norm_eps).rsqrt()
    gamma, head, down = (
        model.model.norm.weight.float(),
        model.lm_head.weight.float(),
        block.mlp.down_proj.weight.float(),
    )
    word = item.ids[position + 1]

    def log_p(v: torch.Tensor) -> torch.Tensor:
        logits = head @ (gamma * v * c)
        return logits[word] - logits.logsumexp(0)

    start = log_p(r)
    return torch.stack([log_p(r + m[i] * down[:, i]) - start for i in range(count)])


def attribution(device: torch.device, limit: float = 5, sizes: dict | None = None) -> list[Ratio]:
    """What each neuron adds to the log-probability of one word, in both sublayers of two layers: our chunks of neurons
    against the model's lens applied to one neuron after another. FFN scores agree to 1 % of the largest. Then the
    first-order scores of 32 seeds against our own exact ones, from the same states read before.
    """
    loaded = llama(device, **(sizes or {**SMALL, "num_hidden_layers": 2}))
    items = seeds(1, 64, loaded.architecture.vocabulary)
    a = loaded.architecture
    neurons = a.layers * (a.ffn + a.heads * a.head_dim)

    def theirs() -> None:
        # as many neurons as ours scores: an attention neuron costs what an FFN neuron costs
        for layer in range(a.layers):
            literal_neurons(loaded, items[0], layer, min(a.ffn, neurons // a.layers))
            literal_neurons(loaded, items[0], layer, max(0, neurons // a.layers - a.ffn))

    exact = attribute(loaded, items).scores[(1, "ffn")]
    literal = literal_neurons(loaded, items[0], 1, a.ffn)
    gap = float((exact - literal).abs().max() / literal.abs().max())
    require_same("exact attribution and one lens per neuron (of the largest score)", gap, 1e-2)
    many = collect(loaded, seeds(32, 64, loaded.architecture.vocabulary))
    return [
        speed_up(
            "exact attribution, 1 seed", "one lens per neuron", lambda: attribute(loaded, items), theirs, limit, 3
        ),
        speed_up(
            "first-order scores, 32 seeds read already",
            "exact scores",
            lambda: score(loaded, many, "first_order"),
            lambda: score(loaded, many),
            20,
            3,
        ),
    ]
