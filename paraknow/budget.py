"""What making a model cost, counted by hooks and not declared by methods, so that budgets can be compared.

N: a model's parameters without its embedding table (which is looked up, not multiplied), lm_head included. A token
costs 2·N floating-point operations forward, 2·N more where gradients flow back through it, and 2 more for every
parameter that is trained. Attention scores are left out (they are small beside N at these lengths); padding counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from paraknow.models import Loaded

FIELDS = ("examples", "steps", "trainable", "added", "teacher_flops", "student_flops")
SLACK = 1.05  # a method that used at most so much more than the examined one is not marked


@contextmanager
def counting(teacher: Loaded, student: Loaded) -> Iterator[dict[str, float]]:
    """Counts what both models compute inside the block into {"teacher_flops": …, "student_flops": …}.

    Copies made inside the block count too. Hooks are removed afterwards.
    """
    import torch

    spent = {"teacher_flops": 0.0, "student_flops": 0.0}
    handles = []

    def counter(name: str, outside: int, head: torch.Tensor) -> Any:
        def count(module: Any, given: Any, named: dict[str, Any]) -> None:
            ids = named.get("input_ids", given[0] if given else None)
            tokens = ids.numel() if ids is not None else named["inputs_embeds"].shape[:-1].numel()
            held = list(module.named_parameters())  # read here: a copy may be wider than the model was
            size = outside + sum(p.numel() for n, p in held if "lora_" not in n and not n.startswith("embed_tokens."))
            work = size
            if torch.is_grad_enabled():
                trained = sum(p.numel() for _, p in held if p.requires_grad)
                work += size - _below(held) + trained + (head.numel() if head.requires_grad else 0)
            spent[name] += 2.0 * work * tokens

        return count

    try:
        for name, loaded in (("teacher_flops", teacher), ("student_flops", student)):
            a = loaded.architecture
            # The hook sits on the decoder, whose parameters leave an untied lm_head out.
            untied = torch.empty(0) if a.tied else loaded.model.get_output_embeddings().weight
            hook = counter(name, a.vocabulary * a.hidden, untied)
            handles.append(loaded.model.model.register_forward_pre_hook(hook, with_kwargs=True))
        yield spent
    finally:
        for handle in handles:
            handle.remove()


def _below(held: list[tuple[str, torch.Tensor]]) -> int:
    """Parameters of the layers below all that are trained, where those are a model's own: gradients end before them."""

    def layer(name: str) -> float:
        return int(name.split(".")[1]) if name.startswith("layers.") else 0 if name.startswith("embed_") else math.inf

    lowest = min((layer(n) for n, p in held if p.requires_grad and "lora_" not in n), default=0)
    return sum(p.numel() for n, p in held if n.startswith("layers.") and layer(n) < lowest)


def more_than(row: Mapping[str, Any], examined: Mapping[str, Any]) -> list[str]:
    """The parts of a budget in which a method was given more than the examined one (beyond 5 %)."""
    return [name for name in FIELDS if row[name] > SLACK * examined[name]]
