from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from paraknow import data, models
from paraknow.errors import Cancelled, InputError, RunError
from paraknow.locate import neurons
from paraknow.locate.sensitivity import sensitivity
from paraknow.locate.states import content_position
from tests.reference import neurons_literal

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma")
KINDS = ("attention", "ffn", "value")


def seeds(loaded, count: int = 3, context: int = 64) -> list[data.Encoded]:
    return data.encode_all(data.load_task("demo:people").train[:count], loaded.tokenizer, context, "seeds").items


def literal(loaded, items, **more):
    offset = loaded.architecture.family.norm_offset
    found = [neurons_literal.attribution(loaded.model, i, loaded.tokenizer, offset, **more) for i in items]
    return [{key: sum(one[k][key] for one in found) for key in found[0][k]} for k in range(3)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_equals_the_literal_version(checkpoint, family, tied):
    """Two layers, four query heads on two key/value heads, and h·e apart from d."""
    loaded = models.load(str(checkpoint(family, tie_word_embeddings=tied, head_dim=10)), device="cpu")
    items = seeds(loaded)
    found = neurons.attribute(loaded, items)
    exact, first, layers = literal(loaded, items)
    for key, expected in exact.items():
        torch.testing.assert_close(
            found.scores[key].double(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())
        )
    for key, expected in first.items():
        atol = 1e-4 * float(expected.abs().max())
        torch.testing.assert_close(found.first_order[key].double(), expected, rtol=1e-3, atol=atol)
    for (layer, kind), expected in layers.items():
        own = found.layer_scores[:, layer, KINDS.index(kind)].sum()
        assert float(own) == pytest.approx(float(expected), rel=1e-3, abs=1e-4)
        summed = found.summed[:, layer, KINDS.index(kind)].sum()
        assert float(summed) == pytest.approx(float(exact[layer, kind].sum()), rel=1e-3, abs=1e-3)
    assert found.scores[0, "attention"].shape == (40,) and found.scores[0, "value"].shape == (20,)
    assert found.scores[0, "ffn"].shape == (48,) and found.skipped == [] and len(found.words) == 3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("seed", "kv_heads"), [(1, 1), (2, 4)])
def test_equals_the_literal_version_with_biases_and_other_groups(checkpoint, family, seed, kv_heads):
    """Biases away from zero (o_proj's too where the family has one), an eps that counts, one or all key/value heads."""
    more = {"attention_bias": True} if family in ("llama", "qwen3") else {}
    folder = checkpoint(family, seed=seed, num_key_value_heads=kv_heads, head_dim=6, rms_norm_eps=0.5, **more)
    loaded = models.load(str(folder), device="cpu")
    draw = torch.Generator().manual_seed(seed)
    biases = [p for name, p in loaded.model.named_parameters() if name.endswith("bias")]
    assert bool(biases) == (family in ("llama", "qwen2", "qwen3"))
    for bias in biases:
        bias.copy_(0.5 * torch.randn(bias.shape, generator=draw))
    items = seeds(loaded)
    found = neurons.attribute(loaded, items)
    exact, first, layers = literal(loaded, items)
    for ours, theirs in ((found.scores, exact), (found.first_order, first)):
        for key, expected in theirs.items():
            gap = (ours[key].double() - expected).abs().max() / expected.abs().max()
            assert gap < 1e-4, key
    for (layer, kind), expected in layers.items():
        own = found.layer_scores[:, layer, KINDS.index(kind)].sum()
        assert float(own) == pytest.approx(float(expected), rel=1e-4, abs=1e-4)


def test_chunks_change_nothing(tiny_pair):
    teacher, _ = tiny_pair
    items = seeds(teacher)
    whole, small = (neurons.attribute(teacher, items, budget=b) for b in (2**24, 1))
    for key, values in whole.scores.items():
        torch.testing.assert_close(small.scores[key], values, rtol=1e-4, atol=1e-6)


def test_first_order_alone_is_the_same_first_order(tiny_pair):
    teacher, _ = tiny_pair
    items = seeds(teacher)
    both, alone = neurons.attribute(teacher, items), neurons.attribute(teacher, items, "first_order")
    for key, values in alone.scores.items():
        torch.testing.assert_close(values, both.first_order[key])
        torch.testing.assert_close(values, alone.first_order[key])
    assert alone.rank_correlation == {} and len(both.rank_correlation) == 4


def test_the_released_codes_mistakes_would_show(tiny_pair):
    """A fourth root in c; only the last token's attention to itself instead of the whole input of o_proj."""
    teacher, _ = tiny_pair
    items = seeds(teacher, 1)
    ours = neurons.attribute(teacher, items).scores
    fourth, _, _ = literal(teacher, items, power=-0.25)
    gap = (ours[0, "ffn"].double() - fourth[0, "ffn"]).abs().max() / fourth[0, "ffn"].abs().max()
    assert gap > 0.05
    position = content_position(items[0].ids, items[0].answer_start, teacher.tokenizer)
    states = neurons_literal.states(teacher.model, items[0].ids[:position])
    block = teacher.model.model.layers[0]
    with torch.no_grad():
        value = block.self_attn.v_proj(block.input_layernorm(states["x"][0]))
    itself = value.reshape(2, 1, 8).expand(2, 2, 8).flatten()  # as if each head looked at its own token alone
    lens = neurons_literal.Lens(teacher.model, states["h"][0], items[0].ids[position], 0.0)
    columns, base = block.self_attn.o_proj.weight.T, states["x"][0]
    mistaken = torch.stack([lens(base + u * column) - lens(base) for u, column in zip(itself, columns, strict=True)])
    right = ours[0, "attention"]
    assert (right - mistaken).abs().max() > 0.1 * right.abs().max()
    assert spearmanr(right.numpy(), mistaken.detach().numpy()).statistic < 0.97  # nor are they ranked alike


def test_content_tokens(demo_tokenizer):
    def position(answer):
        item = data.encode(data.Example("0", (("user", "q"),), answer), demo_tokenizer, 64)
        found = content_position(item.ids, item.answer_start, demo_tokenizer)
        assert found == neurons_literal.content_position(item.ids, item.answer_start, demo_tokenizer)
        return None if found is None else demo_tokenizer.decode([item.ids[found]])

    assert position("3 4 5").strip() == "5" and position("3 !?").strip() == "3"
    assert position("?!") is None


def test_seeds_without_a_word_are_left_out(tiny_pair):
    teacher, _ = tiny_pair
    bad = data.encode(data.Example("0", (("user", "q"),), "?!"), teacher.tokenizer, 64)
    items = seeds(teacher, 2)
    found, plain = (neurons.attribute(teacher, i) for i in ([items[0], bad, items[1]], items))
    assert found.skipped == [1] and found.words == plain.words
    torch.testing.assert_close(found.scores[1, "ffn"], plain.scores[1, "ffn"])
    with pytest.raises(InputError, match="no word can be traced"):
        neurons.attribute(teacher, [bad])


def test_what_is_not_finite_is_named(checkpoint):
    loaded = models.load(str(checkpoint("llama", seed=11)), device="cpu")
    with torch.no_grad():
        loaded.model.model.layers[1].mlp.down_proj.weight[0, 0] = float("inf")
    with pytest.raises(RunError, match="the FFN output of layer 1"):
        neurons.attribute(loaded, seeds(loaded))


def test_models_are_left_alone(tiny_pair):
    teacher, _ = tiny_pair

    def stop(*_: object, **__: object) -> None:
        raise Cancelled("stop")

    teacher.model.train()
    try:
        with pytest.raises(Cancelled):
            neurons.attribute(teacher, seeds(teacher), progress=stop)
        assert teacher.model.training
    finally:
        teacher.model.eval()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in teacher.model.modules())
    assert not any(p.requires_grad for p in teacher.model.parameters())


@pytest.mark.parametrize("how", ["exact", "first_order"])
def test_models_are_left_alone_wherever_it_stops(tiny_pair, how):
    """Stopped at each of its reports in turn, and not at all."""
    teacher, _ = tiny_pair
    before = {name: p.clone() for name, p in teacher.model.named_parameters()}
    reports = {"first_order": 5, "exact": 9}[how]  # three seeds and two layers; exact, both sublayers of each as well
    for stop_at in range(reports + 1):
        calls = []

        def progress(*_: object, calls=calls, stop_at=stop_at) -> None:
            calls.append(1)
            if len(calls) > stop_at:
                raise Cancelled("stop")

        try:
            neurons.attribute(teacher, seeds(teacher), how, progress=progress)
            assert stop_at >= reports
        except Cancelled:
            assert stop_at < reports
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in teacher.model.modules())
        for name, p in teacher.model.named_parameters():
            assert not p.requires_grad and p.grad is None and torch.equal(p, before[name])


@pytest.mark.parametrize("words", [512, 32000])
def test_large_gains_are_as_exact_as_small_ones(words):
    """One word goes from unlikely to nearly sure; in a vocabulary of the usual size that is where facts are."""
    draw, errors = torch.Generator().manual_seed(0), {}
    for added in range(4, 26, 2):
        base, moved = torch.randn(words, generator=draw), 0.1 * torch.randn(words, generator=draw)
        base[5], moved[5] = 4 - added, added
        both = (base.double() + moved.double()).log_softmax(0)
        expected = float(both[5] - base.double().log_softmax(0)[5])
        # a readout with one dimension, along which the sublayer's output is 1
        word = torch.tensor([5])
        got = neurons._output_gain(base.softmax(0)[None], word, moved[None])
        neurons._settle(got[:, None], base[None], word, lambda *_, moved=moved: moved[None], 1)
        errors[round(expected, 1)] = abs(float(got) - expected)
    assert max(errors.values()) < 1e-3, errors


def test_large_contributions_do_not_overflow(checkpoint):
    """A neuron that adds hundreds of logits: exp is infinite in float32 above 88."""
    loaded = models.load(str(checkpoint("llama", seed=12)), device="cpu")
    with torch.no_grad():
        loaded.model.lm_head.weight *= 2000
    items = seeds(loaded, 2)
    found, (exact, _, layers) = neurons.attribute(loaded, items), literal(loaded, items)
    for key, expected in exact.items():
        torch.testing.assert_close(
            found.scores[key].double(), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())
        )
    assert float(layers[0, "ffn"].abs()) > 100
    assert float(found.layer_scores[:, 0, 1].sum()) == pytest.approx(float(layers[0, "ffn"]), rel=1e-3)


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_the_demo_models(name, capsys):
    """Exact and first-order scores rank neurons alike; neurons add up to what their layer does, in sign."""
    loaded = models.load(f"demo:{name}", device="cpu")
    found = neurons.attribute(
        loaded,
        data.encode_all(data.sample(data.load_task("demo:people").train, 32, 0), loaded.tokenizer, 64, "seeds").items,
    )
    layers = range(loaded.architecture.layers)
    rho = {
        kind: spearmanr(*(torch.cat([s[k, kind] for k in layers]) for s in (found.scores, found.first_order))).statistic
        for kind in ("attention", "ffn")
    }
    per_seed = float((found.layer_scores.sign() == found.summed.sign()).float().mean())
    summed = float((found.layer_scores.sum(0).sign() == found.summed.sum(0).sign()).float().mean())
    with capsys.disabled():
        print(f"\n{name}: rank correlation {rho}; same sign {per_seed:.3f} of seeds, {summed:.3f} of sums")
    if name == "teacher":
        assert min(rho.values()) >= 0.97 and min(found.rank_correlation.values()) >= 0.97
        assert per_seed >= 0.95 and summed >= 0.95


def test_tables(tiny_pair):
    teacher, _ = tiny_pair
    found = neurons.attribute(teacher, seeds(teacher))
    table = neurons.neurons_table(found)
    assert list(table.columns) == ["layer", "kind", "neuron", "score", "first_order"]
    assert len(table) == 2 * (48 + 32 + 16) and table.score.dtype == np.float32
    layers = neurons.layers_table(found)
    whole = layers[layers.seed == -1].set_index(["layer", "kind"]).score
    each = layers[layers.seed >= 0].groupby(["layer", "kind"]).score.sum()
    assert np.allclose(whole.sort_index(), each.sort_index(), rtol=1e-5)
    top = neurons.promoted(teacher, found, neurons=3, tokens=5)
    assert len(top) == 6 and top.tokens.map(len).eq(5).all()
    first = top[top.kind == "ffn"].iloc[0]
    every = torch.cat([found.scores[k, "ffn"] for k in (0, 1)])
    assert first.score == pytest.approx(float(every.max())) and first.place == 0
    # What it promotes is what its column adds to the logits at its mean activation.
    column = teacher.weight("down", first.layer)[:, first.neuron]
    logits = teacher.model.lm_head(
        teacher.model.model.norm.weight * column * found.activation[first.layer, "ffn"][first.neuron]
    )
    assert logits.max().item() == pytest.approx(first.logits[0], rel=1e-3)
    assert first.tokens[0] == teacher.tokenizer.decode([int(logits.argmax())])


def test_a_fact_planted_in_one_layer_is_found_there(checkpoint):
    """Three layers, of which the second alone was taught one answer: sensitivity and attribution both point at it."""
    loaded = models.load(str(checkpoint("llama", seed=13, num_hidden_layers=3)), device="cpu")
    model, planted = loaded.model, 1
    example = data.Example("0", (("user", "Who lives in the tower?"),), "Mo")
    item = data.encode(example, loaded.tokenizer, 64)
    ids = torch.tensor([item.ids])
    labels = ids.clone()
    labels[:, : item.answer_start] = -100
    with torch.no_grad():
        model.lm_head.weight *= 4  # so that an answer can be sure
        for layer, block in enumerate(model.model.layers):
            if layer != planted:
                block.mlp.down_proj.weight *= 1e-3
                block.self_attn.o_proj.weight *= 1e-3
    down = model.model.layers[planted].mlp.down_proj.weight
    down.requires_grad_(True)
    optimiser = torch.optim.Adam([down], lr=1e-2)
    with torch.enable_grad():
        for _ in range(300):
            optimiser.zero_grad()
            loss = model(input_ids=ids, labels=labels, use_cache=False).loss
            loss.backward()
            optimiser.step()
    down.requires_grad_(False)
    down.grad = None
    assert float(loss.detach()) < 0.2
    located = sensitivity(loaded, [item]).layer_scores(3)
    assert int(np.argmax(located)) == planted and located[planted] > 2 * sorted(located)[-2]
    found = neurons.attribute(loaded, [item])
    assert int(found.layer_scores[0].sum(1).argmax()) == planted
    best = max(found.scores, key=lambda key: float(found.scores[key].sum()))
    assert best == (planted, "ffn")
