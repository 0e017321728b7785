"""Models that do not fit on a device: layers wait elsewhere and are brought to it for their own work.

Elsewhere is another GPU, host memory, or a file that the system maps into memory. All work is done on one device, and a
layer's weights stay ordinary parameters where they wait: they can be read, copied and changed, and gradients reach them
there. (accelerate's own hooks leave parameters without values, which have no gradients; it says here what goes where.)
"""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from paraknow.errors import ResourceError
from paraknow.files import scratch

HOST, DISK = "cpu", "disk"


class _Inner(torch.nn.Module):
    """A layer as its class wrote it, behind a name of its own: what stands in for its forward calls this."""

    def __init__(self, layer: torch.nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, *given: Any, **named: Any) -> Any:
        return type(self.layer).forward(self.layer, *given, **named)


def _brought(inner: _Inner, device: torch.device, *given: Any, **named: Any) -> Any:
    """The layer's forward pass with its parameters copied to `device`, where they are not kept afterwards.

    The backward pass brings each matrix again when it comes to it, and its gradient goes where the parameter waits.
    """
    return _worked(inner, device, True, *given, **named)


def _worked(inner: _Inner, device: torch.device, forgets: bool, *given: Any, **named: Any) -> Any:
    """The same; unless it `forgets` them, what the backward pass needs of the copies is kept for it."""
    sources = {**dict(inner.named_parameters()), **dict(inner.named_buffers())}
    copies = {name: tensor.to(device, copy=True) for name, tensor in sources.items()}
    if not (forgets and torch.is_grad_enabled()):
        return torch.func.functional_call(inner, copies, given, named)
    origin = {copy.untyped_storage().data_ptr(): sources[name] for name, copy in copies.items()}

    def pack(tensor: torch.Tensor) -> Any:
        source = origin.get(tensor.untyped_storage().data_ptr())
        if source is None:
            return tensor
        return source, tensor.size(), tensor.stride(), tensor.storage_offset()

    def unpack(kept: Any) -> torch.Tensor:
        if isinstance(kept, torch.Tensor):
            return kept
        source, *view = kept
        return source.detach().to(device, copy=True).as_strided(*view)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return torch.func.functional_call(inner, copies, given, named)


def homes(model: Any, device: torch.device, how: str, room: Mapping[int | str, int] | None = None) -> list[str]:
    """Where each layer of a model waits: on `device` itself, on another GPU, in host memory or on disk.

    how: `device`, all of them there; `offload`, none of them: in host memory, or on disk where the device is the host;
    `auto`, as many as `room` has bytes for, by place (a GPU's number, `cpu`), and the rest on disk.
    """
    count = len(model.model.layers)
    if how == "device":
        return [str(device)] * count
    if how == "offload":
        return [HOST if device.type == "cuda" else DISK] * count
    from accelerate import infer_auto_device_map

    kinds = list(model._no_split_modules or [])
    found = infer_auto_device_map(model, max_memory=dict(room or {}), no_split_module_classes=kinds)
    return [_name(_at(found, f"model.layers.{layer}")) for layer in range(count)]


def _at(found: Mapping[str, int | str], path: str) -> int | str:
    """A module's place in a device map, which names it or something it is part of."""
    while path not in found:
        if not path:
            return found[""]
        path = path.rpartition(".")[0]
    return found[path]


def _name(place: int | str) -> str:
    return f"cuda:{place}" if isinstance(place, int) else place


@torch.no_grad()
def place(model: Any, device: torch.device, layers: Sequence[str]) -> Any:
    """Move a model: layer k waits at `layers[k]`, everything else goes to `device`.

    Raises ResourceError where the disk has no room for what is to wait there.
    """
    for tensor in _outside(model):
        tensor.data = tensor.data.to(device)
    for layer, home in zip(model.model.layers, layers, strict=True):
        for tensor in (*layer.parameters(), *layer.buffers()):
            tensor.data = _on_disk(tensor.data) if home == DISK else tensor.data.to(home)
        if home != str(device):
            layer.forward = functools.partial(_brought, _Inner(layer), device)
    return model


def _outside(model: Any) -> Iterator[torch.Tensor]:
    """Parameters and buffers that no layer owns."""
    inside = {id(t) for layer in model.model.layers for t in (*layer.parameters(), *layer.buffers())}
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in inside:
            yield tensor


def _on_disk(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers in a file that is mapped into memory."""
    made = on_disk(tensor.numel(), tensor.dtype, "placement: {size} of weights are to wait")
    return made.view(tensor.shape).copy_(tensor)


def on_disk(count: int, dtype: torch.dtype, refusal: str) -> torch.Tensor:
    """So many zeros in a file that is mapped into memory. It has no name, so it goes with the last who uses it.

    Raises ResourceError where the disk has no room for them, beginning with `refusal`, whose {size} is filled in.
    """
    folder, need = scratch(), count * dtype.itemsize
    if need > (free := shutil.disk_usage(folder).free):
        raise ResourceError(
            f"{refusal.format(size=f'{need / 2**30:.1f} GiB')} in {folder}, which has {free / 2**30:.1f} GiB free; "
            "set TMPDIR to a folder on a larger disk."
        )
    handle, name = tempfile.mkstemp(prefix="paraknow-", dir=folder)
    try:
        os.ftruncate(handle, max(1, need))
        return torch.from_file(name, shared=True, size=count, dtype=dtype)
    finally:
        os.close(handle)
        os.unlink(name)


def is_placed(model: Any) -> bool:
    """Whether any layer waits elsewhere."""
    return any(getattr(vars(layer).get("forward"), "func", None) is _brought for layer in model.model.layers)


@contextmanager
def recomputed(model: Any) -> Iterator[None]:
    """Inside the block layers keep only what they read: the backward pass has each work once more when it comes to it.

    transformers' own gradient checkpointing works in training mode alone, where dropout would be on. A layer that waits
    elsewhere is brought once for its forward and once for its backward pass.
    """
    before = [(layer, vars(layer).get("forward")) for layer in model.model.layers]
    try:
        for layer, placed in before:
            # of hooks on saved tensors the innermost act: those of a layer that forgets its copies would keep the rest
            work = functools.partial(_worked, *placed.args, False) if placed else layer.forward
            layer.forward = functools.partial(checkpoint, work, use_reentrant=False, preserve_rng_state=False)
        yield
    finally:
        for layer, placed in before:
            vars(layer).pop("forward", None)
            if placed:
                layer.forward = placed


@contextmanager
def away(models: Sequence[Any]) -> Iterator[None]:
    """Models in host memory, wherever their parameters were; these come back to their places."""
    moved = [(t, t.device) for m in models for t in (*m.parameters(), *m.buffers()) if t.device.type != "cpu"]
    try:
        for tensor, _ in moved:
            tensor.data = tensor.data.to(HOST)
        yield
    finally:
        for tensor, device in moved:
            tensor.data = tensor.data.to(device)
