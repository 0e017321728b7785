"""Where a tuning stands, kept in one safetensors file, so that one that was broken off goes on from there.

Tensors as they are, everything else as JSON in the file's metadata, a SHA-256 over the tensors. The file is replaced in
one step: whenever the process or the machine stops, the old one or the new one is there and whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from paraknow.files import SCHEMA_VERSION, replacing

ENDING = ".savepoint.safetensors"
EVERY = 30.0  # seconds between two writings: a tuning that is shorter is not worth one
SHARE = 0.02  # of the time at most goes into writing, however slow the disk is
OTHER = {
    "schema_version": "another version",
    "about": "another model or other settings",
    "given": "other data, other settings or another start",
}
log = logging.getLogger("paraknow")


def unheard(text: str) -> None:
    """A warning for a caller who does not want any."""


class Savepoint:
    """One tuning's file. `about` is what must be the same for it to be taken up: any values that JSON can hold.

    `spent` are the numbers that hooks count up while tuning goes on (see `budget.counting`), and `also` tensors that
    the caller counts up; both are kept with the rest, and put back into the same objects.
    """

    def __init__(
        self,
        path: Path,
        about: dict[str, Any],
        warn: Callable[[str], None] = unheard,
        spent: dict[str, float] | None = None,
        every: float = EVERY,
    ):
        self.path, self.about, self.warn, self.every = path, about, warn, every
        self.spent: dict[str, float] = {} if spent is None else spent
        self.also: dict[str, torch.Tensor] = {}
        self.kept = False  # whether there is a file of this tuning: then its end is written down too
        self.began, self.pause = time.monotonic(), every

    def named(self, name: str) -> Savepoint:
        """One of its own for one of several tunings of the same model."""
        path = self.path.with_name(self.path.name.removesuffix(ENDING) + f".{name}{ENDING}")
        return Savepoint(path, {**self.about, "part": name}, self.warn, self.spent, self.every)

    def due(self) -> bool:
        """Whether it is time to write again."""
        return time.monotonic() - self.began >= self.pause

    def read(self, given: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Tensors and values as `write` left them for the same `about` and `given`; None where there are none.

        A file that is damaged or belongs to something else is not used: a warning says so.
        """
        self._tidy()
        if not self.path.is_file():
            return None
        why = "it is damaged"
        with suppress(OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError):
            with safe_open(self.path, framework="pt") as stream:
                notes = json.loads((stream.metadata() or {})["savepoint"])
                tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (no mapping)
            values, wanted = notes["values"], self._wanted(given)
            odd = [name for name, value in wanted.items() if notes[name] != value]
            if odd:
                why = f"it belongs to {OTHER[odd[0]]}"
            elif notes["sha256"] == _hash(tensors, values):
                self.kept = True
                return tensors, values
        self.warn(f"tuning starts over: {self.path.name} says where it had got to, but {why}.")
        return None

    def _wanted(self, given: str) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, "about": json.loads(json.dumps(self.about)), "given": given}

    def write(self, given: str, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        """Replace the file in one step. Where that fails (no space, no right), tuning goes on and a warning says so."""
        begun = time.monotonic()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        notes = {**self._wanted(given), "values": values, "sha256": _hash(tensors, values)}
        try:
            with replacing(self.path) as temporary:
                save_file(tensors, temporary, metadata={"savepoint": json.dumps(notes, allow_nan=False)})
                with temporary.open("rb+") as stream:
                    os.fsync(stream.fileno())  # the name must not reach the disk before what it names
        except (OSError, SafetensorError) as error:
            self.warn(f"where tuning stands cannot be written down ({error}); broken off, it would start over.")
            self.kept, self.pause = False, float("inf")
            return
        self.kept = True
        self.began = time.monotonic()
        self.pause = max(self.every, (self.began - begun) / SHARE)

    def remove(self) -> None:
        """The model is finished: neither this file nor those of its parts are needed."""
        self._tidy()
        own = self.path.name.removesuffix(ENDING)
        for file in (self.path, *self.path.parent.glob(f"{escape(own)}.*{ENDING}")):
            file.unlink(missing_ok=True)

    def _tidy(self) -> None:
        """Away with what a process that was killed while it wrote has left; a run has one process."""
        for file in self.path.parent.glob(f".{escape(self.path.name)}.*"):
            file.unlink(missing_ok=True)


def _hash(tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> str:
    """SHA-256 over values, and over names, types, shapes and bytes of tensors on the CPU."""
    found = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for name in sorted(tensors):
        update(found, name, tensors[name])
    return found.hexdigest()


def update(found: Any, name: str, tensor: torch.Tensor) -> None:
    """Take one tensor into a hash."""
    found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    plain: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    found.update(memoryview(plain))


def fingerprint(moving: Iterable[torch.Tensor], *given: Any) -> str:
    """SHA-256 over what moves as it is before the first step, and over everything else that JSON can hold."""
    found = hashlib.sha256(json.dumps(given, sort_keys=True).encode())
    for number, parameter in enumerate(moving):
        update(found, str(number), parameter)
    return found.hexdigest()
