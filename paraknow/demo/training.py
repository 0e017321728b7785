"""Train small models on the made-up world: tokenizer, batches, the training loop, exact accuracy (METHODS 4.1).

Weights are trained in float32 and stored in bfloat16; accuracies and hashes are of the stored weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from paraknow import data
from paraknow.demo import world
from paraknow.progress import Progress, silent

VOCABULARY = 512
CONTEXT = 1024
BATCH = 96
LEARNING_RATE = 2e-3


@dataclass(frozen=True)
class Pool:
    """All training examples of one kind as padded tensors (N, W), and its share of every batch."""

    ids: torch.Tensor
    labels: torch.Tensor
    lengths: torch.Tensor
    share: float


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits, 512 tokens, trained on the world's own text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|pad|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", model_max_length=CONTEXT
    )


def corpus(made: world.World, skills: tuple[str, ...] = world.SKILLS) -> dict[str, list[dict]]:
    """Training records by kind: facts of each group in their three trained wordings, and the skills."""
    kinds = {group: list(world.fact_records(made, group, test=False)) for group in world.GROUPS}
    return kinds | {skill: list(world.skill_records(made, skill, test=False)) for skill in skills}


def make_pools(records: dict[str, list[dict]], shares: dict[str, float], tokenizer: Any) -> list[Pool]:
    """Encoded pools of the kinds named in `shares` (which sum to 1)."""
    pools = []
    for kind, share in shares.items():
        examples = [data.parse_record(r, kind, i) for i, r in enumerate(records[kind])]
        items = data.encode_all(examples, tokenizer, CONTEXT, kind).items
        ids, _, labels = data.padded(items, tokenizer.pad_token_id)
        lengths = torch.tensor([len(item.ids) for item in items])
        pools.append(Pool(torch.tensor(ids), torch.tensor(labels), lengths, share))
    return pools


def draw_batch(pools: list[Pool], generator: torch.Generator, size: int = BATCH) -> tuple[torch.Tensor, torch.Tensor]:
    """One batch (ids, labels), each (size, W), with every pool's share of rows."""
    picks = [torch.randint(len(p.ids), (round(p.share * size),), generator=generator) for p in pools]
    width = max(int(p.lengths[i].max()) for p, i in zip(pools, picks, strict=True))

    def gather(name: str, fill: int) -> torch.Tensor:
        parts = [getattr(p, name)[i][:, :width] for p, i in zip(pools, picks, strict=True)]
        return torch.cat([torch.nn.functional.pad(x, (0, width - x.shape[1]), value=fill) for x in parts])

    return gather("ids", 0), gather("labels", -100)


def train(model: Any, pools: list[Pool], steps: int, seed: int, progress: Progress = silent, batch: int = BATCH) -> Any:
    """AdamW, linear decay after a 2 % warm-up, loss on answers only. Only parameters that require a
    gradient move."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    moving = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(moving, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    warmup = max(1, steps // 50)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warmup, max(0.0, (steps - s) / max(1, steps - warmup)))
    )
    model.train()
    for step in range(steps):
        ids, labels = (t.to(device) for t in draw_batch(pools, generator, batch))
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(moving, 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 19 or step == steps - 1:
            progress(step + 1, steps, loss=float(loss.detach()))
    return model.eval()


@torch.no_grad()
def exact_accuracy(model: Any, tokenizer: Any, records: list[dict], batch: int = 256) -> float:
    """Share of records whose whole answer, end token included, is the model's greedy continuation."""
    device = next(model.parameters()).device
    items = data.encode_all(
        [data.parse_record(r, "test", i) for i, r in enumerate(records)], tokenizer, CONTEXT, "test"
    ).items
    right = 0
    for first in range(0, len(items), batch):
        ids, mask, labels = (torch.tensor(x, device=device) for x in data.padded(items[first : first + batch]))
        guess = model(input_ids=ids, attention_mask=mask).logits[:, :-1].argmax(-1)
        wanted = labels[:, 1:]
        right += int(((guess == wanted) | (wanted == -100)).all(1).sum())
    return right / len(items)


def accuracies(model: Any, tokenizer: Any, suites: dict[str, dict[str, list[dict]]]) -> dict[str, float]:
    """Exact accuracy per test suite; people split by group (people/known, …)."""
    result = {}
    for name, splits in suites.items():
        groups = sorted({r.get("group", "all") for r in splits["test"]})
        for group in groups:
            records = [r for r in splits["test"] if r.get("group", "all") == group]
            label = name if group == "all" else f"{name}/{group}"
            result[label] = exact_accuracy(model, tokenizer, records)
    return result


def new_model(shape: tuple[int, int, int, int, int], head_dim: int, seed: int, tokenizer: Any) -> Any:
    """A randomly initialised Llama with grouped queries and untied embeddings."""
    hidden, layers, ffn, heads, kv_heads = shape
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=hidden,
            num_hidden_layers=layers,
            intermediate_size=ffn,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


@torch.no_grad()
def stored(model: Any) -> Any:
    """The model with its weights rounded to what bfloat16 stores, in float32. Buffers (the frequencies of rotary
    positions) are not stored, so they are not rounded."""
    for parameter in model.parameters():
        parameter.copy_(parameter.to(torch.bfloat16))
    return model
