"""A teacher whose knowledge is known to be movable: a function-preserving widening of a student.

Every hidden direction, attention head and FFN neuron is doubled and its inputs are halved, which leaves
the function as it was (HyperCloning, arXiv 2409.12903), then all of them are permuted. Halving is exact in
bfloat16, so undoing the widening returns the narrow weights bit by bit: `narrow_weight` is the answer key
that the `oracle` control uses.

Notation: an index map of length 2n gives, for each wide index, the narrow index it is a copy of.
Weights are (out, in).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

MAP_FILE = "clone_map.safetensors"


@dataclass(frozen=True)
class CloneMap:
    """Index maps of a widening: hidden (2d,), ffn (2f,), query rows (2h·e,), key/value rows (2g·e,)."""

    hidden: torch.Tensor
    ffn: torch.Tensor
    query: torch.Tensor
    key_value: torch.Tensor

    def sides(self, module: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The (out, in) index maps of one projection (q, k, v, o, gate, up, down)."""
        out = {"q": self.query, "k": self.key_value, "v": self.key_value, "gate": self.ffn, "up": self.ffn}
        into = {"o": self.query, "down": self.ffn}
        return out.get(module, self.hidden), into.get(module, self.hidden)

    def save(self, folder: Path) -> None:
        save_file({k: v.contiguous() for k, v in vars(self).items()}, folder / MAP_FILE)

    @classmethod
    def load(cls, folder: Path) -> CloneMap:
        return cls(**load_file(folder / MAP_FILE))


def draw_map(hidden: int, ffn: int, heads: int, kv_heads: int, head_dim: int, seed: int) -> CloneMap:
    """Random doubling maps for narrow sizes. Query heads stay with the key/value head that serves them."""
    generator = torch.Generator().manual_seed(seed)

    def shuffled(values: torch.Tensor) -> torch.Tensor:
        return values[torch.randperm(len(values), generator=generator)]

    def rows(head_order: torch.Tensor) -> torch.Tensor:
        return (head_order[:, None] * head_dim + torch.arange(head_dim)).flatten()

    kv_order = shuffled(torch.arange(kv_heads).repeat(2))
    group = heads // kv_heads
    query_order = torch.cat([shuffled(kv * group + torch.arange(group)) for kv in kv_order])
    return CloneMap(
        hidden=shuffled(torch.arange(hidden).repeat(2)),
        ffn=shuffled(torch.arange(ffn).repeat(2)),
        query=rows(query_order),
        key_value=rows(kv_order),
    )


def wide_weight(weight: torch.Tensor, out_map: torch.Tensor, in_map: torch.Tensor) -> torch.Tensor:
    """(n, m) → (2n, 2m): both copies of an input carry half of its weight."""
    return weight[out_map][:, in_map] / 2


def narrow_weight(weight: torch.Tensor, out_map: torch.Tensor, in_map: torch.Tensor) -> torch.Tensor:
    """(2n, 2m) → (n, m): the exact inverse of `wide_weight`."""
    summed = torch.zeros(weight.shape[0], len(in_map) // 2, dtype=weight.dtype, device=weight.device)
    summed.index_add_(1, in_map.to(weight.device), weight)
    first = torch.empty(len(out_map) // 2, dtype=torch.long)
    first[out_map.flip(0)] = torch.arange(len(out_map)).flip(0)  # the first copy of each narrow row wins
    return summed[first.to(weight.device)]


@torch.no_grad()
def widen(model: Any, seed: int) -> tuple[Any, CloneMap]:
    """A Llama of twice the width that computes the same logits as `model`, and the maps that undo it."""
    narrow = model.config
    mapping = draw_map(
        narrow.hidden_size,
        narrow.intermediate_size,
        narrow.num_attention_heads,
        narrow.num_key_value_heads,
        narrow.head_dim,
        seed,
    )
    config = type(narrow)(
        **{
            **narrow.to_dict(),
            "hidden_size": 2 * narrow.hidden_size,
            "intermediate_size": 2 * narrow.intermediate_size,
            "num_attention_heads": 2 * narrow.num_attention_heads,
            "num_key_value_heads": 2 * narrow.num_key_value_heads,
        }
    )
    wide = type(model)(config).to(model.dtype)
    weights = model.state_dict()
    result = {}
    for name, weight in weights.items():
        part = name.split(".")[-2]
        if part.endswith("_proj"):
            result[name] = wide_weight(weight, *mapping.sides(part.removesuffix("_proj")))
        elif part == "lm_head":
            result[name] = weight[:, mapping.hidden] / 2
        else:  # embedding (V, d) and norms (d,): copied along the hidden axis
            result[name] = weight[..., mapping.hidden]
    wide.load_state_dict(result)
    return wide, mapping
