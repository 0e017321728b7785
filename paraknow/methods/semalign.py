"""SemAlign, first version: student layers learn to mean what the teacher's mean (arXiv 2510.24208v1; METHODS 2.3).

Notation as in `_semantics`. The loss of student layer k, alone trainable, is
[1 − cos(h_k, h*)] + [1 − cos(logits, onehot)]: the first a mean over both sublayers and answer positions, the second
over answer tokens. Layers learn one after another, shallow to deep.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from paraknow.errors import InputError, RunError
from paraknow.methods._semantics import (
    SUBLAYERS,
    Outputs,
    batch_of,
    fitted,
    fractional,
    layer_scores,
    pairing,
    random_frame,
    sublayer_outputs,
    unit_inverse,
)
from paraknow.methods.base import Align, Method, Place, RankSettings, Start

if TYPE_CHECKING:
    import torch

    from paraknow.checkpoints import Checkpoint
    from paraknow.data import Encoded

MODULES = ("up", "down", "v", "o")  # where SemAlign puts its LoRA
Sources = dict[int, list[tuple[int, float]]]  # student layer → teacher layers with weights
Maps = dict[Place, "torch.Tensor"]  # (teacher layer, sublayer) → M, for one student layer


class Settings(RankSettings):
    """Which layers teach, how they are paired and mapped, and the schedule."""

    epochs: int = Field(5, ge=1, le=1000, description="Passes over the training split, for each layer. SemAlign: 5.")
    batch_size: int = Field(64, ge=1, le=65536, description="Examples per optimiser step. SemAlign: 64.")
    learning_rate: float = Field(3e-4, gt=0, le=1, description="AdamW's rate. SemAlign: 3e-4.")
    layers: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="How many teacher layers teach: those of largest gradient × activation. None: all.",
    )
    pairing: Literal["floor", "interpolate"] = Field(
        "floor", description="A student layer's own depth, rounded down, or the two teacher layers around it, mixed."
    )
    map: Literal["vocabulary", "fitted", "random_frame"] = Field(
        "vocabulary",
        description="How a teacher's output is read in the student's space: through both vocabularies (SemAlign), by "
        "least squares on seeds, or through a random frame (a control: it is nearly as orthogonal).",
    )


def check(teacher: Checkpoint, student: Checkpoint, settings: Settings) -> None:
    """Raises InputError: two vocabularies, or more teaching layers than the teacher has."""
    from paraknow.checkpoints import same_vocabulary

    if not same_vocabulary(teacher, student):
        raise InputError(
            f"method 'semalign' needs one vocabulary, and {teacher.spec} and {student.spec} have different ones; use "
            "seeking, laten or sft."
        )
    if settings.layers is not None and settings.layers > teacher.architecture.layers:
        raise InputError(
            f"method.layers: {settings.layers} is more than the teacher's {teacher.architecture.layers} layers."
        )


def start(align: Align) -> Start:
    """A trained LoRA of rank r on up, down, v and o of every student layer that has a teacher.

    `table`: one row per student layer with its teachers, its first and last loss and cosine with h*. Raises
    InputError (none of these matrices takes part), RunError (the loss is not finite from the first step on).
    """
    return _start(align, _sources)


def _start(align: Align, choose: Callable[[Align, list[Encoded]], Sources]) -> Start:
    from paraknow import data, inject
    from paraknow.methods._teaching import read_back

    student, teacher, settings = align.student, align.teacher, align.settings
    modules = [m for m in MODULES if m in align.locate.selected()]
    if not modules:
        raise InputError("locate.modules: semalign trains up, down, v and o, and none of them takes part.")
    length = min(align.tune.max_length, teacher.architecture.context)
    items = align.other(tune=align.tune.model_copy(update={"max_length": length})).encode(align.train, student)
    chosen = set(data.sample(align.train, align.locate.seeds, align.seed))
    seeds = [item for item in items if item.example in chosen] or items[:1]
    sources = choose(align, seeds)
    blocks = [b for b in align.blocks if b.student_layer in sources and b.module in modules]
    begun = Start(inject.peft_start(align.other(blocks=blocks), "gaussian"))
    made = Start(tuned=False, examples=len(items))
    with inject.attached(student, begun) as wrapped:
        wanted = {p: p.requires_grad for p in wrapped.parameters()}
        steps = settings.epochs * -(-len(items) // settings.batch_size)
        for number, layer in enumerate(sorted(sources)):
            moving = []
            for name, parameter in wrapped.named_parameters():
                own = wanted[parameter] and f".layers.{layer}." in name
                parameter.requires_grad_(own)
                moving += [parameter] if own else []
            made.trainable += sum(p.numel() for p in moving)
            maps = _maps(align, wrapped, layer, sources[layer], seeds)
            before = number * steps
            stopped = _teach_layer(
                align, wrapped, layer, (sources[layer], maps), moving, items, made, (before, len(sources) * steps)
            )
            if stopped:
                made.facts["stopped"] = stopped
                break
        made.factors = read_back(wrapped, align, begun)
    return made


def _sources(align: Align, seeds: list[Encoded]) -> Sources:
    """Which teacher layers each student layer learns from."""
    t, s = align.teacher.architecture.layers, align.student.architecture.layers
    count = align.settings.layers or t
    attributed = layer_scores(align.teacher, seeds).topk(min(count, t)).indices.tolist()
    got = pairing(t, s, attributed)
    if align.settings.pairing == "floor":
        made = {k: [(layer, 1 / len(layers)) for layer in layers] for k, layers in got.items()}
    else:
        made = {k: fractional(t, s, k) for k in got}
    return made


def _shuffled(align: Align) -> Start:
    """The same teacher layers, each teaching a student layer that is not its own."""
    from paraknow.methods.shuffled_teacher import derangement

    def permuted(align: Align, seeds: list[Encoded]) -> Sources:
        made = _sources(align, seeds)
        if len(made) < 2:
            raise InputError("controls: shuffled_teacher needs at least two student layers that learn.")
        layers = sorted(made)
        order = derangement(len(layers), align.seed)
        return {layer: made[layers[order[k]]] for k, layer in enumerate(layers)}

    return _start(align, permuted)


def _maps(align: Align, wrapped: Any, layer: int, sources: list[tuple[int, float]], seeds: list[Encoded]) -> Maps:
    """M of every teacher layer and sublayer that this student layer learns from, in float32."""
    import torch

    pair, settings = (align.student, align.teacher), align.settings
    places = [(source, module) for source, _ in sources for module in SUBLAYERS]
    if settings.map != "fitted":
        if settings.map == "vocabulary":
            s, t = (unit_inverse(x.model.get_output_embeddings().weight) for x in pair)
        else:
            shapes = [(x.architecture.hidden, x.architecture.vocabulary) for x in pair]
            s, t = (random_frame(*shape, align.seed + k).to(align.student.device) for k, shape in enumerate(shapes))
        m = (s @ t.to(s.device).T).float()
        return dict.fromkeys(places, m)
    with torch.no_grad():
        ids, mask, ahead = batch_of(seeds, align.student.tokenizer.pad_token_id or 0, align.student.device)
        theirs, mine = _read(align, wrapped, layer, [p[0] for p in places], ids, mask)
        return {
            (source, module): fitted(theirs[(source, module)][ahead], mine[(layer, module)][ahead]).float()
            for source, module in places
        }


def _read(
    align: Align, wrapped: Any, layer: int, sources: list[int], ids: torch.Tensor, mask: torch.Tensor
) -> tuple[Outputs, Outputs]:
    """Sublayer outputs of the teacher (adapters off: it may be the student itself) and of the student as it is."""
    import torch

    theirs: Outputs = {}
    mine: Outputs = {}
    place = align.teacher.device
    with torch.no_grad(), wrapped.disable_adapter(), sublayer_outputs(align.teacher, sources, theirs):
        align.teacher.model(input_ids=ids.to(place), attention_mask=mask.to(place), use_cache=False)
    with sublayer_outputs(align.student, [layer], mine):
        mine[(-1, "logits")] = wrapped(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return {k: v.to(ids.device) for k, v in theirs.items()}, mine


def loss_of(
    layer: int, sources: list[tuple[int, float]], maps: Maps, theirs: Outputs, mine: Outputs, batch: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of one layer on a batch (ids, mask, positions before answer tokens), and the mean cosine with h*."""
    import torch
    import torch.nn.functional as F

    ids, _, ahead = batch
    parts = []
    for module in SUBLAYERS:
        target = torch.zeros(())
        for source, weight in sources:
            h = theirs[(source, module)][ahead].float()
            target = target.to(h.device) + weight * F.normalize(h, dim=-1) @ maps[(source, module)].T
        parts.append(F.cosine_similarity(mine[(layer, module)][ahead].float(), target, dim=-1).mean())
    cosine = torch.stack(parts).mean()
    logits, tokens = mine[(-1, "logits")][ahead].float(), ids.roll(-1, dims=1)[ahead]
    right = logits.gather(1, tokens[:, None])[:, 0] / logits.norm(dim=1)
    return (1 - cosine) + (1 - right.mean()), cosine.detach()


def _teach_layer(
    align: Align,
    wrapped: Any,
    layer: int,
    target: tuple[list[tuple[int, float]], Maps],
    moving: list[torch.Tensor],
    items: list[Encoded],
    made: Start,
    progress: tuple[int, int],
) -> str | None:
    """Train one layer; a sentence where its loss stopped being finite (the last whole epoch's weights are kept)."""
    import torch

    settings, pad = align.settings, align.student.tokenizer.pad_token_id or 0
    sources, maps = target
    optimizer = torch.optim.AdamW(moving, lr=settings.learning_rate)
    generator = torch.Generator().manual_seed(align.seed)
    losses: list[float] = []
    cosines: list[float] = []
    step, stopped, kept = progress[0], None, [p.detach().clone() for p in moving]
    for epoch in range(settings.epochs):
        order = torch.randperm(len(items), generator=generator).tolist()
        for first in range(0, len(order), settings.batch_size):
            batch = batch_of([items[i] for i in order[first : first + settings.batch_size]], pad, align.student.device)
            theirs, mine = _read(align, wrapped, layer, [source for source, _ in sources], *batch[:2])
            loss, cosine = loss_of(layer, sources, maps, theirs, mine, batch)
            if not bool(torch.isfinite(loss)):
                if not made.losses and not losses:
                    raise RunError("align: semalign's loss is NaN or infinite at its first step.")
                stopped = f"the loss is not finite in epoch {epoch + 1} of layer {layer}; the epoch before is kept."
                break
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            cosines.append(float(cosine))
            step += 1
            align.progress(step, progress[1], f"layer {layer}", loss=losses[-1])
        if stopped:
            with torch.no_grad():
                for parameter, best in zip(moving, kept, strict=True):
                    parameter.copy_(best)
            break
        kept = [p.detach().clone() for p in moving]
    made.losses += losses
    made.steps += len(losses)
    about = {"student_layer": layer, "teacher_layers": [source for source, _ in sources], "steps": len(losses)}
    ends = {
        "first_loss": losses[:1],
        "last_loss": losses[-1:],
        "cosine_before": cosines[:1],
        "cosine_after": cosines[-1:],
    }
    made.table.append({**about, **{name: (value[0] if value else None) for name, value in ends.items()}})
    return stopped


METHOD = Method(
    name="semalign",
    title="SemAlign (first version)",
    paradigm="pre-align",
    reference="arXiv 2510.24208v1",
    needs=("one vocabulary",),
    cost="one backward pass of the teacher per seed; then, for every student layer, epochs with a forward pass of both",
    start=start,
    settings=Settings,
    check=check,
    variants={"shuffled_teacher": _shuffled},
)
