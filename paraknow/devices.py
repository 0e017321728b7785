"""The machine's GPUs and free memory, asked of NVIDIA's management library and psutil (no torch).

That library counts all GPUs, in the order of their places on the bus; torch counts those that CUDA_VISIBLE_DEVICES
leaves, in the order it names them. Here a GPU's number is always torch's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import psutil

from paraknow.errors import InputError, ResourceError

GPU = "PARAKNOW_GPU"  # the number of the GPU a process works on
VISIBLE = "CUDA_VISIBLE_DEVICES"
ORDER = "CUDA_DEVICE_ORDER"  # unless it says PCI_BUS_ID, CUDA puts the fastest first


@dataclass(frozen=True)
class Gpu:
    """One GPU, by the number torch gives it, and its memory in bytes."""

    index: int
    uuid: str
    name: str
    free: int
    total: int


def gpus() -> list[Gpu]:
    """The GPUs that torch can use here, in its order; none where torch is a CPU build or there is no driver."""
    if version("torch").endswith("+cpu"):
        return []
    import pynvml

    try:
        pynvml.nvmlInit()
        try:
            handles = [pynvml.nvmlDeviceGetHandleByIndex(k) for k in range(pynvml.nvmlDeviceGetCount())]
            return [_read(k, handle) for k, handle in enumerate(_visible(handles, os.environ.get(VISIBLE)))]
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return []


def _read(index: int, handle: Any) -> Gpu:
    import pynvml

    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    uuid, name = (str(ask(handle)) for ask in (pynvml.nvmlDeviceGetUUID, pynvml.nvmlDeviceGetName))
    return Gpu(index, uuid, name, int(memory.free), int(memory.total))


def _visible(handles: list[Any], named: str | None) -> Iterable[Any]:
    """The handles that CUDA_VISIBLE_DEVICES names. As CUDA reads it: what no GPU answers to ends the list, and a GPU
    named twice leaves none."""
    import pynvml

    if named is None:
        return handles
    found: dict[str, Any] = {}
    for entry in (part.strip() for part in named.split(",")):
        matching: list[Any] = []
        if entry.isdecimal():
            matching = handles[int(entry) : int(entry) + 1]
        elif entry.startswith("GPU-"):  # the beginning of a UUID is enough where only one begins so
            matching = [h for h in handles if str(pynvml.nvmlDeviceGetUUID(h)).startswith(entry)]
        elif entry.startswith("MIG-"):
            with suppress(pynvml.NVMLError):
                matching = [pynvml.nvmlDeviceGetHandleByUUID(entry)]
        if len(matching) != 1:
            break
        uuid = str(pynvml.nvmlDeviceGetUUID(matching[0]))
        if uuid in found:
            return []
        found[uuid] = matching[0]
    return found.values()


def current() -> int:
    """The number of the GPU this process works on: PARAKNOW_GPU, else 0. Raises InputError where it is no number."""
    text = os.environ.get(GPU, "0").strip() or "0"
    if not text.isdecimal():
        raise InputError(f"{GPU}: {text!r} is no number of a GPU; 0 is the first.")
    return int(text)


def free_bytes(device: str) -> tuple[str, int]:
    """(`cuda` or `cpu`: what `device` means here, bytes free on it); of the GPUs, the one this process works on.

    Raises ResourceError where cuda is asked for and there is none, InputError for a number that no GPU has.
    """
    if device != "cpu":
        found, number = gpus(), current()
        if number < len(found):
            return "cuda", found[number].free
        if found:
            raise InputError(f"{GPU}: there is no GPU {number} here; the last is {len(found) - 1}.")
    if device == "cuda":
        raise ResourceError("device 'cuda': no CUDA device is available here; use cpu or auto.")
    return "cpu", psutil.virtual_memory().available
