"""Positions at which two models have read the same text, whatever their tokenizers (METHODS 3.1; no torch).

A token's end is counted in characters from the beginning of the answer. Where both models have a token that ends
at the same character, both have read the same, and their states can be compared.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from paraknow import data
from paraknow.errors import InputError


@dataclass(frozen=True)
class Points:
    """One example as both models read it, and the positions to compare, in the order they were drawn.

    `teacher_at[k]` and `student_at[k]` index the ids; `offsets[k]` is how many characters of the answer (of the
    whole text, where the prompt takes part) have been read there.
    """

    example: int
    teacher_ids: tuple[int, ...]
    student_ids: tuple[int, ...]
    teacher_at: tuple[int, ...]
    student_at: tuple[int, ...]
    offsets: tuple[int, ...]


@dataclass(frozen=True)
class Read:
    """Token ids of an example and, per token, how far it reads (−1: special, or before the first character)."""

    text: str
    ids: tuple[int, ...]
    ends: tuple[int, ...]


def read(example: data.Example, tokenizer: Any, context: int, whole: bool = False) -> Read | None:
    """Encode one example; None where its answer does not fit. Raises InputError without character offsets."""
    encoded = data.encode(example, tokenizer, context)
    if encoded is None:
        return None
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(f"similarity: the tokenizer {type(tokenizer).__name__} gives no character offsets.")
    prompt, answer = data.render(example, tokenizer)
    spans = data.tokens(prompt + answer, example, tokenizer, return_offsets_mapping=True)["offset_mapping"]
    origin = 0 if whole else len(prompt) + len(answer) - len(answer.lstrip())
    ends = [end - origin if end > start and end > origin else -1 for start, end in spans]
    ends += [-1] * (len(encoded.ids) + encoded.cut - len(ends))  # an end token that encode added
    return Read(prompt + answer, encoded.ids, tuple(ends[encoded.cut :]))


def aligned(
    examples: Sequence[data.Example],
    teacher: Any,
    student: Any,
    contexts: tuple[int, int],
    tokens: int,
    whole: bool = False,
    seed: int = 0,
) -> list[Points]:
    """At most `tokens` positions of each example, drawn without repetition; examples without any are left out.

    `teacher` and `student` are tokenizers, `contexts` what each model may read. With `whole`, prompts take part.
    Raises InputError: no example has a common position, or (with `whole`) the prompts are rendered differently.
    """
    found = []
    for number, example in enumerate(examples):
        one, other = (read(example, t, c, whole) for t, c in zip((teacher, student), contexts, strict=True))
        if one is None or other is None:
            continue
        if whole and one.text != other.text:
            raise InputError("similarity.positions: the two models render prompts differently; use 'answer'.")
        # of several tokens that end at one character (bytes of a letter) the last has read it whole
        places = [{end: at for at, end in enumerate(r.ends) if end > 0} for r in (one, other)]
        common = sorted(places[0].keys() & places[1].keys())
        drawn = random.Random(f"{seed} {number}").sample(common, min(tokens, len(common)))
        if drawn:
            at = [tuple(p[end] for end in drawn) for p in places]
            found.append(Points(number, one.ids, other.ids, at[0], at[1], tuple(drawn)))
    if not found:
        raise InputError("similarity: in no example do both tokenizers end a token at the same character.")
    return found
