"""Widening by explicit loops, one entry at a time."""

from __future__ import annotations

import torch


def wide_weight(weight: torch.Tensor, out_map: torch.Tensor, in_map: torch.Tensor) -> torch.Tensor:
    wide = torch.zeros(len(out_map), len(in_map), dtype=weight.dtype)
    for i, narrow_i in enumerate(out_map.tolist()):
        for j, narrow_j in enumerate(in_map.tolist()):
            wide[i, j] = weight[narrow_i, narrow_j] / in_map.tolist().count(narrow_j)
    return wide
