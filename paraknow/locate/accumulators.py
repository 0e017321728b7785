"""Sums of scores, one float32 accumulator per parameter: on its device, in host memory, or in a file on disk.

Scores made on a GPU reach accumulators elsewhere through two pinned buffers: while one is added up by a thread of its
own, the other is copied into by a stream of its own, and the backward pass goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from math import prod

import torch

from paraknow import placing

PIECE = 2**22  # numbers of a score that are widened, copied or added up at a time
BUFFERS = 2


class Pinned:
    """Adds pieces of at most `PIECE` numbers to accumulators in host memory, in the order in which they come.

    `device` is where the pieces are; a CPU (for tests) goes the same way, but for the stream and the pinning.
    """

    def __init__(self, device: torch.device):
        cuda = device.type == "cuda"
        self.stream = torch.cuda.Stream(device) if cuda else None
        self.buffers = [torch.empty(PIECE, pin_memory=cuda) for _ in range(BUFFERS)]
        self.pending: list[Future | None] = [None] * BUFFERS
        self.thread = ThreadPoolExecutor(1)
        self.number = 0

    def add(self, score: torch.Tensor, into: torch.Tensor) -> None:
        """`into` += `score`, both flat float32; done when `settle` returns. `score` may be dropped at once.

        Waits until a buffer is free, which also bounds how many scores are kept on the device.
        """
        slot, self.number = self.number % BUFFERS, self.number + 1
        if (before := self.pending[slot]) is not None:
            before.result()
        buffer, copied = self.buffers[slot][: len(score)], None
        if self.stream is None:
            buffer.copy_(score)
        else:
            self.stream.wait_stream(torch.cuda.current_stream(score.device))  # which makes the score
            with torch.cuda.stream(self.stream):
                buffer.copy_(score, non_blocking=True)
                copied = self.stream.record_event()
            score.record_stream(self.stream)  # so that its memory is given to no other tensor before it is copied
        self.pending[slot] = self.thread.submit(_add, buffer, copied, into)

    def settle(self) -> None:
        """Wait until everything is added up; raises what went wrong on the way."""
        for slot, pending in enumerate(self.pending):
            self.pending[slot] = None
            if pending is not None:
                pending.result()


def _add(buffer: torch.Tensor, copied: torch.cuda.Event | None, into: torch.Tensor) -> None:
    if copied is not None:
        copied.synchronize()
    into.add_(buffer)


class Accumulators:
    """Sums of scores by the parameters' names, zero at first. `total` may be read once `settle` has returned."""

    def __init__(self, parameters: Mapping[str, torch.Tensor], where: str):
        self.total = allocate(parameters, where)
        self.pinned: dict[torch.device, Pinned] = {}

    def pieces(self, name: str, gradient: torch.Tensor) -> int:
        """Numbers of a parameter's score to be made and added at a time: all of them where it takes the place of its
        gradient and goes nowhere else."""
        whole = gradient.dtype == torch.float32 and self.total[name].device == gradient.device
        return gradient.numel() if whole else PIECE

    def add(self, name: str, start: int, score: torch.Tensor) -> None:
        """Add a flat piece of a score that begins at number `start`."""
        into = self.total[name].view(-1)[start : start + len(score)]
        if into.device == score.device:
            into.add_(score)
            return
        if score.device not in self.pinned:  # backward passes have a thread per GPU, so each has its own buffers
            self.pinned[score.device] = Pinned(score.device)
        self.pinned[score.device].add(score, into)

    def settle(self) -> None:
        """Wait for what is on its way from a GPU."""
        for pinned in self.pinned.values():
            pinned.settle()

    def close(self) -> None:
        """Let the threads end, whatever happened."""
        for pinned in self.pinned.values():
            pinned.thread.shutdown(wait=True, cancel_futures=True)


@contextmanager
def accumulating(parameters: Mapping[str, torch.Tensor], where: str) -> Iterator[Accumulators]:
    """Accumulators for the block. Their sums (`total`) stay after it; the thread behind them does not."""
    made = Accumulators(parameters, where)
    try:
        yield made
    finally:
        made.close()


def allocate(parameters: Mapping[str, torch.Tensor], where: str) -> dict[str, torch.Tensor]:
    """Zeros of the parameters' shapes by name: on their `device`, on the `host`, or on `disk` in one file.

    Raises ResourceError where the disk has no room.
    """
    if where != "disk":
        place = {name: p.device if where == "device" else torch.device("cpu") for name, p in parameters.items()}
        return {n: torch.zeros(p.shape, dtype=torch.float32, device=place[n]) for n, p in parameters.items()}
    sizes = [prod(p.shape) for p in parameters.values()]
    whole = placing.on_disk(sum(sizes), torch.float32, "locate.accumulators: {size} of sensitivities are to lie")
    return {n: t.view(p.shape) for (n, p), t in zip(parameters.items(), whole.split(sizes), strict=True)}
