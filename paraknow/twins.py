"""A matrix with its adapters in as few operations as they need: y = W·x + b + [B −B0]·[A; A0]·x (METHODS 2.1).

peft adds every adapter by itself: two products, a multiplication by its scale (here 1) and a sum over all of (tokens,
out) for each, and two more products each on the way back, also for the twin that is frozen. Here both are one pair of
products, the sum is the second one's own, and nothing is computed for what does not move. Equal to peft's up to
rounding, in float32 as peft's own (tests/test_twins.py).

Notation: n tokens; x (n, in); A, A0 (r, in); B, −B0 (out, r).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch


class _Added(torch.autograd.Function):
    """base + x·[A; A0]ᵀ·[B −B0]ᵀ, with gradients for base, x, A and B alone."""

    @staticmethod
    def forward(
        ctx: Any, base: torch.Tensor, x: torch.Tensor, b: torch.Tensor, a: torch.Tensor, *frozen: torch.Tensor
    ) -> torch.Tensor:
        up, down = (torch.cat([b, frozen[0]], 1), torch.cat([a, frozen[1]])) if frozen else (b, a)
        inner = x @ down.T  # (n, 2r)
        ctx.save_for_backward(x, inner, up, down)
        ctx.rank = a.shape[0]
        return torch.addmm(base, inner, up.T)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, inner, up, down = ctx.saved_tensors
        _, for_x, for_b, for_a, *frozen = ctx.needs_input_grad
        r = ctx.rank
        inside = grad @ (up if for_x else up[:, :r])  # (n, 2r), or (n, r) where nothing before it moves
        return (
            grad,
            inside @ down if for_x else None,
            grad.T @ inner[:, :r] if for_b else None,
            inside[:, :r].T @ x if for_a else None,
            *(None for _ in frozen),
        )


def _forward(layer: Any, x: torch.Tensor, *more: Any, **named: Any) -> torch.Tensor:
    """What peft's layer gives, from its adapters in the order they were joined."""
    if layer.disable_adapters or layer.merged or more or named:
        return type(layer).forward(layer, x, *more, **named)
    base = layer.base_layer(x)
    factors = [f for n in layer.active_adapters for f in (layer.lora_B[n].weight, layer.lora_A[n].weight)]
    kind = factors[0].dtype
    flat, rows = base.to(kind).flatten(0, -2), x.to(kind).flatten(0, -2)
    return _Added.apply(flat, rows, *factors).view(base.shape).to(base.dtype)


def join(model: Any, adapters: Sequence[str]) -> None:
    """Let peft's plain linear layers of `model` compute with `adapters`, the moving one and perhaps a frozen twin, at
    once. Other layers (embeddings), and adapters that are scaled or drop something, stay as peft has them; so does
    what is asked of a layer while its adapters are off."""
    from peft.tuners.lora.layer import Linear

    for layer in model.modules():
        if type(layer) is Linear and layer.active_adapters == list(adapters) and _plain(layer, adapters):
            vars(layer)["forward"] = MethodType(_forward, layer)


def _plain(layer: Any, adapters: Sequence[str]) -> bool:
    return all(
        layer.scaling[n] == 1
        and isinstance(layer.lora_dropout[n], torch.nn.Identity)
        and layer.lora_B[n].bias is None
        and n not in layer.lora_variant
        for n in adapters
    )
