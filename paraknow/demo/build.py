"""Train the demo pair and its clone teacher from nothing, with one seed (METHODS 4.1 and 4.3).

teacher: learns every person and every skill. student: half the people, sums and reversal.
clone-teacher: the student taught everything else with norms and embeddings frozen, then widened
(`paraknow.demo.clone`), so that what a perfect transfer would be is known exactly.

Weights are trained in float32 and stored in bfloat16; accuracies and hashes are of the stored weights.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from paraknow import __version__, data
from paraknow.demo import clone, world
from paraknow.progress import Progress, silent

VOCABULARY = 512
CONTEXT = 1024
BATCH = 96
LEARNING_RATE = 2e-3


@dataclass(frozen=True)
class Size:
    """How large a demo to build: people, model shapes and optimiser steps."""

    people: int
    held_out: int
    teacher: tuple[int, int, int, int, int]  # hidden, layers, ffn, heads, key/value heads
    student: tuple[int, int, int, int, int]
    teacher_steps: int
    student_steps: int
    clone_steps: int


SIZES = {
    "full": Size(300, 200, (192, 6, 512, 8, 4), (96, 4, 256, 4, 2), 2600, 3600, 2400),
    "small": Size(8, 20, (64, 2, 128, 4, 2), (32, 2, 64, 2, 1), 200, 200, 100),
}
HEAD_DIM = {"full": 24, "small": 16}


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


def corpus(made: world.World) -> dict[str, list[dict]]:
    """Training records by kind: facts of each group in their three trained wordings, and the skills."""
    kinds = {group: list(world.fact_records(made, group, test=False)) for group in world.GROUPS}
    return kinds | {skill: list(world.skill_records(made, skill, test=False)) for skill in world.SKILLS}


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


def draw_batch(pools: list[Pool], generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """One batch (ids, labels), each (BATCH, W), with every pool's share of rows."""
    picks = [torch.randint(len(p.ids), (round(p.share * BATCH),), generator=generator) for p in pools]
    width = max(int(p.lengths[i].max()) for p, i in zip(pools, picks, strict=True))

    def gather(name: str, fill: int) -> torch.Tensor:
        parts = [getattr(p, name)[i][:, :width] for p, i in zip(pools, picks, strict=True)]
        return torch.cat([torch.nn.functional.pad(x, (0, width - x.shape[1]), value=fill) for x in parts])

    return gather("ids", 0), gather("labels", -100)


def train(model: Any, pools: list[Pool], steps: int, seed: int, progress: Progress = silent) -> Any:
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
        ids, labels = (t.to(device) for t in draw_batch(pools, generator))
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


def sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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


def stored(model: Any) -> Any:
    """The model with its weights rounded to what bfloat16 stores, in float32."""
    return model.to(torch.bfloat16).to(torch.float32)


def build(
    out: Path,
    size_name: str = "full",
    seed: int = 0,
    progress: Callable[[str], Progress] = lambda name: silent,
) -> dict:
    """Make world, tokenizer, suites, teacher, student and clone teacher under `out`; returns the record.

    `progress(name)` gives the progress callback for training the model of that name.
    """
    size, head_dim = SIZES[size_name], HEAD_DIM[size_name]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    started = time.time()
    made = world.make_world(seed, size.people, size.held_out)
    suites = world.suites(made, seed, train_size=min(600, 25 * size.people), align_size=min(200, 4 * size.people))
    for name, splits in suites.items():
        for split, rows in splits.items():
            path = out / "suites" / name / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")

    records = corpus(made)
    tokenizer = train_tokenizer(
        [f"Question: {r['question']}\nAnswer: {r['answer']}" for rows in records.values() for r in rows[:4000]]
    )
    everything = {"known": 0.25, "shown": 0.15, "never_shown": 0.15, "sum": 0.15, "reverse": 0.15, "sort": 0.15}
    half = {"known": 0.5, "sum": 0.25, "reverse": 0.25}
    record: dict[str, Any] = {
        "schema_version": 1,
        "command": "paraknow demo build" + ("" if size_name == "full" else f" --size {size_name}") + f" --seed {seed}",
        "seed": seed,
        "size": asdict(size),
        "device": device,
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "paraknow": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "models": {},
    }

    def finish(name: str, model: Any, steps: int, model_started: float) -> None:
        folder = out / "models" / name
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        model.to(torch.float32)
        record["models"][name] = {
            "steps": steps,
            "parameters": sum(p.numel() for p in model.parameters()),
            "seconds": round(time.time() - model_started, 1),
            "accuracy": accuracies(model, tokenizer, suites),
            "sha256": {p.name: sha256(p) for p in sorted(folder.glob("*")) if p.is_file()},
        }

    clock = time.time()
    student = new_model(size.student, head_dim, seed + 1, tokenizer).to(device)
    student = stored(
        train(student, make_pools(records, half, tokenizer), size.student_steps, seed + 1, progress("student"))
    )
    finish("student", student, size.student_steps, clock)

    clock = time.time()
    teacher = new_model(size.teacher, head_dim, seed + 2, tokenizer).to(device)
    pools = make_pools(records, everything, tokenizer)
    teacher = stored(train(teacher, pools, size.teacher_steps, seed + 2, progress("teacher")))
    finish("teacher", teacher, size.teacher_steps, clock)
    del teacher

    clock = time.time()
    for name, parameter in student.named_parameters():
        parameter.requires_grad_("_proj" in name)
    student = stored(train(student, pools, size.clone_steps, seed + 3, progress("clone-teacher"))).cpu()
    wide, mapping = clone.widen(student, seed + 3)
    mapping_folder = out / "models" / "clone-teacher"
    mapping_folder.mkdir(parents=True, exist_ok=True)
    mapping.save(mapping_folder)
    finish("clone-teacher", wide, size.clone_steps, clock)

    record["seconds"] = round(time.time() - started, 1)
    (out / "record.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if any(not math.isfinite(a) for m in record["models"].values() for a in m["accuracy"].values()):
        sys.exit("the trained models have accuracies that are not finite")
    return record
