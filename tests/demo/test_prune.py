from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch

from paraknow import data, models
from paraknow.demo import prune

TASK = data.load_task("demo:people")


@pytest.fixture(scope="module")
def deep(checkpoint):
    """Four layers and grouped queries."""
    return models.load(str(checkpoint("llama", seed=8, num_hidden_layers=4)), device="cpu")


@pytest.fixture(scope="module")
def text(deep):
    """ids (rows, tokens), padded with a token that would matter, and lengths (rows,)."""
    items = data.encode_all(TASK.align[:10], deep.tokenizer, 64, "text").items
    lengths = torch.tensor([len(i.ids) for i in items])
    ids = torch.full((len(items), int(lengths.max()) + 5), 7)
    for row, item in enumerate(items):
        ids[row, : len(item.ids)] = torch.tensor(item.ids)
    return ids, lengths


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


def literal(model, ids, lengths):
    """Turn of every layer (L,), and usage of every neuron [(f,)], one text at a time without padding."""
    turns, usage = [[] for _ in model.model.layers], [[] for _ in model.model.layers]
    states: list[torch.Tensor] = []
    inside: list[torch.Tensor] = []
    handles = [model.model.layers[-1].register_forward_hook(lambda _, __, out: states.append(out))]
    for layer in model.model.layers:
        handles.append(layer.register_forward_pre_hook(lambda _, given: states.append(given[0])))
        handles.append(layer.mlp.down_proj.register_forward_pre_hook(lambda _, given: inside.append(given[0])))
    for row, length in zip(ids, lengths.tolist(), strict=True):
        states.clear()
        inside.clear()
        with torch.no_grad():
            model(input_ids=row[None, :length], use_cache=False)
        for layer, (one, other) in enumerate(pairwise(states)):
            turns[layer].append(1 - torch.nn.functional.cosine_similarity(one[0], other[0], dim=-1))
            usage[layer].append(inside[layer][0].abs())
    for handle in handles:
        handle.remove()
    norms = [b.mlp.down_proj.weight.norm(dim=0) for b in model.model.layers]
    return (
        torch.stack([torch.cat(t).mean() for t in turns]),
        [torch.cat(u).mean(0) * n for u, n in zip(usage, norms, strict=True)],
    )


def test_what_is_kept_is_what_is_used_most(deep, text):
    ids, lengths = text
    turns, usage = literal(deep.model, ids, lengths)
    inner = 1 + int(turns[1:3].argmax())
    small = prune.prune(deep.model, 20, 3, ids, lengths)
    assert len(small.model.layers) == 3 and small.config.num_hidden_layers == 3 and small.config.intermediate_size == 20
    for place, old in enumerate([0, inner, 3]):
        best = sorted(sorted(range(48), key=lambda i: -float(usage[old][i]))[:20])
        theirs, mine = deep.model.model.layers[old], small.model.layers[place]
        assert torch.equal(mine.mlp.gate_proj.weight, theirs.mlp.gate_proj.weight[best])
        assert torch.equal(mine.mlp.up_proj.weight, theirs.mlp.up_proj.weight[best])
        assert torch.equal(mine.mlp.down_proj.weight, theirs.mlp.down_proj.weight[:, best])
        assert torch.equal(mine.self_attn.q_proj.weight, theirs.self_attn.q_proj.weight)
        assert mine.self_attn.layer_idx == place
        assert mine.mlp.gate_proj.out_features == mine.mlp.down_proj.in_features == 20


def test_padding_does_not_matter(deep, text):
    ids, lengths = text
    other = ids.clone()
    for row, length in enumerate(lengths.tolist()):
        other[row, length:] = 99
    one, two = (prune.prune(deep.model, 20, 3, x, lengths) for x in (ids, other))
    assert torch.equal(logits(one, ids), logits(two, ids))


def test_keeping_everything_changes_nothing(deep, text):
    ids, lengths = text
    whole = prune.prune(deep.model, 48, 4, ids, lengths)
    assert torch.equal(logits(whole, ids), logits(deep.model, ids))


@pytest.mark.parametrize(("layers", "kept"), [(1, [0]), (2, [0, 3])])
def test_the_first_and_the_last_layer_stay(deep, text, layers, kept):
    small = prune.prune(deep.model, 48, layers, *text)
    for place, old in enumerate(kept):
        mine, theirs = small.model.layers[place], deep.model.model.layers[old]
        assert torch.equal(mine.self_attn.o_proj.weight, theirs.self_attn.o_proj.weight)


def test_a_pruned_model_is_an_ordinary_checkpoint(deep, text, tmp_path):
    from transformers import AutoModelForCausalLM

    ids, lengths = text
    small = prune.prune(deep.model, 20, 2, ids, lengths)
    small.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert again.config.intermediate_size == 20 and len(again.model.layers) == 2
    torch.testing.assert_close(logits(again, ids), logits(small, ids), atol=1e-5, rtol=0)
    with torch.no_grad():  # caches are per layer: generating uses them
        found = again.generate(ids[:1, :5], max_new_tokens=3, do_sample=False)
        assert torch.equal(found, small.generate(ids[:1, :5], max_new_tokens=3, do_sample=False))


@pytest.mark.parametrize("work", ["prune", "rotate", "fails"])
def test_the_model_is_left_as_it_was(deep, text, work, monkeypatch):
    before = {n: p.clone() for n, p in deep.model.named_parameters()}
    state = torch.get_rng_state()
    if work == "fails":
        monkeypatch.setattr(deep.model.model.layers[2].mlp, "forward", lambda x: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prune.prune(deep.model, 20, 2, *text)
    elif work == "prune":
        prune.prune(deep.model, 20, 2, *text)
    else:
        prune.rotate(deep.model, 1)
    assert all(torch.equal(p, before[n]) for n, p in deep.model.named_parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in deep.model.modules())
    assert deep.architecture.layers == deep.model.config.num_hidden_layers == 4
    assert torch.equal(torch.get_rng_state(), state)


def test_a_turned_model_computes_the_same_in_another_basis(deep, text, tmp_path):
    from transformers import AutoModelForCausalLM

    ids, _ = text
    turned, again, other = (prune.rotate(deep.model, seed) for seed in (3, 3, 4))
    torch.testing.assert_close(logits(turned, ids), logits(deep.model, ids), atol=2e-4, rtol=1e-4)
    for name, weight in turned.named_parameters():
        assert torch.equal(weight, dict(again.named_parameters())[name])
        old = dict(deep.model.named_parameters())[name]
        if "norm" in name:
            assert torch.equal(weight, torch.ones_like(weight))
        else:
            assert not torch.allclose(weight, old, atol=1e-2)
            assert not torch.allclose(weight, dict(other.named_parameters())[name], atol=1e-2)
    # a rotation: every stream is as long as before
    for one, two in zip(streams(deep.model, ids), streams(turned, ids), strict=True):
        torch.testing.assert_close(one.norm(dim=-1), two.norm(dim=-1), atol=1e-3, rtol=1e-4)
    turned.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(loaded, ids), logits(turned, ids), atol=1e-5, rtol=0)


def streams(model, ids):
    kept: list[torch.Tensor] = []
    handles = [b.register_forward_pre_hook(lambda _, given: kept.append(given[0])) for b in model.model.layers]
    logits(model, ids)
    for handle in handles:
        handle.remove()
    return kept


def test_a_turned_model_learns_on_as_an_ordinary_one(deep, text):
    """Its parameters take gradients, and the copy shares none with the first."""
    ids, _ = text
    base = copy.deepcopy(deep.model).requires_grad_(True)
    for model in (prune.rotate(base, 1), prune.prune(base, 20, 2, *text)):
        model(input_ids=ids, labels=ids).loss.backward()
        assert all(p.grad is not None for p in model.parameters())
    assert all(p.grad is None for p in base.parameters())
