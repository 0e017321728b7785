"""Cut student-sized blocks from teacher matrices (METHODS 1.3) and factor them.

Notation: a teacher matrix is (N, M), the student's (n, m), S is a sensitivity map (N, M).
Blocks ignore head borders: rows of q, k, v and columns of o from different heads may be mixed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from paraknow import chance

WINDOWS = ("window", "random_window")


@dataclass(frozen=True)
class Block:
    """Where a block lies in its teacher matrix.

    Windows: rows [row, row+n), columns [col, col+m). Otherwise `rows` and `cols` are index tensors, and for
    random_entries `rows` are n·m flat indices in order (`cols` is empty).
    """

    module: str
    teacher_layer: int
    student_layer: int
    structure: str
    shape: tuple[int, int]
    row: int
    col: int
    rows: torch.Tensor | None = None
    cols: torch.Tensor | None = None
    share: float = float("nan")

    def cut(self, matrix: torch.Tensor) -> torch.Tensor:
        """The block (n, m) of a teacher matrix (N, M)."""
        n, m = self.shape
        if self.structure in WINDOWS:
            return matrix[self.row : self.row + n, self.col : self.col + m]
        assert self.rows is not None and self.cols is not None
        rows = self.rows.to(matrix.device)
        if self.structure == "random_entries":
            return matrix.flatten()[rows].reshape(n, m)
        return matrix[rows][:, self.cols.to(matrix.device)]


def best_window(scores: torch.Tensor, n: int, m: int) -> tuple[int, int]:
    """Top-left corner of the contiguous (n, m) window of (N, M) `scores` with the largest sum.

    A summed-area table in float64 gives all (N−n+1)(M−m+1) offsets at once; ties go to the first in row order. It is
    made in place: the largest matrices of large models take gigabytes here.
    """
    table = scores.double()
    table = (table.clone() if table is scores else table).cumsum_(0).cumsum_(1)  # sums over [0, i] × [0, j]
    sums = table[n - 1 :, m - 1 :].clone()
    sums[1:] -= table[:-n, m - 1 :]
    sums[:, 1:] -= table[n - 1 :, :-m]
    sums[1:, 1:] += table[:-n, :-m]
    best = int(sums.argmax())
    return best // sums.shape[1], best % sums.shape[1]


def best_lines(scores: torch.Tensor, count: int, axis: int) -> torch.Tensor:
    """The `count` rows (axis 0) or columns (axis 1) of largest mean score, in index order."""
    means = scores.double().mean(1 - axis)
    return means.topk(count).indices.sort().values


def choose_block(
    module: str,
    layers: tuple[int, int],
    scores: torch.Tensor | None,
    full: tuple[int, int],
    shape: tuple[int, int],
    structure: str,
    generator: torch.Generator,
) -> Block:
    """Choose the block of one matrix. `layers` is (teacher, student), `full` (N, M), `shape` (n, m).

    `scores` may be None for random structures. For embed and lm_head all rows (token ids) stay and only
    hidden columns are chosen. Random structures draw from `generator` (CPU). Raises ValueError where the
    student's matrix is larger, or scores are needed and missing.
    """
    (total_rows, total_cols), (n, m) = full, shape
    if n > total_rows or m > total_cols:
        raise ValueError(f"{module}: the teacher's {full} is smaller than the student's {shape}")
    if scores is None and not structure.startswith("random"):
        raise ValueError(f"{module}: structure {structure} needs sensitivities")
    row = col = 0
    rows = cols = None
    if structure == "window":
        row, col = best_window(scores, n, m)  # type: ignore[arg-type]
    elif structure == "random_window":
        row = int(torch.randint(total_rows - n + 1, (), generator=generator))
        col = int(torch.randint(total_cols - m + 1, (), generator=generator))
    elif structure == "rows_columns":
        rows, cols = best_lines(scores, n, 0).cpu(), best_lines(scores, m, 1).cpu()  # type: ignore[arg-type]
    elif structure == "random_entries" and n == total_rows and module in ("embed", "lm_head"):
        # rows are token ids and must stay, so "entries" can only mean hidden columns
        structure = "rows_columns"
        rows, cols = torch.arange(n), torch.randperm(total_cols, generator=generator)[:m].sort().values
    elif structure == "random_entries":
        rows = torch.randperm(total_rows * total_cols, generator=generator)[: n * m].sort().values
        cols = torch.empty(0, dtype=torch.long)
    else:
        raise ValueError(f"unknown structure {structure!r}")
    block = Block(module, *layers, structure, shape, row, col, rows, cols)
    return block if scores is None else replace(block, share=share_of(block, scores))


def share_of(block: Block, scores: torch.Tensor) -> float:
    """The share of a map's sum (N, M) that lies in a block."""
    return float(block.cut(scores).sum(dtype=torch.float64) / scores.sum(dtype=torch.float64).clamp_min(1e-300))


@dataclass(frozen=True)
class Factors:
    """B (n, r) and A (r, m) with B·A ≈ the block; `residual` is ‖block − BA‖ / ‖block‖."""

    b: torch.Tensor
    a: torch.Tensor
    residual: float


EXACT_SIDE = 1024


def factor(block: torch.Tensor, rank: int, seed: int = 0) -> Factors:
    """Best rank-r factors B = U_r Σ_r, A = V_rᵀ in float32 (METHODS 2.1).

    Exact SVD where the shorter side is at most 1024 or the rank a large part of it, else `torch.svd_lowrank` with 12
    power iterations on 2r + 8 directions. So many, because where a spectrum falls slowly fewer leave the last of the r
    directions far from the right ones, though the residual hardly shows it.
    Raises ValueError for a rank above the shorter side.
    """
    if rank > min(block.shape):
        raise ValueError(f"rank {rank} is above the shorter side of {tuple(block.shape)}")
    block = block.float()
    directions = 2 * rank + 8
    if min(block.shape) <= max(EXACT_SIDE, 4 * directions):
        u, s, vh = torch.linalg.svd(block, full_matrices=False)
        u, s, vh = u[:, :rank], s[:rank], vh[:rank]
    else:
        with chance.drawn_from(seed):
            u, s, v = torch.svd_lowrank(block, q=directions, niter=12)
        u, s, vh = u[:, :rank], s[:rank], v[:, :rank].T
    b = u * s
    norm, rest = torch.stack([block.norm(), (block - b @ vh).norm()]).tolist()
    residual = rest / norm if norm else 0.0
    return Factors(b.contiguous(), vh.contiguous(), residual)
