"""Candidates of one prompt share its forward pass: read once, its keys and values serve every candidate.

lm-eval reads a prompt again for each of its candidates, unless all of them are one token long. Here the prompts of a
batch are one pass with a cache, and their candidates continue from it: in one pass, or in a few of about one length
each, where otherwise the longest would fill up all others. The numbers are the same up to rounding
(tests/evaluate/test_shared_prompts.py; tests/evaluate/test_lm_eval.py against lm-eval itself).

Notation: p prompts of at most T tokens, c continuations of at most L tokens, V words.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

Request = tuple[Any, list[int], list[int]]  # what lm-eval calls it, prompt tokens, continuation tokens
# Blanks that a further pass must save to be worth it: on a GPU a pass of few tokens takes as long as one of many.
LEAST, LEAST_ON_CPU = 8192, 128
Score = tuple[float, bool]  # summed log-probability in nats; whether it is the greedy continuation


def can_share(model: Any) -> bool:
    """Whether a model keeps keys and values in a cache that can be continued: transformers' own, with or without
    adapters; not a decoder that mixes several models, and not one that reads prompts by virtual tokens."""
    from peft import PeftModel
    from transformers import PreTrainedModel

    if isinstance(model, PeftModel):
        return not any(getattr(c, "is_prompt_learning", False) for c in model.peft_config.values())
    return isinstance(model, PreTrainedModel)


def shared(requests: Sequence[Request], longest: int) -> list[list[int]]:
    """Places of the requests that share their prompt with another one, a list for each prompt, longest prompt first.

    Left out, for lm-eval to score: prompts with one continuation; those whose continuations are all one token long,
    which it reads once already; and what is longer than `longest` tokens, which it cuts.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, (_, prompt, _) in enumerate(requests):
        groups.setdefault(tuple(prompt), []).append(place)
    kept = []
    for tokens, places in groups.items():
        most = max(len(requests[k][2]) for k in places)
        if len(places) > 1 and most > 1 and len(tokens) + most - 1 <= longest:
            kept.append((len(tokens), places))
    return [places for _, places in sorted(kept, key=lambda pair: -pair[0])]


def batches(groups: Sequence[Sequence[int]], size: int) -> Iterator[list[list[int]]]:
    """Groups in batches of at most `size` continuations; a larger group is cut in pieces.

    Every continuation has keys and values of its whole prompt: no more of them are held at once than where `size`
    whole sequences are read, and the prompts' own beside them, at most half as many.
    """
    batch: list[list[int]] = []
    for group in groups:
        for start in range(0, len(group), size):
            piece = list(group[start : start + size])
            if batch and sum(map(len, batch)) + len(piece) > size:
                yield batch
                batch = []
            batch.append(piece)
    if batch:
        yield batch


@torch.no_grad()
def score(
    model: Any, requests: Sequence[Request], groups: Sequence[Sequence[int]], size: int, done: Callable[[int], None]
) -> dict[int, Score]:
    """Every request of `groups` by its place: log-probability of its continuation after its prompt.

    `size`: continuations a batch. `done` is told how many were scored, batch by batch.
    """
    found: dict[int, Score] = {}
    for batch in batches(groups, size):
        prompts = [requests[group[0]][1] for group in batch]
        conts = [requests[k][2] for group in batch for k in group]
        owner = torch.tensor([p for p, group in enumerate(batch) for _ in group], device=model.device)
        sums, greedy = _batch(model, prompts, conts, owner)
        places = [k for group in batch for k in group]
        found.update(zip(places, zip(sums.tolist(), greedy.tolist(), strict=True), strict=True))
        done(len(places))
    return found


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids filled up at the right with 0, and their lengths."""
    lengths = torch.tensor([len(r) for r in rows], device=device)
    ids = [torch.tensor(r, dtype=torch.long) for r in rows]
    return torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(device), lengths


def pieces(sizes: Sequence[int], least: int) -> list[list[int]]:
    """Places of the sizes in pieces of about one size, largest first; those of size 0 are left out.

    A piece ends where what is left would be filled up with at least `least` blanks to be as long as its longest.
    """
    order = sorted((k for k, size in enumerate(sizes) if size), key=lambda k: -sizes[k])
    found: list[list[int]] = []
    for done, k in enumerate(order):
        if not found or (sizes[found[-1][0]] - sizes[k]) * (len(order) - done) >= least:
            found.append([])
        found[-1].append(k)
    return found


def _batch(
    model: Any, prompts: Sequence[Sequence[int]], conts: Sequence[Sequence[int]], owner: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums (c,) of log-probabilities and whether each continuation is the greedy one (c,)."""
    ids, lengths = _padded(prompts, model.device)  # (p, T)
    # Filled up at the right: what stands there is masked for the continuations, whose positions begin after the prompt.
    reads = torch.arange(ids.shape[1], device=ids.device)[None] < lengths[:, None]
    first = model(input_ids=ids, attention_mask=reads.long(), use_cache=True)
    rows = torch.arange(len(prompts), device=ids.device)
    opening = first.logits[rows, lengths - 1].float().log_softmax(-1)  # (p, V)
    begins = torch.tensor([c[0] for c in conts], device=ids.device)
    sums = opening[owner, begins]
    greedy = opening.argmax(-1)[owner] == begins
    parts = pieces([len(c) - 1 for c in conts], LEAST_ON_CPU if ids.device.type == "cpu" else LEAST)
    for number, part in enumerate(parts):
        places = torch.tensor(part, device=ids.device)
        last = number == len(parts) - 1
        cache = first.past_key_values if last else copy.deepcopy(first.past_key_values)
        found = _continued(model, cache, reads, lengths, [conts[k] for k in part], owner[places])
        sums[places] += found[0]
        greedy[places] &= found[1]
    return sums, greedy


def _continued(
    model: Any,
    cache: Any,
    reads: torch.Tensor,
    lengths: torch.Tensor,
    conts: Sequence[Sequence[int]],
    owner: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `_batch` returns, of the continuations' tokens after their first; the cache is used up."""
    targets, sizes = _padded(conts, owner.device)  # (c, L)
    cache.batch_select_indices(owner)
    inputs = targets[:, :-1]
    steps = torch.arange(inputs.shape[1], device=owner.device)[None]
    counted = steps < sizes[:, None] - 1
    mask = torch.cat([reads[owner], counted], 1)
    rest = model(
        input_ids=inputs,
        attention_mask=mask.long(),
        position_ids=lengths[owner][:, None] + steps,
        past_key_values=cache,
        use_cache=True,
    )
    logs = rest.logits.float().log_softmax(-1)  # (c, L − 1, V)
    scores = logs.gather(2, targets[:, 1:, None])[..., 0]
    return (scores * counted).sum(1), ((logs.argmax(-1) == targets[:, 1:]) | ~counted).all(1)
