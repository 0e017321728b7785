"""Control `noise`: the method's start with its directions drawn at random (METHODS 2.5).

Singular values are the method's own, so the start has the same size and spectrum; only what it says is gone.
A plain Gaussian block of equal norm would keep only an eighth of it at rank 16.
"""

from __future__ import annotations

from paraknow.errors import InputError
from paraknow.methods.base import Align, Method, RankSettings, Start


def start(align: Align) -> Start:
    """Random orthonormal U (n, r), V (m, r) with the examined start's own Σ_r; tuned as the method is."""
    import torch

    if own := align.method.variants.get("noise"):
        return own(align)
    examined, report = align.method.start(align.share(0, 2)), align.share(1, 2).progress
    if not examined.factors:
        raise InputError(f"controls: noise has no form for {align.method.name!r}, whose result is no adapter.")
    generator = torch.Generator().manual_seed(align.seed + 1_000_003)
    factors = {}
    for place, (b, a) in examined.factors.items():
        rank = b.shape[1]
        # Σ of B·A without forming it: QR both factors, then a small SVD.
        spectrum = torch.linalg.svdvals(torch.linalg.qr(b.float())[1] @ torch.linalg.qr(a.float().T)[1].T)
        u = torch.linalg.qr(torch.randn(b.shape[0], rank, generator=generator))[0].to(b.device)
        v = torch.linalg.qr(torch.randn(a.shape[1], rank, generator=generator))[0].to(b.device)
        k = min(u.shape[1], v.shape[1], len(spectrum))
        new_b, new_a = torch.zeros_like(b, dtype=torch.float32), torch.zeros_like(a, dtype=torch.float32)
        new_b[:, :k] = u[:, :k] * spectrum[:k]
        new_a[:k] = v[:, :k].T
        factors[place] = (new_b, new_a)
        report(len(factors), len(examined.factors))
    return Start(factors, tuned=examined.tuned)


METHOD = Method(
    name="noise",
    title="Noise of the same size",
    paradigm="control",
    reference="METHODS 2.5",
    needs=(),
    cost="as the method it stands beside",
    start=start,
    locates=True,
    settings=RankSettings,
)
