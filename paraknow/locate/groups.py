"""Consecutive layers in groups whose sensitivities are taken one after the other (no torch).

A model is a row of units: 0 the embedding, 1 … L its layers, L + 1 the final norm with lm_head. Unit u lies at place
u − 1 of every table. Sizes are numbers of parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

from paraknow.architecture import Architecture


def unit_sizes(a: Architecture, parameters: int) -> list[int]:
    """Parameters of every unit of a model with so many; its layers are alike, biases and norms included."""
    embedding = a.vocabulary * a.hidden
    head = a.hidden + (0 if a.tied else embedding)  # a tied lm_head is the embedding
    layer = -(-max(0, parameters - embedding - head) // a.layers)
    return [embedding, *[layer] * a.layers, head]


def split(sizes: Sequence[int], count: int) -> list[range]:
    """At most `count` groups of consecutive units, filled from the first on, whose largest is as small as can be.

    So the largest never grows with `count`, and no group is larger than needed where one unit is most of the model.
    """
    low, high = max(sizes), sum(sizes)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_filled(sizes, middle)) <= count else (middle + 1, high)
    return _filled(sizes, low)


def _filled(sizes: Sequence[int], most: int) -> list[range]:
    """Groups of at most that size, each as long as it can be."""
    found, begin, held = [], 0, 0
    for unit, size in enumerate(sizes):
        if held + size > most:
            found.append(range(begin, unit))
            begin, held = unit, 0
        held += size
    return [*found, range(begin, len(sizes))]


def largest(a: Architecture, parameters: int, count: int) -> int:
    """Parameters of the largest of `count` groups."""
    sizes = unit_sizes(a, parameters)
    return max(sum(sizes[u] for u in group) for group in split(sizes, count))


def flowed_through(a: Architecture, multiplied: int, parameters: int, count: int, recomputed: bool) -> int:
    """Parameters that gradients flow through, summed over the passes of all groups: a group's backward pass ends at
    its lowest unit. `multiplied` of the model's `parameters` are multiplied with tokens at all.

    With `recomputed`, those of layers that are read a second time on the way count too.
    """
    sizes = unit_sizes(a, parameters)
    layers = sum(sizes[1:-1])
    below = [sum(sizes[1 : group[0]]) for group in split(sizes, count)]
    return sum(multiplied - b + (layers - b if recomputed else 0) for b in below)
