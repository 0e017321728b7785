"""Transport: whole FFN neurons of the teacher, carried through maps between the two models' spaces (METHODS 2.6).

Notation, per pair of layers, rows are tokens: X_S, X_T what the FFNs read (after the norm), R_S, R_T the residual
streams at the layers' outputs. x_T ≈ x_S·N and r_S ≈ r_T·M, so a teacher neuron with gate and up rows g, u and down
column v becomes (g·Nᵀ, u·Nᵀ, v·M). Attention goes the same way: rows of q, k and v read, columns of o write. Nothing
is trained.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from paraknow.checkpoints import same_vocabulary
from paraknow.config import FFN, Part
from paraknow.errors import InputError
from paraknow.methods._carry import Matching, known_points, read_streams, rebuilt_so_far
from paraknow.methods.base import Align, Method, Start
from paraknow.methods.shuffled_teacher import derangement

if TYPE_CHECKING:
    import torch

    from paraknow.checkpoints import Checkpoint


class Settings(Part):
    """How neurons are chosen, carried and put in place."""

    mode: Literal["swap", "widen", "replace", "regress"] = Field(
        "swap",
        description="swap: the teacher's whole FFN for the student's. widen: the best neurons beside the student's. "
        "replace: the best neurons in place of those the student uses least. The first two add parameters. regress: "
        "no neurons move; the student's own learn, in closed form, to write what the carried FFN would.",
    )
    neurons: int = Field(
        64, ge=1, le=1_000_000, description="Neurons a layer that are moved; for regress its rank; not for swap."
    )
    chosen_by: Literal["sensitivity", "attribution", "random"] = Field(
        "sensitivity", description="What makes a teacher neuron worth moving (not for swap)."
    )
    maps: Literal["procrustes", "ridge", "vocabulary", "identity"] = Field(
        "procrustes",
        description="How the spaces are matched: a scaled rotation of the streams, a ridge regression (fits better and "
        "shrinks what is rare), a rotation of the two vocabularies' embeddings, or not at all (models of one width).",
    )
    pairing: Literal["located", "kin"] = Field(
        "located",
        description="Which teacher layer goes to which student layer: as locating chose, or the pairing in order with "
        "the largest kinship (attention matrices that are alike once carried by the vocabulary; reads no text).",
    )
    attention: bool = Field(False, description="swap: carry the teacher's attention heads along with its FFN.")
    refit: bool = Field(
        False,
        description="Fit what a layer reads on the student as it is by then, its earlier layers carried already.",
    )
    heal: int = Field(
        0,
        ge=0,
        le=100_000,
        description="swap, widen: about so many steps of tuning on known text afterwards (whole passes over it), every "
        "matrix of the layers.",
    )
    learn: int = Field(
        0,
        ge=0,
        le=100_000,
        description="swap: about so many steps of training the maps themselves on known text (one network for all "
        "layers, conditioned on the layer, that starts from the fitted maps); the teacher's neurons stay as they are.",
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
        if student.architecture.hidden % teacher.architecture.heads:  # transformers loads no such model
            raise InputError(
                f"method.attention: the teacher's {teacher.architecture.heads} heads do not divide the student's width "
                f"of {student.architecture.hidden}; leave it off."
            )
        if _turning(teacher) != _turning(student):
            raise InputError(
                "method.attention: the two models turn queries and keys by different angles (rope_theta, rope_scaling, "
                "attention_bias in config.json), so heads do not carry over; leave it off."
            )
    if settings.mode != "regress" and (acts := (_activation(teacher), _activation(student)))[0] != acts[1]:
        raise InputError(
            f"method.mode: the activation functions differ ({acts[0]} and {acts[1]}), so neurons would compute "
            "something else in the student; only regress works."
        )
    if settings.mode != "swap":
        for name, size in (("teacher", teacher.architecture.ffn), ("student", student.architecture.ffn)):
            if settings.neurons > size and not (name == "student" and settings.mode == "widen"):
                raise InputError(
                    f"method.neurons: {settings.neurons} is more than the {size} neurons of a layer of the {name}."
                )
    if settings.learn and settings.mode != "swap":
        raise InputError("method.learn: only the maps of a swap are trained; set method.mode to swap.")
    if settings.heal and settings.mode not in ("swap", "widen"):
        raise InputError(
            "method.heal: only the checkpoints of swap and widen are tuned; set method.mode to one of them."
        )
    by_vocabulary = [f for f, v in (("maps", "vocabulary"), ("pairing", "kin")) if getattr(settings, f) == v]
    if by_vocabulary and not same_vocabulary(teacher, student):
        field = by_vocabulary[0]
        raise InputError(
            f"method.{field}: {getattr(settings, field)} needs one vocabulary, and {teacher.spec} and {student.spec} "
            "have different ones; "
            "use procrustes maps and pairing located."
        )
    if settings.mode == "regress" and settings.neurons > min(student.architecture.shape("down")):
        raise InputError(
            f"method.neurons: a rank of {settings.neurons} is above the shorter side of the student's down matrix "
            f"{student.architecture.shape('down')}."
        )
    sides = teacher.architecture.hidden, student.architecture.hidden
    if settings.maps == "identity" and sides[0] != sides[1]:
        raise InputError(
            f"method.maps: identity needs models of one width, not {sides[0]} and {sides[1]}; use procrustes or ridge."
        )


def holds(teacher: Checkpoint, student: Checkpoint, settings: Settings) -> int:
    """Numbers in the streams of both models, of all layers, at every row."""
    return settings.rows * sum(a.layers * (3 * a.hidden + a.ffn) for a in (teacher.architecture, student.architecture))


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    import json

    return json.loads((checkpoint.folder / "config.json").read_text(encoding="utf-8"))


def _activation(checkpoint: Checkpoint) -> str:
    values = _config(checkpoint)
    default = "gelu_pytorch_tanh" if checkpoint.architecture.family.name == "Gemma" else "silu"
    return values.get("hidden_activation") or values.get("hidden_act") or default


def _turning(checkpoint: Checkpoint) -> dict[str, Any]:
    """What decides how attention reads positions, beside its weights."""
    values = _config(checkpoint)
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    found = {"rope_theta": values.get("rope_theta") or 10000.0, "rope_type": "default"} | rope
    return found | {"attention_bias": bool(values.get("attention_bias"))}


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


def _shuffled(align: Align) -> Start:
    """The same layers, none of them at its place."""
    return _start(align, shuffled=True)


def _start(align: Align, change: Any = None, shuffled: bool = False) -> Start:
    import torch

    from paraknow.similarity.stitching import pair_layers

    settings, student, teacher = align.settings, align.student, align.teacher
    jobs = 1 + bool(settings.learn) + bool(settings.heal)
    made, carrying = Start(tuned=False, examples=len(align.known)), align.share(0, jobs)
    match = Matching(settings.maps, teacher, student)
    fitted: dict[tuple[int, int], torch.Tensor] = {}  # maps by (layer, role), for `learn`
    with torch.no_grad():
        points = known_points(align)
        streams = {
            "teacher": read_streams(teacher, points, "teacher"),
            "student": read_streams(student, points, "student"),
        }
        kin = match.kinship() if same_vocabulary(teacher.checkpoint, student.checkpoint) else None
        pairs = align.pairs
        if settings.pairing == "kin" and kin is not None:
            pairs = pair_layers(kin.cpu().numpy())
        if shuffled:
            pairs = [pairs[layer] for layer in derangement(len(pairs), align.seed)]
        for layer, source in enumerate(pairs):
            if settings.refit and layer:
                now = replace(student, model=rebuilt_so_far(student, made))
                fresh = read_streams(now, points, "student")
                streams["student"] |= {p: x for p, x in fresh.items() if p[0] == layer and p[1] != "residual"}
            inputs = streams["student"][(layer, "gate")], streams["teacher"][(source, "gate")]
            read = match.reads("gate", (layer, source), *inputs)
            written = match.writes(streams["teacher"][(source, "residual")], streams["student"][(layer, "residual")])
            chosen = torch.arange(teacher.architecture.ffn)
            if settings.mode in ("widen", "replace"):
                chosen = choose(align, source, settings.neurons)
            fitted |= {(layer, 1): read[0], (layer, 2): written[0]}
            moved = neurons_of(teacher, source, chosen)
            moved = Neurons(moved.gate @ read[0].T, moved.up @ read[0].T, moved.down @ written[0])
            if change is not None:
                moved = Neurons(*map(change, moved))
            if settings.mode == "regress":
                _regress(made, align, layer, moved, inputs[0], streams["student"][(layer, "down")])
            else:
                _place(made, align, layer, moved, streams["student"][(layer, "down")])
            if settings.attention:
                inputs = streams["student"][(layer, "q")], streams["teacher"][(source, "q")]
                heads, _ = match.reads("q", (layer, source), *inputs)
                fitted[(layer, 0)] = heads
                _attention(made, align, (layer, source), heads, written[0], change)
            fits = {"fit_in": read[1], "fit_out": written[1], "neurons": len(chosen)}
            fits["kinship"] = float("nan") if kin is None else float(kin[source, layer])
            made.table.append({"student_layer": layer, "teacher_layer": source, **fits})
            carrying.progress(layer + 1, student.architecture.layers, "carrying neurons")
    if settings.learn or settings.heal:
        from paraknow.methods import _trained

        if settings.learn:
            _trained.learn(made, align.share(1, jobs), pairs, fitted, change)
        if settings.heal:
            _trained.heal(made, align.share(jobs - 1, jobs))
    return made


def _attention(
    made: Start, align: Align, layers: tuple[int, int], read: torch.Tensor, written: torch.Tensor, change: Any
) -> None:
    """Put the teacher's heads in place of the student's: q, k, v read through N, o writes through M."""
    layer, source = layers
    for module in ("q", "k", "v", "o"):
        weight = align.teacher.weight(module, source).double()
        rows = weight.T @ written if module == "o" else weight @ read.T  # one row per direction of a head
        rows = rows if change is None else change(rows)
        new = rows.T.contiguous() if module == "o" else rows
        made.matrices[(layer, module)] = new.to(align.student.model.dtype)


def _regress(made: Start, align: Align, layer: int, moved: Neurons, x: torch.Tensor, m: torch.Tensor) -> None:
    """Reduced-rank regression, uncentred, of what the carried FFN adds to the student's own on the student's
    activations m (rows, f): ΔW = V_r·(C·V_r)ᵀ with C the ridge solution and V_r the first directions of m·C."""
    import torch

    x, m = x.double(), m.double()
    activation = align.teacher.model.get_submodule("model.layers.0.mlp").act_fn  # the carried FFN is the teacher's
    wanted = (activation(x @ moved.gate.T) * (x @ moved.up.T)) @ moved.down
    target = wanted - m @ align.student.weight("down", layer).double().T
    gram = m.T @ m
    strength = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    solution = torch.linalg.solve(gram + strength, m.T @ target)
    directions = torch.linalg.svd(m @ solution, full_matrices=False).Vh[: align.settings.neurons].T
    made.factors[(layer, "down")] = (directions.float(), (solution @ directions).T.float().contiguous())


def choose(align: Align, layer: int, count: int) -> torch.Tensor:
    """Indices (count,) of the teacher's best neurons of a layer, best first. Raises InputError without scores."""
    import torch

    size = align.teacher.architecture.ffn
    if align.settings.chosen_by == "random":
        return torch.randperm(size, generator=torch.Generator().manual_seed(align.seed * 1009 + layer))[:count]
    by_sensitivity = align.settings.chosen_by == "sensitivity"
    table = align.ffn_sensitivity if by_sensitivity else align.neurons
    if table is None or not len(table):
        what = "sensitivities" if by_sensitivity else "scored neurons (locate.neurons: exact)"
        raise InputError(f"method.chosen_by: {align.settings.chosen_by} needs {what}; locate first.")
    own = table[(table.model == "teacher") & (table.layer == layer)]
    if not by_sensitivity:
        own = own[own.kind == "ffn"]
    scores = own.groupby("neuron")["sensitivity" if by_sensitivity else "score"].sum().reindex(range(size))
    return torch.from_numpy(scores.to_numpy(copy=True)).argsort(descending=True, stable=True)[:count]


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
    copies=True,
    settings=Settings,
    locates=True,
    check=check,
    holds=holds,
    variants={"noise": _noise, "random_window": _random, "shuffled_teacher": _shuffled},
)
