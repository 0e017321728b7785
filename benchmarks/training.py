"""What is trained: a LaTen step against its bare passes, fine-tuning against peft with transformers' Trainer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.measure import Ratio, require_same, slow_down
from benchmarks.models import SMALL, SMALLER, llama, seeds
from paraknow import inject, tune
from paraknow.config import Locate, Tune
from paraknow.data import Encoded, padded
from paraknow.locate.blocks import Block, factor
from paraknow.methods import _translate, laten
from paraknow.methods.base import Align, Start
from paraknow.models import Loaded
from paraknow.progress import silent

LENGTH, STEPS = 32, 4
RANK, BATCH, TUNING_STEPS = 16, 16, 10


def bare_step(student: Loaded, batch: Sequence[Encoded], pad: int = 0) -> None:
    """Loss of a batch and its gradient down to the embedded tokens, no weight's: the least that any way through the
    student takes. Only answers go through the head."""
    ids, mask, labels = (torch.tensor(x, device=student.device) for x in padded(batch, pad))
    embedded = student.model.get_input_embeddings()(ids).requires_grad_(True)
    states = student.model.model(inputs_embeds=embedded, attention_mask=mask, use_cache=False).last_hidden_state
    wanted = labels[:, 1:] != -100
    logits = student.model.get_output_embeddings()(states[:, :-1][wanted])
    torch.nn.functional.cross_entropy(logits.float(), labels[:, 1:][wanted]).backward()


def laten_cost(device: torch.device) -> list[Ratio]:
    """Four LaTen steps against forward and backward of the same batches of 16 texts of 32 tokens through the student,
    no weight's gradient taken. A step reads off the neurons located on one example, translates them, passes the batch
    through the student with Δ added, and updates the hypernetworks. The second ratio is of whole aligning: the neurons
    are also located, exactly, in both models, and every step's Δ is scored on 256 texts, to choose the best step by.
    """
    teacher, student = llama(device, **SMALL), llama(device, seed=1, **SMALLER)
    vocabulary, layers = student.architecture.vocabulary, student.architecture.layers
    located, pool, choosing = (
        seeds(count, LENGTH, vocabulary, seed) for seed, count in enumerate((STEPS, 15 * STEPS, laten.CHOOSING))
    )
    align = Align(
        teacher,
        student,
        [Block("up", layer, layer, "window", student.architecture.shape("up"), 0, 0) for layer in range(layers)],
        Locate(),
        0,
        laten.LatenSettings(steps=STEPS),
        laten.METHOD,
    )
    moved = laten.counts(student.architecture, align.settings.rate)

    def scores() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        made = (laten.neuron_scores(model, located, align.locate.neurons, (), silent) for model in (teacher, student))
        one, other = made
        return one, other

    found, examples = scores(), _translate.Examples(located, located, pool, [])

    def steps() -> None:
        _translate.train(align, laten.PAPER_MODULES, moved, examples, found, silent)

    def whole() -> None:
        chosen = _translate.Examples(located, located, pool, choosing)
        _translate.train(align, laten.PAPER_MODULES, moved, chosen, scores(), silent)

    def bare() -> None:
        for step in range(1, STEPS + 1):
            bare_step(student, examples.batch(step, align.settings.align_examples))

    rival = "bare forward and backward"
    with _translate.frozen(teacher.model), _translate.frozen(student.model):
        return [
            slow_down(
                "LaTen, a step",
                rival,
                steps,
                bare,
                2.5,
                4,
                "the products with Δ in every matrix, the gradient of the hypernetworks and AdamW on them",
            ),
            slow_down(
                "LaTen, whole aligning",
                rival,
                whole,
                bare,
                None,
                2,
                "five passes of 256 texts to choose the best step by, and the exact scores of both models' neurons",
            ),
        ]


class Ordered(torch.utils.data.Dataset):
    """Examples in the order in which `tune.fine_tune` takes them."""

    def __init__(self, items: Sequence[Encoded], seed: int):
        order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed)).tolist()
        self.items = [items[i] for i in order]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Encoded:
        return self.items[index]


def trainer(model: Any, items: Ordered, settings: Tune, folder: str, log: bool = False) -> Any:
    """transformers' Trainer with what `tune.fine_tune` does: the order, AdamW, the schedule, clipping at norm 1."""
    from transformers import PrinterCallback, Trainer, TrainingArguments

    steps = tune.steps_of(len(items), settings)
    warmup = max(1, round(settings.warmup * steps))
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], settings.learning_rate, weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warmup, max(0.0, (steps - s) / max(1, steps - warmup)))
    )
    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=settings.batch_size,
        num_train_epochs=settings.epochs,
        train_sampling_strategy="sequential",
        logging_strategy="steps" if log else "no",
        logging_steps=1,
        logging_first_step=log,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=next(model.parameters()).device.type == "cpu",
    )

    def collate(batch: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        names = ("input_ids", "attention_mask", "labels")
        return {name: torch.tensor(rows) for name, rows in zip(names, padded(batch), strict=True)}

    made = Trainer(model, arguments, data_collator=collate, train_dataset=items, optimizers=(optimizer, schedule))
    made.remove_callback(PrinterCallback)  # stdout is for the results
    return made


def starts(student: Loaded) -> Iterator[tuple[str, Start]]:
    """A plain Gaussian LoRA, and a start as Seeking has it, with its frozen twin: factors of the student's matrices."""
    draw = torch.Generator().manual_seed(0)
    a, plain, twin = student.architecture, {}, {}
    for layer in range(a.layers):
        for module in a.matrices:
            out, width = a.shape(module)
            down = (torch.rand(RANK, width, generator=draw) * 2 - 1) / math.sqrt(width)
            plain[layer, module] = (torch.zeros(out, RANK), down)
            parts = factor(student.weight(module, layer), RANK)
            twin[layer, module] = (parts.b, parts.a)
    yield "plain LoRA", Start(plain)
    yield "LoRA with a frozen twin", Start(twin)


@contextmanager
def quiet() -> Iterator[None]:
    """No line from transformers about a training that begins."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    try:
        logging.set_verbosity_error()
        yield
    finally:
        logging.set_verbosity(before)


def tuning_cost(device: torch.device) -> list[Ratio]:
    """Fine-tuning of rank 16 adapters on all seven matrices of every layer, against the same PeftModel in transformers'
    Trainer: ten steps on batches of 16 texts of 32 tokens in float32, the same order, optimiser, schedule and clipping,
    no logging, saving or evaluation, and no cache. Losses of all steps agree to 1e-4. With a twin, two adapters are
    active and one of them is trained, on both sides.
    """
    items = seeds(BATCH * TUNING_STEPS, LENGTH, SMALLER["vocab_size"])
    settings, order = Tune(epochs=1, batch_size=BATCH, micro_batch=BATCH), Ordered(items, 0)
    made = []
    for name, start in starts(llama(device, **SMALLER)):
        own, other = llama(device, **SMALLER), llama(device, **SMALLER)
        other.model.config.use_cache = False
        with (
            inject.attached(own, start) as mine,
            inject.attached(other, start) as its,
            TemporaryDirectory() as folder,
            quiet(),
        ):
            logged = trainer(its, order, settings, folder, log=True)
            logged.train()
            losses = [row["loss"] for row in logged.state.log_history if "loss" in row]
            tuned = tune.fine_tune(mine, items, settings, 0).losses
            gap = max(abs(x - y) for x, y in zip(tuned, losses, strict=True))
            require_same(f"losses of tuning, {name}", gap, 1e-4)
            ready = iter([trainer(its, order, settings, folder) for _ in range(5)])
            made.append(
                slow_down(
                    f"tuning, {name}",
                    "peft with Trainer",
                    lambda mine=mine: tune.fine_tune(mine, items, settings, 0),
                    lambda ready=ready: next(ready).train(),
                    1.05,
                    4,
                    "a copy of the best state so far, twenty times in a run, and a look at every step's loss",
                )
            )
    return made
