"""Distillation, its mask and logit fusion as the formulas read, one token at a time in float64."""

from __future__ import annotations

import math

import torch


def softmax(logits: list[float], temperature: float = 1.0) -> list[float]:
    top = max(logits)
    weights = [math.exp((z - top) / temperature) for z in logits]
    return [w / sum(weights) for w in weights]


def divergence(p: list[float], q: list[float]) -> float:
    """KL(p ‖ q) in nats."""
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def loss(target: list[float], logits: list[float], token: int, temperature: float, mix: float) -> float:
    """(1 − mix)·τ²·KL + mix·cross-entropy of one answer token."""
    soft = divergence(softmax(target, temperature), softmax(logits, temperature))
    return (1 - mix) * temperature**2 * soft - mix * math.log(softmax(logits)[token])


def target(teacher: list[float], student: list[float], token: int, sure_of: str) -> list[float]:
    """Whose logits are the target of one answer token."""
    p, q = softmax(teacher), softmax(student)
    surer = p[token] > q[token] if sure_of == "answer" else max(p) > max(q)
    return teacher if surer else student


def answers(model, items) -> list[tuple[list[float], int]]:
    """(logits that predict it, token) of every answer token, one example at a time."""
    found = []
    with torch.no_grad():
        for item in items:
            logits = model(input_ids=torch.tensor([item.ids])).logits[0].double()
            for position in range(item.answer_start, len(item.ids)):
                found.append((logits[position - 1].tolist(), item.ids[position]))
    return found


def fused(teacher: list[float], student: list[float], share: float) -> list[float]:
    """Student and teacher mixed with the smallest weight whose divergence is `share` of the teacher's."""
    base = softmax(student)

    def mixed(a: float) -> list[float]:
        return [s + a * (t - s) for t, s in zip(teacher, student, strict=True)]

    wanted = share * divergence(softmax(teacher), base)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if divergence(softmax(mixed(middle)), base) >= wanted:
            high = middle
        else:
            low = middle
    return mixed(high if wanted > 0 else 0.0)
