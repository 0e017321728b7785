"""SemAlign as METHODS 2.3 writes it: float64, one column, one token and one layer at a time. Layers count from 1."""

from __future__ import annotations

import copy

import torch

SUBLAYERS = {"attention": "self_attn.o_proj", "ffn": "mlp.down_proj"}


def unit_columns(matrix):
    columns = [matrix[:, v] for v in range(matrix.shape[1])]
    return [c / c.pow(2).sum().sqrt() for c in columns]


def vocabulary_map(student_head, teacher_head):
    """M = S_S·S_Tᵀ, one token's outer product after the other."""
    total = torch.zeros(student_head.shape[1], teacher_head.shape[1], dtype=torch.float64)
    ours, theirs = (unit_columns(torch.linalg.pinv(w.detach().double())) for w in (student_head, teacher_head))
    for s, t in zip(ours, theirs, strict=True):
        total = total + torch.outer(s, t)
    return total


def pairing(attributed, l_t, l_s):
    """Student layer → the attributed teacher layers it follows, by trying every k."""
    takes = {k: max(1, (k * l_t) // l_s) for k in range(1, l_s + 1)}
    found = {k: [] for k in takes}
    for layer in attributed:
        if layer in takes.values():
            for k, taken in takes.items():
                if taken == layer:
                    found[k].append(layer)
        else:
            k = 1
            while takes[k] < layer:
                k += 1
            found[k].append(layer)
    return {k: sorted(layers) for k, layers in found.items() if layers}


def outputs(model, ids):
    """(layer from 1, sublayer) → (1, t, d) and the logits (t, V), with their graph."""
    taken, handles = {}, []

    def keep(place):
        return lambda _, __, output: taken.update({place: output})

    for number, block in enumerate(model.model.layers, start=1):
        for name, path in SUBLAYERS.items():
            handles.append(block.get_submodule(path).register_forward_hook(keep((number, name))))
    logits = model(input_ids=torch.tensor([list(ids)])).logits[0]
    for handle in handles:
        handle.remove()
    return taken, logits


def layer_scores(model, items):
    """Gradient × activation of every layer, summed over seeds, positions, directions and both sublayers."""
    model = copy.deepcopy(model).double().requires_grad_(True)
    scores = [0.0] * len(model.model.layers)
    for item in items:
        taken, logits = outputs(model, item.ids)
        steps = range(item.answer_start, len(item.ids))
        loss = -sum(torch.log_softmax(logits[p - 1], 0)[item.ids[p]] for p in steps) / len(steps)
        slopes = torch.autograd.grad(loss, list(taken.values()))
        for (layer, _), h, slope in zip(taken, taken.values(), slopes, strict=True):
            scores[layer - 1] += float((slope * h).abs().sum())
    return scores


def cosine(a, b):
    return (a @ b) / (a.pow(2).sum().sqrt() * b.pow(2).sum().sqrt())


def loss(teacher, student, m, k, targets, pairs, factors):
    """The loss of student layer k on a batch, the gradients of all factors, and the mean cosine to the targets.

    targets: lists of (teacher layer, weight); pairs: (teacher's ids, positions, student's, positions, answer_start);
    factors: (student layer from 0, module) → (B, A), put into the weights as W + B·A.
    """
    theirs, ours = (copy.deepcopy(x).double().requires_grad_(False) for x in (teacher, student))
    moving = {p: tuple(x.detach().double().requires_grad_() for x in ba) for p, ba in factors.items()}
    for (layer, module), (b, a) in moving.items():
        block = "self_attn" if module in ("v", "o") else "mlp"
        matrix = ours.get_submodule(f"model.layers.{layer}.{block}.{module}_proj")
        weight = matrix.weight.detach() + b @ a
        del matrix.weight
        matrix.weight = weight
    hidden, answers = [], []
    for their_ids, their_at, our_ids, our_at, start in pairs:
        with torch.no_grad():
            source, _ = outputs(theirs, their_ids)
        found, logits = outputs(ours, our_ids)
        for i, j in zip(their_at, our_at, strict=True):
            for name in SUBLAYERS:
                each = []
                for target in targets:
                    h = sum(weight * source[layer, name][0, i] for layer, weight in target)
                    each.append(1 - cosine(found[k, name][0, j], m @ (h / h.pow(2).sum().sqrt())))
                hidden.append(sum(each) / len(each))
        for position in range(start, len(our_ids)):
            right = torch.zeros(logits.shape[1], dtype=torch.float64)
            right[our_ids[position]] = 1
            answers.append(1 - cosine(logits[position - 1], right))
    missed = sum(hidden) / len(hidden)
    whole = missed + sum(answers) / len(answers)
    flat = [x for ba in moving.values() for x in ba]
    gradients = torch.autograd.grad(whole, flat)
    places = [(place, side) for place in moving for side in "BA"]
    return float(whole), dict(zip(places, gradients, strict=True)), 1 - float(missed)
