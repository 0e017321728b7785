"""Geometry of what is to be moved against what is there: norms, cosines, subspaces, spectra, interference.

METHODS 3.2 and 3.4. Notation: ΔW = B·A with B (n, r), A (r, m); W (n, m) the student's matrix. The cosine of BA and
W − BA is what the Neural Incompatibility paper reads as incompatibility; where BA ⟂ W it is
−‖BA‖/√(‖W‖² + ‖BA‖²) by arithmetic alone, so it is shown beside that.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from paraknow.locate.blocks import EXACT_SIDE, Factors, factor

ENERGY = 0.9


def geometry(b: torch.Tensor, a: torch.Tensor, weight: torch.Tensor, own: Factors | None = None) -> dict[str, float]:
    """How B·A lies to W, in float64; all NaN where one of them is zero.

    norm_ratio ‖BA‖/‖W‖; cos (BA, W); cos_rest (BA, W − BA) with cos_rest_expected, its value if BA ⟂ W; cos_sd, the
    spread of the cosine of random directions, 1/√(n·m); left_overlap and right_overlap, the mean squared cosine of
    the principal angles between the top-r column (row) spaces of BA and W, with r/n (r/m) expected of random ones.
    `own` are W's top-r factors if they are known already.
    """
    delta, w, rank = (b.double() @ a.double()), weight.double(), b.shape[1]
    n, m = w.shape
    names = "norm_ratio cos cos_rest cos_rest_expected cos_sd left_overlap left_expected right_overlap right_expected"
    size, whole = float(delta.norm()), float(w.norm())
    if not size or not whole:
        return dict.fromkeys(names.split(), math.nan)
    rest = w - delta
    inner, left_over = float((delta * w).sum()), float(rest.norm())
    own = own or factor(weight, rank)
    ours, theirs = _spaces(b, a), _spaces(own.b, own.a)
    overlaps = [float((x.T @ y).square().sum()) / rank for x, y in zip(ours, theirs, strict=True)]
    return {
        "norm_ratio": size / whole,
        "cos": inner / (size * whole),
        "cos_rest": (inner - size**2) / (size * left_over) if left_over > 1e-9 * whole else math.nan,
        "cos_rest_expected": -size / math.hypot(whole, size),
        "cos_sd": 1 / math.sqrt(n * m),
        "left_overlap": overlaps[0],
        "left_expected": rank / n,
        "right_overlap": overlaps[1],
        "right_expected": rank / m,
    }


def _spaces(b: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthonormal bases of the column space (n, r) and the row space (m, r) of B·A, B and A of full rank."""
    return torch.linalg.qr(b.double())[0], torch.linalg.qr(a.double().T)[0]


def spectrum(weight: torch.Tensor) -> torch.Tensor:
    """All singular values, largest first. Where the shorter side is above 1024: roots of the smaller Gram matrix."""
    w = weight.float()
    if min(w.shape) <= EXACT_SIDE:
        return torch.linalg.svdvals(w)
    gram = w @ w.T if w.shape[0] < w.shape[1] else w.T @ w
    return torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().flip(0)


def effective_rank(values: torch.Tensor) -> float:
    """exp of the entropy of the normalised singular values (Roy and Vetterli, 2007); NaN for a zero matrix."""
    share = values.double() / values.double().sum()
    return float(torch.exp(-torch.special.xlogy(share, share).sum()))


def top_directions(inputs: torch.Tensor, energy: float = ENERGY) -> torch.Tensor:
    """Fewest orthonormal directions (m, k) that hold `energy` of the inputs' (N, m) summed squares (uncentred)."""
    _, s, vt = torch.linalg.svd(inputs.double() if not inputs.is_cuda else inputs.float(), full_matrices=False)
    held = np.cumsum(s.double().square().cpu().numpy())
    k = int(np.searchsorted(held, energy * held[-1] * (1 - 1e-12))) + 1
    return vt[: min(k, len(s))].T


def known_share(b: torch.Tensor, a: torch.Tensor, directions: torch.Tensor) -> dict[str, float]:
    """How much of ‖BA‖² acts on inputs in the span of `directions` (m, k); see `interference`. NaN where BA is zero."""
    m, k = directions.shape
    b, a = b.to(directions.dtype), a.to(directions.dtype)
    inner, inside = b.T @ b, a @ directions
    whole = float((inner @ a * a).sum())
    share = float((inner @ inside * inside).sum()) / whole if whole else math.nan
    return {"interference": share, "interference_expected": k / m, "directions": k}


def interference(b: torch.Tensor, a: torch.Tensor, inputs: torch.Tensor, energy: float = ENERGY) -> dict[str, float]:
    """How much of ΔW's energy meets what the student already knows (after KORE; METHODS 3.4).

    `inputs` (N, m) are the matrix's inputs on known text. interference: the share of ‖ΔW‖² in their top subspace,
    the fewest `directions` that hold `energy` of them; interference_expected: that of a random ΔW, directions/m.
    """
    return known_share(b, a, top_directions(inputs, energy))
