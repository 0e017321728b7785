"""Pairs of models of true shapes with random weights: neither speed nor memory depends on the values.

The weights are drawn where they will lie, so that no model of such a size passes through host memory.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import llama
from paraknow.checkpoints import Checkpoint
from paraknow.data import Example, Task
from paraknow.models import Loaded

# By config.json: Llama-2 13B and 7B; Llama-3 8B (grouped queries, a large vocabulary) and Llama-3.2 1B (tied as well)
LLAMA_2 = {"vocab_size": 32000}
LLAMA_3 = {"vocab_size": 128256, "num_key_value_heads": 8, "num_attention_heads": 32}
PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Llama-2 13B to 7B": (
        {**LLAMA_2, "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40}
        | {"num_attention_heads": 40, "num_key_value_heads": 40},
        {**LLAMA_2, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
        | {"num_attention_heads": 32, "num_key_value_heads": 32},
    ),
    "Llama-3 8B to 1B": (
        {**LLAMA_3, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
        {**LLAMA_3, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
        | {"tie_word_embeddings": True},
    ),
}
SCALES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 16, "vocab_size": 32}
SCALES |= {"num_attention_heads": 8, "num_key_value_heads": 8}


@dataclass(frozen=True)
class Work:
    """How much is asked of a pair. texts × positions rows are compared; examples make LaTen's batch."""

    seeds: int = 32
    length: int = 512
    texts: int = 1024
    positions: int = 64
    examples: int = 16

    @property
    def rows(self) -> int:
        return self.texts * self.positions


SMALL_WORK = Work(seeds=4, length=24, texts=32, positions=4, examples=4)


def shrunk(sizes: dict[str, Any]) -> dict[str, Any]:
    """The same proportions for a CPU."""
    return {name: value // SCALES.get(name, 1) if name in SCALES else value for name, value in sizes.items()}


class Numbers:
    """Stands in for a tokenizer: token k is the word wk, and nothing else is a word."""

    all_special_ids = (0,)
    pad_token_id = 0
    eos_token_id = None
    chat_template = None

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [int(number) for number in re.findall(r"w(\d+)", text)]}

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(f"w{i}" for i in ids)


def named(loaded: Loaded, name: str) -> Loaded:
    """A random model with what the library asks of a checkpoint and a tokenizer."""
    sizes = [p.numel() for p in loaded.model.parameters()]
    made = Checkpoint(name, Path(name), loaded.architecture, sum(sizes), max(sizes))
    return replace(loaded, checkpoint=made, tokenizer=Numbers())


def pair(name: str, device: torch.device, tiny: bool = False) -> tuple[Loaded, Loaded]:
    """Teacher and student of a pair of PAIRS in bfloat16, or small ones of the same proportions."""
    made = []
    for number, sizes in enumerate(PAIRS[name]):
        given = shrunk(sizes) if tiny else sizes
        made.append(named(llama(device, torch.bfloat16, number, **given), ("teacher", "student")[number]))
    return made[0], made[1]


def task(vocabulary: int, work: Work) -> Task:
    """Random texts of exactly `length` tokens, the last quarter of each the answer; as many align examples as make a
    batch of LaTen's with the one it is located on."""
    draw = torch.Generator().manual_seed(7)
    count, answer = work.seeds + work.examples - 1, max(2, work.length // 4)
    rows = torch.randint(1, vocabulary, (count, work.length), generator=draw).tolist()
    words = Numbers()
    found = [
        Example(str(i), (("user", words.decode(row[:-answer])),), " " + words.decode(row[-answer:]), raw=True)
        for i, row in enumerate(rows)
    ]
    return Task("random", tuple(found[: work.seeds]), tuple(found[work.seeds :]), ())
