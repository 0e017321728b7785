"""LaTen: located teacher neurons, translated by small networks into changes of the student's own located neurons
(Neural Incompatibility, arXiv 2505.14436; METHODS 2.2, attribution 1.4).

Nothing of the student is trained. Hypernetworks, one per module, learn in a few steps what to add to the student's
neurons; the best step's Δ is the result, an exact LoRA with one-hot factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from paraknow.config import Part
from paraknow.errors import InputError, RunError
from paraknow.methods import _translate
from paraknow.methods._translate import KINDS, Examples, Trained
from paraknow.methods.base import Align, Method, Start
from paraknow.progress import Progress, part

if TYPE_CHECKING:
    import torch

    from paraknow.architecture import Architecture
    from paraknow.checkpoints import Checkpoint
    from paraknow.data import Encoded, Example
    from paraknow.models import Loaded

NOTHING_TO_LEARN = 0.01  # nats per answer token
CHOOSING = 256  # align examples that every step is scored on
MODELS = ("teacher", "student")
PAPER_MODULES = ("up", "down", "v", "o")
Fault = Literal["fourth_root", "self_attention_only", "rounded_scores", "half_precision", "unmodified_student"]


class LatenSettings(Part):
    """LaTen's settings."""

    rate: float = Field(0.1, gt=0, le=1, description="Share of every layer's neurons that is moved. LaTen: 0.1.")
    gate: bool = Field(False, description="Move the gate rows of the chosen FFN neurons too. LaTen: never.")
    extract_examples: int = Field(
        8,
        ge=1,
        le=4096,
        description="Training examples neurons are located on; step t uses the t-th. LaTen: one a step.",
    )
    align_examples: int = Field(
        15, ge=1, le=65536, description="Align examples in a batch, beside the one located on. LaTen: 15."
    )
    fit_on: Literal["align", "train"] = Field(
        "align",
        description="The split that batches come from and steps are chosen on: what both models know, or the task's "
        "training data, less what is located on. LaTen: examples of the task.",
    )
    steps: int = Field(4, ge=1, le=10000, description="Optimiser steps of the hypernetworks. LaTen: a few, 2 to 8.")
    learning_rate: float = Field(
        3e-5, gt=0, le=1, description="AdamW's peak rate. LaTen: 3e-5; the released script has 3e-4."
    )
    penalty: float = Field(1000.0, ge=0, le=1e9, description="Weight of the norm term Σ mean(Δ²). LaTen: 1000.")
    std: float = Field(1e-5, gt=0, le=1, description="Standard deviation the hypernetworks start from. LaTen: 1e-5.")
    as_released: tuple[Fault, ...] = Field(
        (),
        description="Faults of the released code to reproduce, to see what each did. fourth_root: the lens scales by a "
        "fourth root instead of a square root. self_attention_only: attention neurons keep only what the token's "
        "attention to itself brings. rounded_scores: every example's scores are rounded to four decimals before they "
        "are summed. half_precision: the hypernetworks' output is float16, so the start and the norm term are zero. "
        "unmodified_student: what is saved is the student itself. The paper as written: none.",
    )


# -- what is moved -------------------------------------------------------------------------------------


def sizes(a: Architecture) -> dict[str, int]:
    """Neurons of a layer by kind: f FFN neurons, h·e columns of o, g·e rows of v."""
    return {"ffn": a.ffn, "attention": a.heads * a.head_dim, "value": a.kv_heads * a.head_dim}


def counts(student: Architecture, rate: float) -> dict[str, int]:
    """Neurons moved in a layer by kind, at least one of each."""
    return {kind: max(1, round(rate * size)) for kind, size in sizes(student).items()}


def held(teacher: Checkpoint, student: Checkpoint, settings: LatenSettings) -> int:
    """Numbers kept at a step's peak: both sets of teacher neurons (of one example, of all) and what the networks make
    of them with its gradient; Δ, its gradient, the best Δ and the scored one; networks with AdamW's two moments."""
    t, s = teacher.architecture, student.architecture
    modules = (*PAPER_MODULES, "gate") if settings.gate else PAPER_MODULES
    moved = counts(s, settings.rate)
    neurons = s.layers * sum(moved[KINDS[module]] for module in modules)
    scored = settings.extract_examples * sum(a.layers * sum(sizes(a).values()) for a in (t, s))
    return neurons * (4 * t.hidden + 5 * s.hidden) + 4 * len(modules) * t.hidden * (t.hidden + s.hidden) + scored


def check(teacher: Checkpoint, student: Checkpoint, settings: LatenSettings) -> None:
    """Raises InputError where a layer of the teacher has fewer neurons than are to be replaced in the student's."""
    offered, modules = sizes(teacher.architecture), {"ffn": "up", "attention": "o", "value": "v"}
    for kind, wanted in counts(student.architecture, settings.rate).items():
        if wanted > offered[kind]:
            raise InputError(
                f"method.rate: {settings.rate:g} moves {wanted} neurons of the student's {modules[kind]} matrix, and "
                f"the teacher's {modules[kind]} matrix has {offered[kind]}; a smaller rate is needed."
            )


def _modules(align: Align) -> list[str]:
    wanted = (*PAPER_MODULES, "gate") if align.settings.gate else PAPER_MODULES
    found = [m for m in align.locate.selected() if m in wanted]
    if not found:
        raise InputError(f"locate.modules: method 'laten' moves {', '.join(wanted)}, and none of them takes part.")
    return found


# -- the data ------------------------------------------------------------------------------------------


def _examples(align: Align) -> Examples:
    """Raises InputError: no example to locate on, or none left to align on."""
    from paraknow.data import sample

    found = _located_on(align)
    taken = {item.example for item in found[1]}
    known = align.known if align.settings.fit_on == "align" else ()
    rest = known or tuple(e for e in align.train if e not in taken)
    if not rest:
        raise InputError(
            f"method.extract_examples: all {len(align.train)} training examples are located on, and none is left to "
            "align on; more examples or an align split are needed."
        )
    # An order of its own, drawn once: the choice of steps is made on the same examples whatever the batches hold.
    pool = align.encode(sample(rest, len(rest), align.seed), align.student)
    choosing = align.encode(sample(rest, CHOOSING, align.seed + 1), align.student)
    return Examples(*found, pool, choosing)


def _located_on(align: Align) -> tuple[list[Encoded], list[Encoded]]:
    """Training examples whose answer has a content token for both models, drawn by the seed."""
    from paraknow import data
    from paraknow.locate.states import content_position

    def read(example: Example, loaded: Loaded) -> Encoded | None:
        context = min(align.tune.max_length, loaded.architecture.context)
        item = data.encode(example, loaded.tokenizer, context)
        usable = item and content_position(item.ids, item.answer_start, loaded.tokenizer) is not None
        return item if usable else None

    teacher, student = [], []
    for example in data.sample(align.train, len(align.train), align.seed):
        both = read(example, align.teacher), read(example, align.student)
        if both[0] and both[1]:
            teacher.append(both[0])
            student.append(both[1])
        if len(student) == align.settings.extract_examples:
            break
    if not student:
        raise InputError(
            "method 'laten': no training example has an answer with a letter or digit that fits both models' context, "
            "so no neuron can be located."
        )
    return teacher, student


# -- locating ------------------------------------------------------------------------------------------


def neuron_scores(
    loaded: Loaded, items: Sequence[Encoded], how: str, faults: Sequence[Fault], progress: Progress
) -> dict[str, torch.Tensor]:
    """Scores of each example alone by kind, (examples, L, neurons), float32 (METHODS 1.4)."""
    import torch

    from paraknow.locate import neurons
    from paraknow.locate.states import collect

    states = collect(loaded, items)
    if "fourth_root" in faults:
        states.c = states.c.sqrt()
    if "self_attention_only" in faults:
        states.u = own_attention(loaded, items)
    # All examples at once: what a neuron adds to the logits is the same for each of them.
    found = neurons.score(loaded, states, how, progress=part(progress, 0, len(items), scale=len(items))).each
    layers = range(loaded.architecture.layers)
    stacked = {kind: torch.stack([found[(layer, kind)] for layer in layers], 1) for kind in sizes(loaded.architecture)}
    return {k: s.round(decimals=4) for k, s in stacked.items()} if "rounded_scores" in faults else stacked


def _random_scores(align: Align, examples: int) -> dict[str, torch.Tensor]:
    """Scores of the teacher's neurons that mean nothing, the same for every example; shapes as `neuron_scores` has."""
    import torch

    a, generator = align.teacher.architecture, torch.Generator().manual_seed(align.seed + 4_000_003)
    drawn = {kind: torch.rand(1, a.layers, n, generator=generator) for kind, n in sizes(a).items()}
    return {kind: d.expand(examples, -1, -1).to(align.teacher.device) for kind, d in drawn.items()}


def own_attention(loaded: Loaded, items: Sequence[Encoded]) -> torch.Tensor:
    """What the token before the word brings to o_proj's input by its attention to itself, (examples, L, h·e).

    Each layer's attention is computed once more with all other tokens' values set to zero: what comes out for this
    token is its own value times the attention it pays itself, with any attention implementation.
    """
    import torch

    from paraknow.locate.states import content_position

    a, calls, taken, handles = loaded.architecture, [], [], []
    blocks = [loaded.model.get_submodule(f"model.layers.{layer}.self_attn") for layer in range(a.layers)]

    def alone(_: Any, __: Any, values: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(values[:, :-1]), values[:, -1:]], 1)

    with torch.no_grad():
        for item in items:
            try:
                for block in blocks:
                    keep = block.register_forward_pre_hook(
                        lambda module, given, named: calls.append((module, given, named)), with_kwargs=True
                    )
                    handles.append(keep)
                position = content_position(item.ids, item.answer_start, loaded.tokenizer)
                loaded.model.model(input_ids=torch.tensor([item.ids[:position]], device=loaded.device), use_cache=False)
                while handles:
                    handles.pop().remove()
                for block, given, named in calls:
                    handles.append(block.v_proj.register_forward_hook(alone))
                    into = block.o_proj.register_forward_pre_hook(lambda _, x: taken.append(x[0][0, -1].float()))
                    handles.append(into)
                    block(*given, **named)
            finally:
                calls.clear()
                while handles:
                    handles.pop().remove()
    return torch.stack(taken).unflatten(0, (len(items), a.layers))


# -- the method ----------------------------------------------------------------------------------------


def start(align: Align) -> Start:
    """Train the hypernetworks and return the Δ of the step with the best score on the align set, not tuned further.

    `table`: step (0: before training), loss (cross-entropy + penalty · norm), cross_entropy, norm (Σ mean(Δ²)) of
    the step's batch, score (mean cross-entropy per answer token on the align set, of the Δ that would be saved) and
    chosen. The choice falls on a trained step: step 0 moves nothing to speak of and stands for comparison.

    Raises InputError (no matrix or example to work from), RunError (the loss is not finite from
    the first step on, or nothing changes).
    """
    return _make(align)


def random_neurons(align: Align) -> Start:
    """The control `random_window` in LaTen's form: the teacher's neurons are drawn at random from the same layers, all
    else is the method's."""
    return _make(align, random=True)


def _make(align: Align, random: bool = False) -> Start:
    import torch

    settings, faults = align.settings, align.settings.as_released
    check(align.teacher.checkpoint, align.student.checkpoint, settings)
    modules, examples, moved = _modules(align), _examples(align), counts(align.student.architecture, settings.rate)
    located = len(examples.student)
    whole = 2 * located + settings.steps + 1
    how = "first_order" if align.locate.neurons == "first_order" else "exact"
    with _translate.frozen(align.teacher.model), _translate.frozen(align.student.model):
        reports = [part(align.progress, n * located, whole, f"neurons of the {m}") for n, m in enumerate(MODELS)]
        scores = (
            _random_scores(align, located)
            if random
            else neuron_scores(align.teacher, examples.teacher, how, faults, reports[0]),
            neuron_scores(align.student, examples.student, how, faults, reports[1]),
        )
        progress = part(align.progress, 2 * located, whole, "training hypernetworks")
        found = _translate.train(align, modules, moved, examples, scores, progress)
    if not faults and not any(bool(delta.any()) for delta in found.deltas.values()):
        raise RunError("align: laten changes nothing: the hypernetworks give 0; a larger method.std may help.")
    if "unmodified_student" in faults:
        found.deltas = {module: torch.zeros_like(delta) for module, delta in found.deltas.items()}
    return Start(
        _translate.factors(align.student, found.deltas, found.neurons),
        tuned=False,
        facts=_facts(align, modules, moved, examples, found),
        examples=found.examples,
        steps=len(found.losses),
        trainable=found.trainable,
        losses=found.losses,
        table=found.table,
    )


def _facts(align: Align, modules: list[str], moved: dict[str, int], examples: Examples, found: Trained) -> dict:
    """What the result was made from; `stopped` and `warning` are sentences for the run's warnings."""
    settings, scores = align.settings, [row["score"] for row in found.table]
    facts: dict[str, Any] = {
        "modules": modules,
        "neurons": [moved[KINDS[module]] for module in modules],
        "located_on": len(examples.student),
        "scored_on": len(examples.choosing),
        "chosen_step": found.step,
        "largest_change": max(float(delta.abs().max()) for delta in found.deltas.values()),
        "as_released": list(settings.as_released),
    }
    if found.stopped:
        facts["stopped"] = (
            f"stopped at step {found.stopped} of {settings.steps}, where the loss is NaN or infinite; "
            f"step {found.step} is kept."
        )
    if "unmodified_student" in settings.as_released:
        facts["warning"] = "as the released code does, the student itself is saved."
    elif scores[0] is not None and not scores[found.step] < scores[0]:
        facts["warning"] = (
            f"no step lowers the loss on what steps are chosen on ({scores[0]:.3g} before, {scores[found.step]:.3g} at "
            "best), so the step that does least harm is kept"
        )
        learnt = scores[0] < NOTHING_TO_LEARN and settings.fit_on == "align"
        facts["warning"] += "; the student knows it all, and fit_on: train gives it something to learn." * learnt or "."
    return facts


METHOD = Method(
    name="laten",
    title="LaTen",
    paradigm="pre-align",
    reference="arXiv 2505.14436 (ACL 2025)",
    needs=(
        "answers with a letter or digit",
        "as many neurons in a teacher layer as are moved in a student layer",
    ),
    cost="one forward pass of both models per located example, then a few optimiser steps through the student",
    start=start,
    settings=LatenSettings,
    locates=True,
    check=check,
    holds=held,
    variants={"random_window": random_neurons},
)
