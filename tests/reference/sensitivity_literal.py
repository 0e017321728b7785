"""S(θ) = Σ_seeds |θ ⊙ ∂ℓ/∂θ| as the paper writes it: all gradients kept, one dictionary per seed, float64."""

from __future__ import annotations

import copy

import torch


def sensitivity(model, items) -> dict[str, torch.Tensor]:
    model = copy.deepcopy(model).double()
    totals: dict[str, torch.Tensor] = {}
    for item in items:
        for parameter in model.parameters():
            parameter.requires_grad_(True)
            parameter.grad = None
        logits = model(input_ids=torch.tensor([item.ids])).logits[0]
        terms = []
        for position in range(item.answer_start, len(item.ids)):
            before = logits[position - 1]
            terms.append(torch.logsumexp(before, 0) - before[item.ids[position]])
        (sum(terms) / len(terms)).backward()
        sample = {name: (p.detach() * p.grad).abs() for name, p in model.named_parameters()}
        for name, values in sample.items():
            totals[name] = totals.get(name, 0) + values
    return totals
