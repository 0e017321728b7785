"""Operations and activations by formula, against torch's own counts: at tiny sizes and at one layer of a 70B model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import counted
from benchmarks.models import llama, seeds
from paraknow import inject, memory, operations, passes, recipes
from paraknow.architecture import Architecture, from_config
from paraknow.locate import blocks, neurons
from paraknow.similarity.cka import Stream

SEVENTY = recipes.model_configs()["meta-llama/Llama-3.1-70B"]["config"]
TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 300,
    "max_position_embeddings": 512,
}


def products(work: Any) -> float:
    """Operations of matrix products, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


@pytest.mark.parametrize("values", [SEVENTY, TINY], ids=["70B", "tiny"])
def test_a_layers_passes_at_true_shapes(values):
    model = counted.built(values, 1, "bfloat16")
    about = counted.sizes(values, 1, sum(p.numel() for p in model.parameters()))
    assert counted.parameters_of(about.architecture) == about.parameters
    n = passes.multiplied(about) - 3 * values["hidden_size"]  # norms are no products
    forward, backward = counted.operations_of(model, 32)
    assert forward == 2 * n * 32 + operations.attention(about.architecture, 32)
    assert backward == 4 * n * 32 + operations.attention(about.architecture, 32, backward=True)


def test_counts_that_are_not_linear_are_refused():
    assert counted.linear(lambda n: 3.0 * n + 1, 80) == 241
    with pytest.raises(ValueError, match="no line"):
        counted.linear(lambda n: float(n * n), 80)


def twins(model: Any) -> Any:
    """With the two adapters of a tuned start on every projection."""
    from peft import get_peft_model

    names = [name for name, _ in model.named_modules() if name.endswith("_proj")]
    made = get_peft_model(model, inject._lora_config(names, 4), adapter_name=inject.MOVING)
    made.add_adapter(inject.FROZEN, inject._lora_config(names, 4))
    made.base_model.set_adapter([inject.MOVING, inject.FROZEN])
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(f".{inject.MOVING}" in name)
    return made.get_base_model()


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("bfloat16", 2)])
@pytest.mark.parametrize("tuned", [False, True])
def test_what_a_layer_keeps_for_its_backward_pass(dtype, width, tuned):
    values, tokens = TINY | {"num_key_value_heads": 4}, 64
    one, two = (counted.kept_bytes(values, n, dtype, tokens, twins if tuned else None) for n in (1, 2))
    a = from_config(values, "tiny")
    formula = (memory._tuned_layer if tuned else memory._layer)(a, width, tokens)
    # beside it: the mask (t × t), rotations, logsumexps, ranks; all of them small at real widths
    mask = tokens * tokens * width
    assert formula == pytest.approx(two - one - mask, rel=0.1)


@pytest.mark.parametrize("how", ["exact", "first_order"])
def test_scores_of_neurons(how):
    loaded = llama(
        torch.device("cpu"), hidden_size=64, intermediate_size=160, num_hidden_layers=2, vocab_size=300,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    states = neurons.collect(loaded, seeds(3, 12, 300))
    a = loaded.architecture
    logits = a.layers * (a.ffn + a.heads * a.head_dim) * a.vocabulary
    beside = 5 * 3 * logits if how == "exact" else 0  # element by element, and products with a vector
    found = products(lambda: neurons.score(loaded, states, how))
    assert operations.neurons(a, 3, how) - beside == pytest.approx(found, rel=0.02)


def test_cka_of_one_batch():
    rows, layers, resamples, permutations = 24, (3, 2), 100, 8
    draw = torch.Generator().manual_seed(0)
    a = from_config(TINY, "tiny")
    t, s = (replace(a, layers=n) for n in layers)

    def all_kinds() -> None:
        widths = {m: a.shape(m)[0] for m in operations.MODULES} | {"residual": a.hidden}
        for width in widths.values():
            sides = [[torch.randn(rows, width, generator=draw) for _ in range(n)] for n in layers]
            Stream(*layers, resamples, permutations).add(*sides, list(range(rows)), [0] * rows)

    whole = operations.cka(t, s, rows, permutations, resamples)
    own = 2.0 * len(operations.KINDS) * rows * resamples * (layers[0] + layers[1])  # of each model's own sums
    assert whole + own == pytest.approx(products(all_kinds), rel=0.01)


def test_factoring_a_large_matrix():
    matrix = torch.randn(1100, 1300, generator=torch.Generator().manual_seed(0))
    found = products(lambda: blocks.factor(matrix, 8))
    assert operations.factor(1100, 1300, 8) == pytest.approx(found, rel=0.15)  # QRs and a small SVD are not counted
    assert operations.EXACT_SIDE == blocks.EXACT_SIDE


SIZES = st.builds(
    lambda layers, hidden, ffn, heads, vocabulary: from_config(
        TINY
        | {"num_hidden_layers": layers, "hidden_size": 32 * hidden, "intermediate_size": ffn, "head_dim": 16}
        | {"num_attention_heads": 2 * heads, "vocab_size": vocabulary},
        "made",
    ),
    st.integers(1, 100),
    st.integers(1, 500),
    st.integers(8, 50000),
    st.integers(1, 64),
    st.integers(10, 200000),
)


@settings(max_examples=60, deadline=None)
@given(a=SIZES, more=st.sampled_from(["layers", "hidden", "ffn", "heads", "vocabulary"]), times=st.integers(2, 5))
def test_nothing_costs_less_of_a_larger_model(a: Architecture, more, times):
    wider = replace(a, **{more: times * getattr(a, more)})
    for cost in (
        counted.parameters_of,
        lambda m: operations.attention(m, 100),
        lambda m: operations.neurons(m, 4, "exact"),
        lambda m: operations.neurons(m, 4, "first_order"),
        lambda m: operations.gram(m, 64),
        lambda m: operations.cka(m, a, 64, 20, 400),
        lambda m: operations.stitching(m, a, 2048),
        lambda m: operations.stitching(a, m, 2048),
        lambda m: memory._layer(m, 2, 100),
        lambda m: memory._tuned_layer(m, 2, 100),
        lambda m: memory._step(m, 2, 100),
    ):
        assert cost(wider) >= cost(a) >= 0
    for cost in (operations.svd, operations.spectrum):
        assert cost(a.hidden, times * a.ffn) > cost(a.hidden, a.ffn)
