"""torch's random numbers from a seed of one's own, without a trace in anybody else's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Inside, torch draws from `seed` on the CPU and on every GPU that is in use; afterwards it goes on as before.

    torch.manual_seed would seed all GPUs, those whose state nobody has kept too, and leave a seed behind for one that
    was not used yet.
    """
    used = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=used):
        torch.default_generator.manual_seed(seed)
        if used:
            torch.cuda.manual_seed_all(seed)
        yield
