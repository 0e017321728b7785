"""Transport: whole FFN neurons of the teacher, carried through maps between the two models' spaces (METHODS 2.6).

Notation, per pair of layers, rows are tokens: X_S, X_T what the FFNs read (after the norm), R_S, R_T the residual
streams at the layers' outputs. x_T ≈ x_S·N and r_S ≈ r_T·M, so a teacher neuron with gate and up rows g, u and down
column v becomes (g·Nᵀ, u·Nᵀ, v·M). Nothing is trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from paraknow.config import FFN, Part
from paraknow.errors import InputError
from paraknow.methods.base import Align, Method, Place, Start

if TYPE_CHECKING:
    import torch

    from paraknow.checkpoints import Checkpoint


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
    rows: int = Field(8192, ge=64, le=1_000_000, description="Tokens of known text that the maps are fitted on.")


class Neurons(NamedTuple):
    """Neurons of one layer: gate and up (k, d), down (k, d), one row each."""

    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor


def check(teacher: Checkpoint, student: Checkpoint, settings: Settings) -> None:
    """Raises InputError: more neurons than a layer has, or the identity between models of two widths."""
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
    shapes = student.architecture, teacher.architecture
    made = Start(tuned=False)
    with torch.no_grad():
        streams = read_streams(align)
        usage = _usage(streams, student) if settings.mode == "replace" else {}
        for layer, source in enumerate(align.pairs):
            x = streams["student"][(layer, "gate")], streams["teacher"][(source, "gate")]
            r = streams["teacher"][(source, "residual")], streams["student"][(layer, "residual")]
            into, out = carry(settings.maps, *x), carry(settings.maps, *r)
            chosen = torch.arange(shapes[1].ffn)
            if settings.mode != "swap":
                chosen = choose(align, source, settings.neurons)
            moved = neurons_of(teacher, source, chosen)
            moved = Neurons(moved.gate @ into[0].T, moved.up @ into[0].T, moved.down @ out[0])
            if change is not None:
                moved = Neurons(*map(change, moved))
            _place(made, align, layer, moved, usage.get(layer))
            fits = {"fit_in": into[1], "fit_out": out[1], "neurons": len(chosen)}
            made.table.append({"student_layer": layer, "teacher_layer": source, **fits})
            align.progress(layer + 1, shapes[0].layers, "carrying neurons")
    made.examples = len(align.known)
    return made


def read_streams(align: Align) -> dict[str, dict[Place, torch.Tensor]]:
    """FFN inputs ("gate"), their activations ("down") and residual streams of both models at the same places of known
    text, at most `settings.rows` of them. Raises InputError where there is no such text."""
    from paraknow.similarity import activations, points

    if not align.known:
        raise InputError("transport needs text that both models know: give the task an align split.")
    pair = {"teacher": align.teacher, "student": align.student}
    contexts = [min(align.tune.max_length, m.architecture.context) for m in pair.values()]
    tokenizers = [m.tokenizer for m in pair.values()]
    found = points.aligned(align.known, *tokenizers, (contexts[0], contexts[1]), 4096, whole=True, seed=align.seed)
    kept, rows = [], 0
    for point in found:  # whole examples, up to the wanted number of rows
        if rows >= align.settings.rows:
            break
        kept.append(point)
        rows += len(point.offsets)
    streams = {}
    for name, loaded in pair.items():
        texts, at = [getattr(p, f"{name}_ids") for p in kept], [getattr(p, f"{name}_at") for p in kept]
        inner = ("gate", "down") if name == "student" else ("gate",)
        streams[name] = activations.rows_of(loaded, texts, at, inner, inputs=True)
        streams[name] |= activations.rows_of(loaded, texts, at, ("residual",))
    return streams


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


def _usage(streams: dict[str, dict[Place, torch.Tensor]], student: Any) -> dict[int, torch.Tensor]:
    """How much each of the student's neurons writes on known text: mean |m| times the norm of its column, (f,)."""
    return {
        layer: streams["student"][(layer, "down")].double().abs().mean(0)
        * student.weight("down", layer).double().norm(dim=0)
        for layer in range(student.architecture.layers)
    }


def _place(made: Start, align: Align, layer: int, moved: Neurons, usage: torch.Tensor | None) -> None:
    """Put neurons into a layer of the student, as the mode says."""
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
    assert usage is not None
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
