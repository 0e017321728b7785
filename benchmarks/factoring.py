"""A block's factors against the full SVD: time, and how far the r directions lie from the best ones.

Notation: a block W (n, m) with singular values σ, its best left directions U_r; ours W ≈ B·A.
"""

from __future__ import annotations

import torch

from benchmarks.measure import Ratio, speed_up
from paraknow.locate.blocks import factor

ROWS, COLS, RANK = 1280, 1536, 16  # beyond what `factor` takes the SVD of
POWER = -0.25


def falling(draw: torch.Generator, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """W with σ_i = i^POWER and random directions, its U_r (n, r) and σ (n,): made from them, so that both are known."""
    left = torch.linalg.qr(torch.randn(ROWS, ROWS, generator=draw, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(COLS, ROWS, generator=draw, dtype=torch.float64))[0]
    values = torch.arange(1, ROWS + 1, dtype=torch.float64) ** POWER
    return ((left * values) @ right.T).float().to(device), left[:, :RANK], values


def flat(draw: torch.Generator, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """W of independent Gaussian entries, its U_r (n, r) and σ (n,) from the eigenvectors of W·Wᵀ in float64."""
    matrix = torch.randn(ROWS, COLS, generator=draw)
    squares, vectors = torch.linalg.eigh(matrix.double() @ matrix.double().T)
    return matrix.to(device), vectors.flip(1)[:, :RANK], squares.flip(0).clamp_min(0).sqrt()


def errors(matrix: torch.Tensor, best: torch.Tensor, values: torch.Tensor) -> dict[str, float]:
    """Of our factors: by what share ‖W − BA‖ is above the least possible, the share of Σ_{i≤r} σ_i² that BA lacks, and
    the sine of the largest angle between the spaces of the r left directions, which is ‖P − P_ours‖ of the projections
    on them."""
    found = factor(matrix, RANK)
    left = torch.linalg.qr(found.b.double().cpu())[0]
    outside = left - best @ (best.T @ left)
    energy, made = values.square(), (found.b.double() @ found.a.double()).square().sum()
    rest = (matrix.double() - found.b.double() @ found.a.double()).norm()
    return {
        "residual": float(rest) / float(energy[RANK:].sum().sqrt()) - 1,
        "lacking": 1 - float(made) / float(energy[:RANK].sum()),
        "sine": float(torch.linalg.matrix_norm(outside, 2)),
    }


def factor_cost(device: torch.device) -> list[Ratio]:
    """Rank-16 factors of a 1280 × 1536 block, against the full SVD cut to rank 16. On two spectra: one that falls
    slowly, as i^−0.25, and the flat one of a random Gaussian matrix, where the best directions hardly differ from the
    next ones, so that directions far from them serve nearly as well. Errors are against the exact
    answer, known in float64.
    """
    made = []
    for name, make, limits in (("falling", falling, (0.01, 1e-3, 0.05)), ("flat", flat, (0.01, 0.02, None))):
        matrix, best, values = make(torch.Generator().manual_seed(0), device)
        if name == "falling":
            made.append(
                speed_up(
                    "factors of a block, time",
                    "torch.linalg.svd",
                    lambda matrix=matrix: factor(matrix, RANK),
                    lambda matrix=matrix: torch.linalg.svd(matrix, full_matrices=False),
                    2.0,
                )
            )
        error = errors(matrix, best, values)
        for key, what, rival, limit in zip(
            ("residual", "lacking", "sine"),
            ("share above the residual", "share of the energy that is missing", "sine of the largest angle"),
            ("the best residual of rank 16", "the energy of the best 16 directions", "the best 16 directions"),
            limits,
            strict=True,
        ):
            made.append(
                Ratio(f"factors, {name} spectrum: {what}", rival, error[key], limit, False, [error[key]], error=True)
            )
    return made
