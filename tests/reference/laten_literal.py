"""One step of LaTen as METHODS 2.2 writes it: float64, whole matrices, one neuron at a time."""

from __future__ import annotations

import copy

import torch

from tests.reference import neurons_literal

KINDS = {"up": "ffn", "gate": "ffn", "down": "ffn", "o": "attention", "v": "value"}


def best(scores, count):
    """Indices of the `count` highest scores, the highest first."""
    return sorted(range(len(scores)), key=lambda i: (-float(scores[i]), i))[:count]


def scores(loaded, items, **more):
    """Exact scores (layer, kind) → (neurons,), summed over items."""
    offset = loaded.architecture.family.norm_offset
    found = [neurons_literal.attribution(loaded.model, i, loaded.tokenizer, offset, **more)[0] for i in items]
    return {key: sum(one[key] for one in found) for key in found[0]}


def path(module, layer):
    return f"model.layers.{layer}.{'self_attn' if module in ('v', 'o') else 'mlp'}.{module}_proj.weight"


def changes(teacher, student, modules, pairs, counts, networks, teacher_items, student_items):
    """ΔW of every matrix (out, in) by parameter name, and Δ's entries by module, as the hypernetworks give them."""
    theirs, ours = scores(teacher, teacher_items), scores(student, student_items)
    weights = {n: p.detach().double() for n, p in teacher.model.named_parameters()}
    shapes = {n: p.shape for n, p in student.model.named_parameters()}
    matrices, entries = {}, {module: [] for module in modules}
    for module in modules:
        first, second = networks[module]
        kind = KINDS[module]
        for layer, source in enumerate(pairs):
            whole = torch.zeros(shapes[path(module, layer)], dtype=torch.float64)
            there = best(theirs[source, kind], counts[kind])
            here = best(ours[layer, kind], counts[kind])
            for i, j in zip(there, here, strict=True):
                matrix = weights[path(module, source)]
                vector = matrix[:, i] if module in ("down", "o") else matrix[i]
                delta = second @ torch.clamp(first @ vector, min=0)
                entries[module].append(delta)
                put = torch.zeros_like(whole)
                if module in ("down", "o"):
                    put[:, j] = 1
                    whole = whole + put * delta[:, None]
                else:
                    put[j] = 1
                    whole = whole + put * delta
            matrices[path(module, layer)] = whole
    return matrices, entries


def cross_entropy(student, matrices, items):
    """Mean −log p over all answer tokens of `items`, one example and one token at a time, with W + ΔW."""
    model = copy.deepcopy(student.model).double().requires_grad_(False)
    weights = {name: dict(model.named_parameters())[name] + change for name, change in matrices.items()}
    terms = []
    for item in items:
        logits = torch.func.functional_call(model, weights, kwargs={"input_ids": torch.tensor([item.ids])}).logits[0]
        for position in range(item.answer_start, len(item.ids)):
            before = logits[position - 1]
            terms.append(torch.logsumexp(before, 0) - before[item.ids[position]])
    return sum(terms) / len(terms)


def norm(entries):
    """Σ over modules of the mean square of Δ."""
    return sum(torch.stack(deltas).pow(2).mean() for deltas in entries.values())


def adamw(parameter, gradients, rate, decay=0.05, betas=(0.9, 0.95), eps=1e-8):
    """AdamW after one step per gradient, written out."""
    m = v = torch.zeros_like(parameter)
    for step, gradient in enumerate(gradients, start=1):
        m = betas[0] * m + (1 - betas[0]) * gradient
        v = betas[1] * v + (1 - betas[1]) * gradient**2
        mean, spread = m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)
        parameter = parameter - rate * decay * parameter - rate * mean / (spread.sqrt() + eps)
    return parameter
