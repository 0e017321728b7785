"""Make a sibling of a model: fewer neurons and layers, or another basis (METHODS 4.3).

Notation: d hidden, f FFN size, L layers; weights are (out, in); γ the weight of a norm.
"""

from __future__ import annotations

import copy
from typing import Any

import torch


@torch.no_grad()
def _read(model: Any, ids: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """How much each layer turns its stream (L,), and the mean size of each FFN neuron's output, (f,) a layer.

    A layer's turn is 1 − the mean cosine of its input and output; a neuron's size is mean |m| times the norm of its
    column of down_proj.
    """
    turns, sizes, handles = [], [], []
    real = (torch.arange(ids.shape[1]) < lengths[:, None]).to(model.device)  # padding comes after the text

    def turn(_: Any, given: Any, output: Any) -> None:
        after = output[0] if isinstance(output, tuple) else output
        turns.append(1 - torch.nn.functional.cosine_similarity(given[0], after, dim=-1)[real].mean())

    def size(module: Any, given: Any) -> None:
        sizes.append(given[0][real].abs().mean(0) * module.weight.norm(dim=0))

    try:
        for layer in model.model.layers:
            handles.append(layer.register_forward_hook(turn))
            handles.append(layer.mlp.down_proj.register_forward_pre_hook(size))
        model(input_ids=ids.to(model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(turns), sizes


@torch.no_grad()
def prune(model: Any, ffn: int, layers: int, ids: torch.Tensor, lengths: torch.Tensor) -> Any:
    """A copy with the `ffn` largest neurons of each layer and the `layers` layers that turn the stream most.

    Both are judged on the text `ids` (rows, tokens), `lengths` (rows,) of which are no padding.
    Neurons and layers keep their order; the first and the last layer stay.
    """
    turns, sizes = _read(model, ids, lengths)
    turns[0] = turns[-1] = float("inf")
    kept = turns.topk(layers).indices.sort().values.tolist() if layers > 1 else [0]
    small = copy.deepcopy(model)
    small.model.layers = torch.nn.ModuleList(small.model.layers[i] for i in kept)
    for place, (layer, old) in enumerate(zip(small.model.layers, kept, strict=True)):
        layer.self_attn.layer_idx = place
        best = sizes[old].topk(ffn).indices.sort().values
        mlp = layer.mlp
        for name in ("gate_proj", "up_proj"):
            getattr(mlp, name).weight = torch.nn.Parameter(getattr(mlp, name).weight[best].clone())
        mlp.down_proj.weight = torch.nn.Parameter(mlp.down_proj.weight[:, best].clone())
        mlp.gate_proj.out_features = mlp.up_proj.out_features = mlp.down_proj.in_features = ffn
    small.config.num_hidden_layers, small.config.intermediate_size = layers, ffn
    if getattr(small.config, "layer_types", None):
        small.config.layer_types = [small.config.layer_types[i] for i in kept]
    return small


@torch.no_grad()
def rotate(model: Any, seed: int) -> Any:
    """A copy that computes the same function with its residual stream turned by a random rotation Q (d, d).

    γ of every norm is folded into the matrices that read it (an RMS norm without weights commutes with rotations);
    then readers become W·Q and writers Qᵀ·W, for rows x → x·Q.
    """
    turned = copy.deepcopy(model)
    inner = turned.model
    generator = torch.Generator().manual_seed(seed)
    d = turned.config.hidden_size
    q = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0].to(model.device)

    def set_weight(module: Any, value: torch.Tensor) -> None:
        module.weight.copy_(value.to(module.weight.dtype))

    def read(module: Any, norm: Any) -> None:
        set_weight(module, (module.weight.double() * norm.weight.double()) @ q)

    for layer in inner.layers:
        for name in ("q_proj", "k_proj", "v_proj"):
            read(getattr(layer.self_attn, name), layer.input_layernorm)
        for name in ("gate_proj", "up_proj"):
            read(getattr(layer.mlp, name), layer.post_attention_layernorm)
        for module in (layer.self_attn.o_proj, layer.mlp.down_proj):
            set_weight(module, q.T @ module.weight.double())
        layer.input_layernorm.weight.fill_(1.0)
        layer.post_attention_layernorm.weight.fill_(1.0)
    read(turned.lm_head, inner.norm)
    inner.norm.weight.fill_(1.0)
    set_weight(inner.embed_tokens, inner.embed_tokens.weight.double() @ q)
    return turned
