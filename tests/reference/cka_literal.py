"""Unbiased HSIC and CKA with the matrices written out (Song et al. 2012; Nguyen et al., arXiv 2010.15327), float64."""

from __future__ import annotations

import numpy as np


def hsic1(x, y):
    """HSIC1 of two feature matrices (n, p), (n, q) with linear kernels."""
    n = len(x)
    k, m = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0.0)
    np.fill_diagonal(m, 0.0)
    one = np.ones(n)
    first = np.trace(k @ m)
    second = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    third = 2 / (n - 2) * (one @ k @ m @ one)
    return (first + second - third) / (n * (n - 3))


def minibatch_cka(xs, ys):
    """CKA over batches: their HSIC weighted by their rows."""
    xs, ys = ([np.asarray(x, np.float64) for x in side] for side in (xs, ys))
    cross = sum(len(x) * hsic1(x, y) for x, y in zip(xs, ys, strict=True))
    one = sum(len(x) * hsic1(x, x) for x in xs)
    other = sum(len(y) * hsic1(y, y) for y in ys)
    return cross / np.sqrt(one * other)


def full_cka(x, y):
    return minibatch_cka([x], [y])
