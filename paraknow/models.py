"""Load a model and its tokenizer onto a device."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from paraknow import devices, placing
from paraknow.architecture import Architecture
from paraknow.checkpoints import Checkpoint, files_state, find
from paraknow.errors import InputError, ResourceError, RunError

M_MMAP_THRESHOLD, LARGE = -3, 4 * 2**20  # glibc's number of that setting; bytes
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Loaded:
    """A model in evaluation mode with its tokenizer; nothing requires a gradient.

    state: of the files it was loaded from, at that time (checkpoints.files_state); None where it came otherwise.
    layers: where each layer waits (placing.homes); empty: all on the model's device.
    """

    checkpoint: Checkpoint
    model: Any
    tokenizer: Any
    state: tuple | None = None
    layers: tuple[str, ...] = ()

    @property
    def architecture(self) -> Architecture:
        return self.checkpoint.architecture

    @property
    def device(self) -> torch.device:
        """Where its work is done: inputs go there, outputs come from there. The embedding is always there."""
        return self.model.get_input_embeddings().weight.device

    def weight(self, module: str, layer: int) -> torch.Tensor:
        """The weight (out, in) of one matrix, to be read; brought to the device where its layer waits elsewhere."""
        return self.model.get_submodule(self.architecture.path(module, layer)).weight.to(self.device)


def pick_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda` as a device; of several GPUs the one this process works on (devices.current).

    Raises ResourceError where CUDA is asked for and absent, InputError where there is no GPU of that number.
    """
    os.environ.setdefault(devices.ORDER, "PCI_BUS_ID")  # GPUs are counted as `devices` counts them
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ResourceError("device 'cuda': no CUDA device is available here; use cpu or auto.")
    if name == "cpu":
        return torch.device(name)
    number, there = devices.current(), torch.cuda.device_count()
    if number >= there:
        raise InputError(f"{devices.GPU}: there is no GPU {number} here; the last is {there - 1}.")
    return torch.device(name, number)


def load(
    spec: str | Checkpoint,
    dtype: str = "float32",
    device: str = "auto",
    placement: str | Sequence[str] = "device",
    room: Mapping[int | str, int] | None = None,
) -> Loaded:
    """Load demo:NAME, a local folder or a hub id. Only safetensors, never remote code.

    placement, room: where layers wait (placing.homes), or the place of each. Raises InputError (see checkpoints.find),
    ResourceError (no such device, no room on the disk), RunError (the weights do not fit the config, or hold NaN: the
    matrix is named).
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    checkpoint = spec if isinstance(spec, Checkpoint) else find(spec)
    target, state = pick_device(device), files_state(checkpoint)
    _keep_large_tensors_apart()
    try:
        found: Any = AutoModelForCausalLM.from_pretrained(
            checkpoint.folder,
            dtype=DTYPES[dtype],
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        model, report = found
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"model {checkpoint.spec!r} cannot be loaded: {reason}") from error
    # transformers would fill what is missing with random numbers and go on
    lacking = sorted([*report["missing_keys"], *map(str, report["mismatched_keys"])])
    if lacking:
        raise InputError(
            f"model {checkpoint.spec!r}: its weight files lack {lacking[0]} (and {len(lacking) - 1} more)."
        )
    layers = tuple(placing.homes(model, target, placement, room) if isinstance(placement, str) else placement)
    model = placing.place(model, target, layers).eval().requires_grad_(False)
    loaded = Loaded(checkpoint, model, tokenizer, state, layers)
    _check_shapes(loaded)
    _check_finite(loaded)
    return loaded


@cache
def _keep_large_tensors_apart() -> None:
    """Let glibc map every large tensor by itself, once per process.

    On its heap the place of a freed tensor is not taken by the next one of the same size, for that must be aligned: a
    backward pass was measured to take twice the memory it holds.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and sys.platform == "linux":
        mallopt(M_MMAP_THRESHOLD, LARGE)


def _check_shapes(loaded: Loaded) -> None:
    a = loaded.architecture
    for module in a.matrices:
        found = tuple(loaded.weight(module, 0).shape)
        if found != a.shape(module):
            raise RunError(
                f"model {loaded.checkpoint.spec!r}: {module} has shape {found}, config.json says {a.shape(module)}."
            )


@torch.no_grad()
def _check_finite(loaded: Loaded) -> None:
    named = list(loaded.model.named_parameters())
    # the ends of a range with NaN in it are NaN; unlike isfinite, looking for them holds no copy of the largest matrix
    sound = torch.stack([torch.stack(p.aminmax()).isfinite().all().to(loaded.device) for _, p in named]).tolist()
    for (name, _), good in zip(named, sound, strict=True):
        if not good:
            raise RunError(f"model {loaded.checkpoint.spec!r}: the weights of {name} hold NaN or infinity.")


@contextmanager
def gradients_on(model: Any, only: Sequence[Any] | None = None) -> Iterator[None]:
    """All parameters require gradients inside the block, or `only` those; flags, mode and gradients are restored after
    it."""
    before = [(p, p.requires_grad) for p in model.parameters()]
    training, wanted = model.training, None if only is None else {id(p) for p in only}
    try:
        model.eval()
        for parameter, _ in before:
            parameter.requires_grad_(wanted is None or id(parameter) in wanted)
        yield
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)
            parameter.grad = None
        model.train(training)


def held(loaded: Loaded, device: str) -> int:
    """Bytes of a model's parameters that lie on a kind of device (`cpu`, `cuda`)."""
    return sum(p.numel() * p.itemsize for p in loaded.model.parameters() if p.device.type == device)


def release() -> None:
    """Give freed tensors back to the device, and freed host memory back to the system."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    # glibc keeps what large tensors of many sizes leave behind; other C libraries have no such call
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
