"""Neuron attribution as METHODS 1.4 writes it: float64, one neuron at a time, one lens a neuron."""

from __future__ import annotations

import copy

import torch


def content_position(ids, answer_start, tokenizer):
    for position in reversed(range(answer_start, len(ids))):
        text = tokenizer.decode([ids[position]])
        if ids[position] not in tokenizer.all_special_ids and any(c.isalnum() for c in text):
            return position
    return None


def states(model, ids):
    """x_l, attention output, r_l, FFN output, u, m of every layer and h, at the last of `ids`."""
    taken = {name: [] for name in ("x", "attention", "r", "ffn", "u", "m", "h")}

    def keep(name, value):
        taken[name].append((value[0] if isinstance(value, tuple) else value)[0, -1].clone())

    handles = []
    for block in model.model.layers:
        handles += [
            block.register_forward_pre_hook(lambda _, given: keep("x", given[0])),
            block.self_attn.register_forward_hook(lambda _, __, out: keep("attention", out)),
            block.post_attention_layernorm.register_forward_pre_hook(lambda _, given: keep("r", given[0])),
            block.mlp.register_forward_hook(lambda _, __, out: keep("ffn", out)),
            block.self_attn.o_proj.register_forward_pre_hook(lambda _, given: keep("u", given[0])),
            block.mlp.down_proj.register_forward_pre_hook(lambda _, given: keep("m", given[0])),
        ]
    handles.append(model.model.layers[-1].register_forward_hook(lambda _, __, out: keep("h", out)))
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return taken


class Lens:
    """log p of a word read off a residual vector."""

    def __init__(self, model, h, word, norm_offset, power=-0.5):
        self.head = model.get_output_embeddings().weight.detach()
        self.gamma = norm_offset + model.model.norm.weight.detach()
        self.c = (h.pow(2).mean() + model.config.rms_norm_eps) ** power
        self.word = word

    def __call__(self, v):
        logits = self.head @ (self.gamma * v * self.c)
        return logits[self.word] - torch.logsumexp(logits, 0)


def attribution(model, item, tokenizer, norm_offset=0.0, power=-0.5):
    """Scores of one seed: (layer, kind) → exact and first-order neuron scores, and layer scores."""
    model = copy.deepcopy(model).double().requires_grad_(False)
    position = content_position(item.ids, item.answer_start, tokenizer)
    s = states(model, item.ids[:position])
    lens = Lens(model, s["h"][0], item.ids[position], norm_offset, power)
    exact, first, layers = {}, {}, {}
    for layer, block in enumerate(model.model.layers):
        jobs = {
            "attention": (s["x"][layer], s["attention"][layer], s["u"][layer], block.self_attn.o_proj.weight),
            "ffn": (s["r"][layer], s["ffn"][layer], s["m"][layer], block.mlp.down_proj.weight),
        }
        for kind, (base, output, activations, matrix) in jobs.items():
            layers[layer, kind] = lens(base + output) - lens(base)
            moved = base.clone().requires_grad_(True)
            lens(moved).backward()
            scores, slopes = [], []
            for i in range(matrix.shape[1]):
                column = activations[i] * matrix[:, i]
                scores.append(lens(base + column) - lens(base))
                slopes.append(moved.grad @ column)
            exact[layer, kind], first[layer, kind] = torch.stack(scores), torch.stack(slopes)
        exact[layer, "value"] = value_rows(exact[layer, "attention"], model.config)
    return exact, first, layers


def value_rows(scores, config):
    """A row of v feeds the same place of every query head of its group."""
    e = config.head_dim
    group = config.num_attention_heads // config.num_key_value_heads
    rows = [torch.zeros((), dtype=torch.float64) for _ in range(config.num_key_value_heads * e)]
    for column, score in enumerate(scores):
        head, place = divmod(column, e)
        rows[(head // group) * e + place] = rows[(head // group) * e + place] + score
    return torch.stack(rows)
