"""Which teacher layers feed the student's (METHODS 1.2). No torch."""

from __future__ import annotations

import random
from collections.abc import Sequence


def choose_layers(scores: Sequence[float], count: int, by: str, seed: int = 0) -> list[int]:
    """`count` teacher layers in index order; the k-th feeds student layer k.

    `by`: sensitivity (highest `scores`), first, last, even, random; `matched` is worked out by stitching. Raises
    ValueError for an unknown name or more layers than there are.
    """
    total = len(scores)
    if count > total:
        raise ValueError(f"cannot choose {count} of {total} layers")
    if by == "sensitivity":
        chosen = sorted(range(total), key=lambda k: (-scores[k], k))[:count]
    elif by == "first":
        chosen = list(range(count))
    elif by == "last":
        chosen = list(range(total - count, total))
    elif by == "even":
        chosen = [round(k * (total - 1) / max(1, count - 1)) for k in range(count)]
    elif by == "random":
        chosen = random.Random(seed).sample(range(total), count)
    else:
        raise ValueError(f"unknown layer choice {by!r}")
    return sorted(chosen)
