"""Random Llamas of given sizes, made in place: benchmarks need shapes, not knowledge."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from paraknow.architecture import from_config
from paraknow.data import Encoded
from paraknow.models import Loaded

SMALL = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "vocab_size": 8192}
SMALLER = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "vocab_size": 8192}
# Llama-2 7B's own sizes
SEVEN = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "vocab_size": 32000}


class Words:
    """Stands in for a tokenizer: token k reads as the word wk."""

    all_special_ids = (0,)
    pad_token_id = 0

    def decode(self, ids: list[int]) -> str:
        return " ".join(f"w{i}" for i in ids)


def llama(device: torch.device, dtype: torch.dtype = torch.float32, seed: int = 0, **sizes: Any) -> Loaded:
    """A random Llama with grouped queries."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    heads = sizes["hidden_size"] // 64
    config = LlamaConfig(
        **{"num_attention_heads": heads, "num_key_value_heads": heads // 2, "max_position_embeddings": 2048, **sizes}
    )
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
    checkpoint: Any = SimpleNamespace(architecture=from_config(config.to_dict(), "benchmark"), spec="benchmark")
    return Loaded(checkpoint, model, Words())


def seeds(count: int, length: int, vocabulary: int, seed: int = 0) -> list[Encoded]:
    """Random token sequences whose second half is the answer."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randint(1, vocabulary, (count, length), generator=draw).tolist()
    example: Any = None
    return [Encoded(example, tuple(row), length // 2) for row in rows]
