"""Maps between two models' spaces and moved neurons as METHODS 2.6 writes them: float64, one neuron at a time."""

from __future__ import annotations

import numpy as np


def procrustes(x, y):
    """s·U·Vᵀ with s = tr Σ / ‖X·U·Vᵀ‖², from the SVD of Xᵀ·Y."""
    u, sigma, vt = np.linalg.svd(x.T @ y, full_matrices=False)
    turn = u @ vt
    length = sum(float(row @ row) for row in x @ turn)
    return sigma.sum() / length * turn


def ridge(x, y, strength):
    """(Xᵀ·X + λ·I)⁻¹·Xᵀ·Y with λ = strength · mean squared singular value of X."""
    penalty = strength * (np.linalg.svd(x, compute_uv=False) ** 2).sum() / x.shape[1]
    return np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)


def streams(model, texts):
    """What FFN and down_proj of every layer read, and what layers put out, text by text: three lists of (tokens, ·)."""
    import torch

    found: dict = {"gate": {}, "q": {}, "down": {}, "residual": {}}

    def keep(name, layer):
        def put(_, given, output):
            value = output if name == "residual" else given[0]
            value = value[0] if isinstance(value, tuple) else value
            found[name].setdefault(layer, []).append(value[0].double().numpy())

        return put

    handles = []
    for layer, block in enumerate(model.model.layers):
        handles.append(block.mlp.gate_proj.register_forward_hook(keep("gate", layer)))
        handles.append(block.self_attn.q_proj.register_forward_hook(keep("q", layer)))
        handles.append(block.mlp.down_proj.register_forward_hook(keep("down", layer)))
        handles.append(block.register_forward_hook(keep("residual", layer)))
    with torch.no_grad():
        for text in texts:
            model(input_ids=torch.tensor([text]), use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def rows(kept, at):
    """The rows (n, ·) at the positions `at` of each text."""
    return np.concatenate([values[list(places)] for values, places in zip(kept, at, strict=True)])


def matrix(model, layer, module):
    block = model.model.layers[layer]
    owner = block.mlp if module in ("gate", "up", "down") else block.self_attn
    return getattr(owner, f"{module}_proj").weight.detach().double().numpy()


def carried(teacher, layer, neuron, n, m):
    """One teacher neuron (g·Nᵀ, u·Nᵀ, v·M): gate row, up row and down column of the student's width."""
    gate, up, down = (matrix(teacher, layer, name) for name in ("gate", "up", "down"))
    return gate[neuron] @ n.T, up[neuron] @ n.T, down[:, neuron] @ m


def swapped(teacher, layer, n, m):
    """The teacher's whole FFN, neuron by neuron: gate, up (f_T, d_S) and down (d_S, f_T)."""
    count = matrix(teacher, layer, "gate").shape[0]
    gate, up, down = zip(*(carried(teacher, layer, i, n, m) for i in range(count)), strict=True)
    return {"gate": np.stack(gate), "up": np.stack(up), "down": np.stack(down, 1)}


def widened(student, place, teacher, layer, chosen, n, m):
    """The student's own neurons, then the chosen ones."""
    own = {name: matrix(student, place, name).copy() for name in ("gate", "up", "down")}
    for neuron in chosen:
        gate, up, down = carried(teacher, layer, neuron, n, m)
        own["gate"] = np.vstack([own["gate"], gate])
        own["up"] = np.vstack([own["up"], up])
        own["down"] = np.hstack([own["down"], down[:, None]])
    return own


def least_used(student, place, activations, count):
    """Student neurons by mean |m| times the norm of their column, the least used first."""
    down = matrix(student, place, "down")
    usage = [np.abs(activations[:, i]).mean() * np.linalg.norm(down[:, i]) for i in range(down.shape[1])]
    return sorted(range(len(usage)), key=lambda i: (usage[i], i))[:count]


def replaced(student, place, teacher, layer, chosen, least, n, m):
    """The student's FFN with its neuron least[i] taken by the teacher's chosen[i]."""
    own = {name: matrix(student, place, name).copy() for name in ("gate", "up", "down")}
    for neuron, old in zip(chosen, least, strict=True):
        own["gate"][old], own["up"][old], own["down"][:, old] = carried(teacher, layer, neuron, n, m)
    return own
