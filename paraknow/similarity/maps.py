"""Linear maps between the inner spaces of two models, fitted on text both know (METHODS 2.6).

Notation: rows are tokens. X (n, d_X) is mapped to Y (n, d_Y) by A (d_X, d_Y): Y ≈ X·A, without an offset, because
a map that carries neurons has nowhere to put one.
"""

from __future__ import annotations

import torch

from paraknow.similarity.stitching import RIDGES

FOLDS = 4


def procrustes(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The scaled orthogonal map: s·U·Vᵀ from the SVD U Σ Vᵀ of Xᵀ·Y, with the s that fits best.

    Semi-orthogonal where the sides differ. s = tr Σ / ‖X·U·Vᵀ‖²; where d_X ≤ d_Y this is tr Σ / ‖X‖².
    """
    turned = turn(x, y)
    sigma = (turned * (x.double().T @ y.double())).sum()  # tr Σ
    return (sigma / (x.double() @ turned).square().sum().clamp_min(1e-300)) * turned


def turn(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """U·Vᵀ (d_X, d_Y) of the SVD of Xᵀ·Y: the rotation alone."""
    u, _, vt = torch.linalg.svd(x.double().T @ y.double(), full_matrices=False)
    return u @ vt


def ridge(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Ridge regression of Y on X; λ, in units of the mean squared singular value of X, by cross-validation over rows.

    Fits better than a rotation, and shrinks the directions that X uses seldom.
    """
    x, y = x.double(), y.double()
    fold = torch.arange(len(x), device=x.device) % FOLDS
    errors = torch.zeros(len(RIDGES), dtype=torch.float64, device=x.device)
    for k in range(FOLDS):
        fit, held = fold != k, fold == k
        for number, a in enumerate(_ridges(x[fit], y[fit], RIDGES)):
            errors[number] += (x[held] @ a - y[held]).square().sum()
    return _ridges(x, y, (RIDGES[int(errors.argmin())],))[0]


def _ridges(x: torch.Tensor, y: torch.Tensor, strengths: tuple[float, ...]) -> list[torch.Tensor]:
    values, vectors = torch.linalg.eigh(x.T @ x)
    values, turned = values.clamp_min(0), vectors.T @ (x.T @ y)
    # The smallest λ only keeps the division sound where X does not use all of its space.
    return [vectors @ (turned / (values + max(r, 1e-12) * values.mean())[:, None]) for r in strengths]


def identity(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The identity (d, d), for models that share their basis. Raises ValueError where the sides differ."""
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"the identity maps no space of {x.shape[1]} to one of {y.shape[1]} directions")
    return torch.eye(x.shape[1], dtype=torch.float64, device=x.device)


MAPS = {"procrustes": procrustes, "ridge": ridge, "identity": identity}


def fit(x: torch.Tensor, y: torch.Tensor, a: torch.Tensor) -> float:
    """Share of Y's energy that X·A explains, 1 − ‖Y − X·A‖²/‖Y‖² (uncentred; below 0 where it adds error)."""
    y = y.double()
    return float(1 - (y - x.double() @ a).square().sum() / y.square().sum().clamp_min(1e-300))
