"""How many CPU threads a point of a sweep computes with: the same number one after the other and side by side.

Sums of floats depend in their last digits on how many threads share them, and tuning carries that on. So the number is
the sweep's, decided from its models and this machine alone, and both ways of carrying points out use it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from paraknow.checks import Checked

SMALL = 10_000_000  # parameters of a pair; up to here points side by side bring more than threads


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decide(checked: Sequence[Checked]) -> int:
    """Threads of every point: $OMP_NUM_THREADS where it is set; else 1 for small models, all cores for others."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    if said.isdecimal() and int(said):
        return int(said)
    largest = max(about.teacher.parameters + about.student.parameters for about in checked)
    return 1 if largest <= SMALL else cores()


@contextmanager
def limited(count: int) -> Iterator[None]:
    """Compute with `count` threads in here, whatever this process was started with."""
    import scipy.linalg  # noqa: F401 (loaded by now, so that its library is limited too)
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)
