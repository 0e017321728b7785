"""Transport: whole FFN neurons of the teacher, carried through maps between the two models' spaces (METHODS 2.6).

Notation, per pair of layers, rows are tokens: X_S, X_T what the FFNs read (after the norm), R_S, R_T the residual
streams at the layers' outputs. x_T ≈ x_S·N and r_S ≈ r_T·M, so a teacher neuron with gate and up rows g, u and down
column v becomes (g·Nᵀ, u·Nᵀ, v·M). Attention goes the same way: rows of q, k and v read, columns of o write. Nothing
is trained.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from paraknow.config import FFN, Part
from paraknow.errors import InputError
from paraknow.methods.base import Align, Method, Place, Start

if TYPE_CHECKING:
    import torch

    from paraknow.checkpoints import Checkpoint
    from paraknow.models import Loaded
    from paraknow.similarity.points import Points

READS = ("q", "gate")  # one of the matrices that read the same input stands for all of them


class Settings(Part):
    """How neurons are chosen, carried and put in place."""

    mode: Literal["swap", "widen", "replace"] = Field(
        "swap",
        description="swap: the teacher's whole FFN for the student's. widen: the best neurons beside the student's. "
        "replace: the best neurons in place of those the student uses least. The first two add parameters.",
    )
    neurons: int = Field(64, ge=1, le=1_000_000, description="Neurons a layer that are moved (not for swap).")
    chosen_by: Literal["sensitivity", "attribution", "random"] = Field(
        "sensitivity", description="What makes a teacher neuron worth moving (not for swap)."
    )
    maps: Literal["procrustes", "ridge", "identity"] = Field(
        "procrustes",
        description="How the spaces are matched: a scaled rotation, a ridge regression (fits better and shrinks what "
        "is rare), or not at all (only where both models have one width).",
    )
    attention: bool = Field(False, description="swap: carry the teacher's attention heads along with its FFN.")
    refit: bool = Field(
        False,
        description="Fit what a layer reads on the student as it is by then, its earlier layers carried already.",
    )
    rows: int = Field(8192, ge=64, le=1_000_000, description="Tokens of known text that the maps are fitted on.")


class Neurons(NamedTuple):
    """Neurons of one layer: gate and up (k, d), down (k, d), one row each."""

    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor


def check(teacher: Checkpoint, student: Checkpoint, settings: Settings) -> None:
    """Raises InputError: more neurons than a layer has, the identity between models of two widths, or attention that
    cannot be carried."""
    if settings.attention:
        if settings.mode != "swap":
            raise InputError("method.attention: only a swap carries attention; set method.mode to swap.")
        for name, checkpoint in (("teacher", teacher), ("student", student)):
            if (family := checkpoint.architecture.family.name) not in ("Llama", "Mistral"):
                raise InputError(
                    f"method.attention: {family}'s attention has biases or norms of its own, which are not carried "
                    f"({name}); leave it off, or use two Llama or Mistral models."
                )
        sizes = teacher.architecture.head_dim, student.architecture.head_dim
        if sizes[0] != sizes[1]:
            raise InputError(f"method.attention: heads of {sizes[0]} and {sizes[1]} directions do not fit together.")
    if settings.mode != "swap":
        for name, size in (("teacher", teacher.architecture.ffn), ("student", student.architecture.ffn)):
            if settings.neurons > size and not (name == "student" and settings.mode == "widen"):
                raise InputError(
                    f"method.neurons: {settings.neurons} is more than the {size} neurons of a layer of the {name}."
                )
    sides = teacher.architecture.hidden, student.architecture.hidden
    if settings.maps == "identity" and sides[0] != sides[1]:
        raise InputError(
            f"method.maps: identity needs models of one width, not {sides[0]} and {sides[1]}; use procrustes or ridge."
        )


def start(align: Align) -> Start:
    """The student with the teacher's neurons in place: a checkpoint, or for `replace` an exact adapter.

    Raises InputError: no known text to fit maps on, or neurons that were not scored.
    """
    return _start(align)


def _noise(align: Align) -> Start:
    """As many neurons, each of the same size, that point anywhere."""
    import torch

    generator = torch.Generator().manual_seed(align.seed + 1_000_003)

    def scramble(rows: torch.Tensor) -> torch.Tensor:
        drawn = torch.randn(rows.shape, generator=generator, dtype=torch.float64).to(rows)
        return drawn * (rows.norm(dim=1, keepdim=True) / drawn.norm(dim=1, keepdim=True))

    return _start(align, scramble)


def _random(align: Align) -> Start:
    """As many neurons of the teacher, drawn at random. A swap moves all there are, so it is the method itself."""
    return _start(align.other(settings=align.settings.model_copy(update={"chosen_by": "random"})))


def _start(align: Align, change: Any = None) -> Start:
    import torch

    settings, student, teacher = align.settings, align.student, align.teacher
    made = Start(tuned=False, examples=len(align.known))
    with torch.no_grad():
        points = known_points(align)
        streams = {
            "teacher": read_streams(teacher, points, "teacher"),
            "student": read_streams(student, points, "student"),
        }
        for layer, source in enumerate(align.pairs):
            if settings.refit and layer:
                now = replace(student, model=rebuilt_so_far(student, made))
                streams["student"] |= {
                    (k, m): x for (k, m), x in read_streams(now, points, "student").items() if k == layer and m in READS
                }
            written = carry(
                settings.maps, streams["teacher"][(source, "residual")], streams["student"][(layer, "residual")]
            )
            read = carry(settings.maps, streams["student"][(layer, "gate")], streams["teacher"][(source, "gate")])
            chosen = torch.arange(teacher.architecture.ffn)
            if settings.mode != "swap":
                chosen = choose(align, source, settings.neurons)
            moved = neurons_of(teacher, source, chosen)
            moved = Neurons(moved.gate @ read[0].T, moved.up @ read[0].T, moved.down @ written[0])
            if change is not None:
                moved = Neurons(*map(change, moved))
            _place(made, align, layer, moved, streams["student"][(layer, "down")])
            if settings.attention:
                _attention(made, align, (layer, source), streams, written[0], change)
            fits = {"fit_in": read[1], "fit_out": written[1], "neurons": len(chosen)}
            made.table.append({"student_layer": layer, "teacher_layer": source, **fits})
            align.progress(layer + 1, student.architecture.layers, "carrying neurons")
    return made


def rebuilt_so_far(student: Loaded, made: Start) -> Any:
    """The student with the layers that are carried already; a copy."""
    import copy

    import torch

    model = copy.deepcopy(student.model)
    for (layer, module), new in made.matrices.items():
        linear = model.get_submodule(student.architecture.path(module, layer))
        linear.weight = torch.nn.Parameter(new.to(linear.weight), requires_grad=False)
        if module == "k":
            attention = model.get_submodule(f"model.layers.{layer}.self_attn")
            attention.num_key_value_groups = made.matrices[(layer, "q")].shape[0] // new.shape[0]
    for (layer, module), (b, a) in made.factors.items():
        linear = model.get_submodule(student.architecture.path(module, layer))
        linear.weight += (b @ a).to(linear.weight)
    return model


def _attention(
    made: Start, align: Align, layers: tuple[int, int], streams: dict[str, Any], written: torch.Tensor, change: Any
) -> None:
    """Put the teacher's heads in place of the student's: q, k, v read through their own map, o writes through M."""
    layer, source = layers
    read, _ = carry(align.settings.maps, streams["student"][(layer, "q")], streams["teacher"][(source, "q")])
    for module in ("q", "k", "v", "o"):
        weight = align.teacher.weight(module, source).double()
        rows = weight.T @ written if module == "o" else weight @ read.T  # one row per direction of a head
        rows = rows if change is None else change(rows)
        new = rows.T.contiguous() if module == "o" else rows
        made.matrices[(layer, module)] = new.to(align.student.model.dtype)


def known_points(align: Align) -> list[Points]:
    """Places of known text that both models read alike, at most `settings.rows` of them (whole examples).

    Raises InputError where there is no such text.
    """
    from paraknow.similarity import points

    if not align.known:
        raise InputError("transport needs text that both models know: give the task an align split.")
    pair = align.teacher, align.student
    contexts = [min(align.tune.max_length, m.architecture.context) for m in pair]
    found = points.aligned(
        align.known, pair[0].tokenizer, pair[1].tokenizer, (contexts[0], contexts[1]), 4096, whole=True, seed=align.seed
    )
    rows = accumulate(len(point.offsets) for point in found)
    return [point for point, total in zip(found, rows, strict=True) if total <= align.settings.rows] or found[:1]


def read_streams(loaded: Loaded, points: list[Points], side: str) -> dict[Place, torch.Tensor]:
    """What attention ("q"), FFN ("gate") and its second half ("down") of every layer read, and what layers put out
    ("residual"), at the points: (rows, ·) each."""
    from paraknow.similarity import activations

    texts, at = [getattr(p, f"{side}_ids") for p in points], [getattr(p, f"{side}_at") for p in points]
    found = activations.rows_of(loaded, texts, at, (*READS, "down"), inputs=True)
    return found | activations.rows_of(loaded, texts, at, ("residual",))


def carry(name: str, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The map from X to Y in float64, and the share of Y that it explains."""
    from paraknow.similarity import maps

    a = maps.MAPS[name](x, y)
    return a, maps.fit(x, y, a)


def choose(align: Align, layer: int, count: int) -> torch.Tensor:
    """Indices (count,) of the teacher's best neurons of a layer, best first. Raises InputError without scores."""
    import torch

    size = align.teacher.architecture.ffn
    if align.settings.chosen_by == "random":
        return torch.randperm(size, generator=torch.Generator().manual_seed(align.seed * 1009 + layer))[:count]
    by_sensitivity = align.settings.chosen_by == "sensitivity"
    table = align.ffn_sensitivity if by_sensitivity else align.neurons
    if table is None or not len(table):
        raise InputError("method.chosen_by: attribution needs scored neurons; set locate.neurons to exact.")
    own = table[(table.model == "teacher") & (table.layer == layer)]
    if not by_sensitivity:
        own = own[own.kind == "ffn"]
    scores = own.groupby("neuron")["sensitivity" if by_sensitivity else "score"].sum().reindex(range(size))
    return torch.from_numpy(scores.to_numpy()).argsort(descending=True, stable=True)[:count]


def neurons_of(loaded: Any, layer: int, chosen: torch.Tensor) -> Neurons:
    """Chosen neurons of a model's layer in float64."""
    gate, up, down = (loaded.weight(m, layer).double() for m in FFN)
    chosen = chosen.to(gate.device)
    return Neurons(gate[chosen], up[chosen], down.T[chosen])


def _place(made: Start, align: Align, layer: int, moved: Neurons, activations: torch.Tensor) -> None:
    """Put neurons into a layer of the student, as the mode says. `activations` (rows, f) are its own on known text: the
    least used neuron is the one with the smallest mean |m| times the norm of its column."""
    import torch

    student, mode = align.student, align.settings.mode
    if mode == "swap":
        parts = {"gate": moved.gate, "up": moved.up, "down": moved.down.T.contiguous()}
        made.matrices |= {(layer, m): w.to(student.model.dtype) for m, w in parts.items()}
        return
    own = Neurons(*(student.weight(m, layer).double() for m in FFN))
    if mode == "widen":
        made.matrices[(layer, "gate")] = torch.cat([own.gate, moved.gate]).to(student.model.dtype)
        made.matrices[(layer, "up")] = torch.cat([own.up, moved.up]).to(student.model.dtype)
        made.matrices[(layer, "down")] = torch.cat([own.down, moved.down.T], 1).to(student.model.dtype)
        return
    usage = activations.double().abs().mean(0) * own.down.norm(dim=0)
    least = usage.argsort(stable=True)[: len(moved.gate)]
    hot = torch.zeros(len(usage), len(least), dtype=torch.float32, device=usage.device)
    hot[least, torch.arange(len(least), device=usage.device)] = 1.0
    made.factors[(layer, "gate")] = (hot, (moved.gate - own.gate[least]).float())
    made.factors[(layer, "up")] = (hot.clone(), (moved.up - own.up[least]).float())
    made.factors[(layer, "down")] = ((moved.down.T - own.down[:, least]).float(), hot.T.contiguous())


METHOD = Method(
    name="transport",
    title="Transport of neurons",
    paradigm="pre-align",
    reference="METHODS 2.6 (ours)",
    needs=("text that both models know",),
    cost="one forward pass of both models over known text, two small SVDs a layer; no training",
    start=start,
    settings=Settings,
    locates=True,
    check=check,
    variants={"noise": _noise, "random_window": _random},
)
