"""Weight geometry and interference from full decompositions, float64."""

from __future__ import annotations

import numpy as np


def geometry(b, a, w):
    delta, rank = b @ a, b.shape[1]
    rest, n, m = w - delta, *w.shape

    def cosine(x, y):
        return (x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum())

    left, _, right = np.linalg.svd(delta)
    left_w, _, right_w = np.linalg.svd(w)
    angles_left = np.linalg.svd(left[:, :rank].T @ left_w[:, :rank], compute_uv=False)
    angles_right = np.linalg.svd(right[:rank] @ right_w[:rank].T, compute_uv=False)
    size, whole = np.linalg.norm(delta), np.linalg.norm(w)
    return {
        "norm_ratio": size / whole,
        "cos": cosine(delta, w),
        "cos_rest": cosine(delta, rest),
        "cos_rest_expected": -size / np.sqrt(whole**2 + size**2),
        "cos_sd": 1 / np.sqrt(n * m),
        "left_overlap": (angles_left**2).mean(),
        "left_expected": rank / n,
        "right_overlap": (angles_right**2).mean(),
        "right_expected": rank / m,
    }


def interference(b, a, inputs, energy=0.9):
    values, vectors = np.linalg.eigh(inputs.T @ inputs)
    order = np.argsort(values)[::-1]
    values, vectors = values[order], vectors[:, order]
    count = 1
    while values[:count].sum() < energy * values.sum():
        count += 1
    delta = b @ a
    inside = delta @ vectors[:, :count]
    return {
        "interference": (inside**2).sum() / (delta**2).sum(),
        "interference_expected": count / inputs.shape[1],
        "directions": count,
    }
