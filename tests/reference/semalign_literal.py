"""SemAlign v1 as METHODS 2.3 writes it, in float64 numpy, one layer, position and token at a time."""

from __future__ import annotations

import numpy as np


def unit_columns(head: np.ndarray) -> np.ndarray:
    """S (d, V): columns of the pseudo-inverse of lm_head (V, d), each at unit length."""
    inverse = np.linalg.pinv(head)
    return np.stack([column / np.linalg.norm(column) for column in inverse.T], axis=1)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def pairing(teacher: int, student: int, attributed: list[int]) -> dict[int, list[int]]:
    """Layers from 1 on both sides."""
    made: dict[int, list[int]] = {}
    for layer in sorted(attributed):
        for k in range(1, student + 1):
            if max(1, k * teacher // student) >= layer:
                made.setdefault(k, []).append(layer)
                break
    return made


def loss(
    outputs: list[tuple[np.ndarray, list[np.ndarray]]], m: np.ndarray, logits: np.ndarray, tokens: list[int]
) -> float:
    """`outputs`: per sublayer the student's h (n, d_S) and the h (n, d_T) of every teacher layer; their targets are
    averaged. logits (n, V) before the answer tokens."""
    alike = []
    for own, theirs in outputs:
        for row in range(len(own)):
            target = sum(m @ (h[row] / np.linalg.norm(h[row])) for h in theirs) / len(theirs)
            alike.append(cosine(own[row], target))
    right = []
    for row, token in enumerate(tokens):
        onehot = np.zeros(logits.shape[1])
        onehot[token] = 1
        right.append(cosine(logits[row], onehot))
    return (1 - float(np.mean(alike))) + (1 - float(np.mean(right)))
