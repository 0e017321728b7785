"""LaTen's alignment: teacher neurons through a hypernetwork into changes of student neurons (METHODS 2.2).

Notation: L_S student layers, d_T and d_S hidden sizes, n neurons moved in a layer (other for each kind). A neuron is
a row of up, gate or v, or a column of down or o: a vector of the hidden size either way. Δ (L_S, n, d_S) is what is
added to the student's neurons of one module.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paraknow.data import Encoded, padded
from paraknow.errors import RunError
from paraknow.methods.base import Align, Place
from paraknow.progress import Progress

if TYPE_CHECKING:
    import torch

    from paraknow.models import Loaded

ROWS = ("up", "gate", "v")  # the other modules' neurons are columns
KINDS = {"up": "ffn", "gate": "ffn", "down": "ffn", "v": "value", "o": "attention"}
HALF_SCALE = 4096.0  # float16 gradients of a sure student would be zero without it

Tensors = dict[str, "torch.Tensor"]  # by module, or by kind of neuron


@dataclass
class Matched:
    """Which neurons are paired: (L_S, n) indices by kind, the best of each layer first."""

    teacher: Tensors
    student: Tensors


def match(teacher: Tensors, student: Tensors, pairs: Sequence[int], counts: dict[str, int]) -> Matched:
    """The r-th best teacher neuron beside the r-th best student neuron, in every layer and for each kind alone.

    Scores are (L, neurons) by kind; `pairs` names the teacher layer of each student layer. Of equal scores the
    neuron with the lower index comes first.
    """

    def best(scores: torch.Tensor, count: int) -> torch.Tensor:
        return scores.argsort(dim=-1, descending=True, stable=True)[:, :count]

    return Matched(
        {kind: best(teacher[kind][list(pairs)], n) for kind, n in counts.items()},
        {kind: best(student[kind], n) for kind, n in counts.items()},
    )


def extract(teacher: Loaded, modules: Sequence[str], pairs: Sequence[int], neurons: Tensors) -> Tensors:
    """The teacher's neurons by module, (L_S, n, d_T) in float32."""
    import torch

    def vectors(module: str, layer: int, indices: torch.Tensor) -> torch.Tensor:
        weight, indices = teacher.weight(module, layer).detach(), indices.to(teacher.device)
        return (weight[indices] if module in ROWS else weight[:, indices].T).float()

    return {m: torch.stack([vectors(m, t, i) for t, i in zip(pairs, neurons[KINDS[m]], strict=True)]) for m in modules}


class Hypernetwork:
    """One network per module, shared by all layers: Linear(d_T, d_T), ReLU, Linear(d_T, d_S), no bias, float32.

    `first` (d_T, d_T) and `second` (d_S, d_T) are drawn from N(0, std) by `seed`, the same on every device. `half`
    rounds what comes out to float16, as the released code does.
    """

    def __init__(
        self, modules: Sequence[str], sizes: tuple[int, int], std: float, seed: int, device: Any, half: bool = False
    ):
        import torch

        generator, (teacher, student) = torch.Generator().manual_seed(seed), sizes
        self.first: Tensors = {}
        self.second: Tensors = {}
        self.half = half
        for module in modules:
            for weights, out in ((self.first, teacher), (self.second, student)):
                drawn = torch.randn(out, teacher, generator=generator) * std
                weights[module] = drawn.to(device).requires_grad_(True)

    def parameters(self) -> list[torch.Tensor]:
        return [*self.first.values(), *self.second.values()]

    def __call__(self, vectors: Tensors) -> Tensors:
        """Δ (L_S, n, d_S) by module from teacher neurons (L_S, n, d_T)."""
        deltas = {m: (v @ self.first[m].T).relu() @ self.second[m].T for m, v in vectors.items()}
        return {m: d.half() for m, d in deltas.items()} if self.half else deltas


def norm_term(deltas: Tensors) -> torch.Tensor:
    """Σ over modules of mean(Δ²), the mean over all layers, neurons and directions."""
    import torch

    return torch.stack([delta.square().mean().float() for delta in deltas.values()]).sum()


@contextmanager
def added(student: Loaded, deltas: Tensors, neurons: Tensors) -> Iterator[None]:
    """The student with Δ added to its neurons (L_S, n), by hooks on its matrices' outputs: no weight is copied.

    Computed in float32, as peft computes an adapter on a model of any type. Gradients reach `deltas`.
    """

    def on_rows(delta: torch.Tensor, rows: torch.Tensor) -> Any:
        def hook(_: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            return output.float().index_add(-1, rows, inputs[0].float() @ delta.T).to(output.dtype)

        return hook

    def on_columns(delta: torch.Tensor, columns: torch.Tensor) -> Any:
        def hook(_: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            taken = inputs[0].index_select(-1, columns).float()
            return (output.float() + taken @ delta).to(output.dtype)

        return hook

    handles = []
    try:
        for module, delta in deltas.items():
            make = on_rows if module in ROWS else on_columns
            for layer, (change, where) in enumerate(zip(delta.float(), neurons[KINDS[module]], strict=True)):
                matrix = student.model.get_submodule(student.architecture.path(module, layer))
                handles.append(matrix.register_forward_hook(make(change, where.to(change.device))))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """Evaluation mode and no gradients for the model's own parameters inside the block; both restored after it."""
    flags, training = [(p, p.requires_grad) for p in model.parameters()], model.training
    try:
        model.eval().requires_grad_(False)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        model.train(training)


def answer_loss(student: Loaded, items: Sequence[Encoded], micro: int, scale: float = 0.0) -> torch.Tensor:
    """Mean cross-entropy per answer token (nats) over all of `items`, in micro-batches.

    With a `scale`, the gradient of the loss times that is left in whatever requires one. Only what predicts an
    answer token goes through the head: logits are the widest activations.
    """
    import torch

    tokens = sum(len(item.ids) - item.answer_start for item in items)
    pad, device = student.tokenizer.pad_token_id or 0, student.device
    total = torch.zeros((), device=device)
    for first in range(0, len(items), micro):
        ids, mask, labels = (torch.tensor(x) for x in padded(items[first : first + micro], pad))
        row, column = (labels[:, 1:] != -100).nonzero(as_tuple=True)
        words = labels[row, column + 1].to(device)
        states = student.model.model(
            input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False
        ).last_hidden_state
        logits = student.model.get_output_embeddings()(states[row.to(device), column.to(device)]).float()
        loss = torch.nn.functional.cross_entropy(logits, words, reduction="sum") / tokens
        if scale:
            (loss * scale).backward()
        total += loss.detach()
    return total


def gradients(
    student: Loaded,
    network: Hypernetwork,
    vectors: Tensors,
    neurons: Tensors,
    batch: Sequence[Encoded],
    penalty: float,
    micro: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Leave the gradient of cross-entropy + penalty · norm term in the hypernetwork; returns those two.

    The student's part ends at Δ: its micro-batches add up their gradient there, and the hypernetwork is gone
    through once.
    """
    import torch

    deltas = network(vectors)
    leaves = {m: d.detach().float().requires_grad_(True) for m, d in deltas.items()}
    scale = HALF_SCALE if student.model.dtype == torch.float16 else 1.0
    with added(student, leaves, neurons):
        loss = answer_loss(student, batch, micro, scale)
    norm = norm_term(deltas)
    # Σ Δ·∂loss/∂Δ has the loss's own gradient in the hypernetwork
    carried = torch.stack([(deltas[m].float() * _gradient(leaf) / scale).sum() for m, leaf in leaves.items()]).sum()
    (carried + penalty * norm).backward()
    return loss, norm.detach()


def _gradient(leaf: torch.Tensor) -> torch.Tensor:
    assert leaf.grad is not None
    return leaf.grad


def schedule(optimizer: Any, peak: float, steps: int) -> Any:
    """OneCycle with its rise over the first tenth; where that is under two steps, the cosine fall alone."""
    from torch.optim import lr_scheduler

    if steps < 20:  # OneCycleLR divides by zero at 10, and would spend the last of a few steps at a rate of zero
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    return lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps, pct_start=0.1, cycle_momentum=False)


def optimiser(network: Hypernetwork, learning_rate: float) -> Any:
    """LaTen's AdamW over the hypernetwork."""
    import torch

    return torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.05, betas=(0.9, 0.95))


def factors(student: Loaded, deltas: Tensors, neurons: Tensors) -> dict[Place, tuple[torch.Tensor, torch.Tensor]]:
    """Δ as exact LoRA factors on the CPU: one of B (out, n) and A (n, in) is one-hot, the other holds Δ."""
    import torch

    made: dict[Place, tuple[torch.Tensor, torch.Tensor]] = {}
    for module, delta in deltas.items():
        out, width = student.architecture.shape(module)
        for layer, (change, where) in enumerate(zip(delta.float().cpu(), neurons[KINDS[module]].cpu(), strict=True)):
            one_hot = torch.zeros(len(where), out if module in ROWS else width)
            one_hot[torch.arange(len(where)), where] = 1.0
            b, a = (one_hot.T, change) if module in ROWS else (change.T, one_hot)
            made[(layer, module)] = (b.contiguous(), a.contiguous())
    return made


# -- training -------------------------------------------------------------------------------------------


@dataclass
class Examples:
    """Encoded examples: those neurons are located on, as both models read them; batches; what steps are scored on."""

    teacher: list[Encoded]
    student: list[Encoded]
    pool: list[Encoded]
    choosing: list[Encoded]

    def batch(self, step: int, count: int) -> list[Encoded]:
        """`count` of the pool, other ones each step until all were had, and the example of step 1, 2, ..."""
        count = min(count, len(self.pool))
        chosen = [self.pool[((step - 1) * count + i) % len(self.pool)] for i in range(count)]
        return [*chosen, self.student[(step - 1) % len(self.student)]]


@dataclass
class Trained:
    """The best step's Δ (L_S, n, d_S) by module and the student's neurons it belongs to, and how training went."""

    deltas: Tensors
    neurons: Tensors
    step: int
    stopped: int | None
    losses: list[float]
    table: list[dict[str, Any]]
    examples: int
    trainable: int


def train(
    align: Align,
    modules: Sequence[str],
    moved: dict[str, int],
    examples: Examples,
    scores: tuple[Tensors, Tensors],
    progress: Progress,
) -> Trained:
    """Steps until the last, or until something is not finite. Step t trains on neurons of example t alone; what is
    scored and kept comes from neurons located on all of them together.

    `moved` are the neurons of a layer by kind, `scores` the teacher's and the student's, (examples, L, neurons) by
    kind. Raises RunError, naming the step, where no step is finite. Both models must be `frozen`.
    """
    import torch

    settings, student, pairs, micro = align.settings, align.student, align.pairs, align.tune.micro_batch
    dims = (align.teacher.architecture.hidden, student.architecture.hidden)
    half = "half_precision" in settings.as_released
    network = Hypernetwork(modules, dims, settings.std, align.seed, student.device, half)
    optimizer = optimiser(network, settings.learning_rate)
    rates = schedule(optimizer, settings.learning_rate, settings.steps)

    def located(some: slice) -> tuple[Tensors, Tensors]:
        """Teacher neurons (L_S, n, d_T) by module and the student's (L_S, n) by kind, of these examples together."""
        teachers, students = ({kind: s[some].sum(0) for kind, s in model.items()} for model in scores)
        matched = match(teachers, students, pairs, moved)
        vectors = extract(align.teacher, modules, pairs, matched.teacher)
        return {m: v.to(student.device) for m, v in vectors.items()}, matched.student

    @torch.no_grad()
    def scored() -> tuple[Tensors, float]:
        deltas = {m: d.float() for m, d in network(vectors).items()}
        with added(student, deltas, neurons):
            return deltas, float(answer_loss(student, examples.choosing, micro))

    vectors, neurons = located(slice(None))
    trainable = sum(p.numel() for p in network.parameters())
    best, score = scored()
    found = Trained(best, neurons, 0, None, [], [_row(0, score=score)], 0, trainable)
    progress(1, settings.steps + 1)
    for step in range(1, settings.steps + 1):
        batch = examples.batch(step, settings.align_examples)
        example = (step - 1) % len(examples.student)
        current = located(slice(example, example + 1))
        loss, norm = gradients(student, network, *current, batch, settings.penalty, micro)
        total = loss + settings.penalty * norm
        size = torch.nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
        # the one look at the device in a step, but for the score
        seen = torch.stack([total, loss, norm, size.to(total)]).tolist()
        if not (math.isfinite(seen[0]) and math.isfinite(seen[3])):
            found.stopped = step
            break
        optimizer.step()
        rates.step()
        optimizer.zero_grad(set_to_none=True)
        found.losses.append(seen[0])
        found.examples += len(batch)
        deltas, score = scored()
        found.table.append(_row(step, seen[0], seen[1], seen[2], score))
        if found.table[-1]["score"] is None:
            found.stopped = step
            break
        if not found.step or score < found.table[found.step]["score"]:
            found.deltas, found.step = deltas, step
        progress(step + 1, settings.steps + 1, loss=found.losses[-1])
    if not found.step:
        raise RunError(
            f"align: laten's loss is NaN or infinite at step {found.stopped} of {settings.steps}; "
            "a smaller method.learning_rate or method.std may help."
        )
    found.table[found.step]["chosen"] = True
    return found


def _row(
    step: int,
    loss: float | None = None,
    cross_entropy: float | None = None,
    norm: float | None = None,
    score: float = float("nan"),
) -> dict[str, Any]:
    finite = score if abs(score) < float("inf") else None  # NaN compares false too
    return {"step": step, "loss": loss, "cross_entropy": cross_entropy, "norm": norm, "score": finite, "chosen": False}
