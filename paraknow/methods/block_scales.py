"""Block scales: another method's change, with one learned number per matrix (after aTLAS, Knowledge Composition using
Task Vectors with Learned Anisotropic Scaling, arXiv 2407.02880).

W + s·B·A with B·A what the method `of` moves into that matrix: the moved block where it would be tuned afterwards,
the change itself where it would not. The s start at 0, which is the student exactly, and are fitted by cross-entropy
on text that both models know (the task's align split; its training split where that is empty, or where asked for).
A student that answers that text without fault leaves nothing to fit, and a warning says so. The paper scales several
task vectors, made by fine-tuning; we scale one change, made by any method.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from paraknow.errors import InputError
from paraknow.methods._teaching import outcome, used
from paraknow.methods.base import Align, Method, Place, RankSettings, Start

if TYPE_CHECKING:
    import torch

    from paraknow.checkpoints import Checkpoint
    from paraknow.models import Loaded

    Factors = dict[Place, tuple[torch.Tensor, torch.Tensor]]


NOTHING_TO_LEARN = 0.01  # nats per answer token


class ScaleSettings(RankSettings):
    """Settings of block scales."""

    of: str = Field("seeking", min_length=1, max_length=100, description="The method whose change is scaled.")
    fit_on: Literal["align", "train"] = Field(
        "align", description="The split the scales are fitted on: what both models know, or the task's training data."
    )
    epochs: int = Field(3, ge=1, le=10000, description="Passes over that split.")
    learning_rate: float = Field(
        0.03, gt=0, le=1, description="AdamW's peak rate: about what a scale can move in one step."
    )


def inner(settings: ScaleSettings) -> tuple[Method, Any]:
    """The method whose change is scaled, and its settings: its own defaults with our rank.

    Raises InputError: no such method, a control, this method itself, or one that changes no weights.
    """
    from paraknow import methods

    method = methods.get(settings.of)
    why = ""
    if method.name == METHOD.name:
        why = "cannot scale itself"
    elif method.paradigm == "control" or method.needs_clone:
        why = "is a control, not a method"
    elif method.decode is not None:
        why = "changes no weights"
    if why:
        raise InputError(f"method.of: {settings.of!r} {why}; give a method that moves blocks, such as seeking.")
    values = {"rank": settings.rank} if "rank" in method.settings.model_fields else {}
    return method, method.settings.model_validate(values)


def check(teacher: Checkpoint, student: Checkpoint, settings: Any) -> None:
    """Raises InputError where `of` cannot be scaled or refuses the pair itself."""
    method, values = inner(settings)
    if method.check is not None:
        method.check(teacher, student, values)


def start(align: Align) -> Start:
    """(s·B, A) per matrix, not tuned again. `table`: one row per matrix with its scale and ‖s·B·A‖.

    Raises InputError where the method `of` gives whole matrices or moves nothing.
    """
    method, values = inner(align.settings)
    return fit(align.share(1, 2), method.start(align.share(0, 2).other(settings=values, method=method)), method.name)


def noise(align: Align) -> Start:
    """The control: the same number of scales, fitted in the same way, on noise of the change's size and spectrum."""
    from paraknow import methods

    method, values = inner(align.settings)
    made = methods.get("noise").start(align.share(0, 2).other(settings=values, method=method))
    return fit(align.share(1, 2), made, method.name)


def fit(align: Align, made: Start, of: str) -> Start:
    """One scale per matrix of what `of` made."""
    import torch

    from paraknow import tune

    if not made.factors:
        raise InputError(f"method.of: {of!r} gives no factors to scale; give a method that does, such as seeking.")
    if not any(bool(b.any()) and bool(a.any()) for b, a in made.factors.values()):
        raise InputError(f"method.of: {of!r} starts at zero, so there is nothing to scale; give seeking or laten.")
    student = align.student
    known = align.known if align.settings.fit_on == "align" else ()
    items = align.encode(known or align.train, student)
    changes = {"epochs": align.settings.epochs, "learning_rate": align.settings.learning_rate}
    scales = torch.nn.Parameter(torch.zeros(len(made.factors), device=student.device))

    class Scaled(torch.nn.Module):
        """The student with its scales as the only parameters that move."""

        def __init__(self) -> None:
            super().__init__()
            self.scales, self.student = scales, student.model

        def forward(self, **given: Any) -> Any:
            return self.student(**given)

        def get_output_embeddings(self) -> Any:
            return self.student.get_output_embeddings()

    with scaled(student, made.factors, scales):
        tuned = tune.fine_tune(
            Scaled(),
            items,
            align.tune.model_copy(update=changes),
            align.seed,
            student.tokenizer.pad_token_id or 0,
            align.progress,
            savepoint=align.part_of("scales"),
        )
    found = scales.detach().cpu()
    factors = {
        place: (b.float() * found[i].to(b.device), a.float()) for i, (place, (b, a)) in enumerate(made.factors.items())
    }
    norms = torch.stack([norm(b, a).cpu() for b, a in factors.values()]).tolist()
    table = [
        {"layer": layer, "module": module, "scale": scale, "norm": size}
        for (layer, module), scale, size in zip(factors, found.tolist(), norms, strict=True)
    ]
    spent = used(tuned)
    spent["examples"] += made.examples
    spent["steps"] += made.steps
    facts = {"of": of, "mean_scale": float(found.mean())}
    if tuned.losses[0] < NOTHING_TO_LEARN:
        facts["warning"] = (
            f"the student already answers what the scales are fitted on (loss {tuned.losses[0]:.1g}), so they mean "
            "little; fit_on: train gives them something to learn."
        )
    facts |= outcome(tuned)
    return Start(factors, tuned=False, facts=facts, table=table, **spent)


def norm(b: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """‖B·A‖ of B (out, r) and A (r, in) without forming the product: tr(BᵀB · AAᵀ)^½."""
    return ((b.T @ b) * (a @ a.T)).sum().clamp_min(0).sqrt()


@contextmanager
def scaled(student: Loaded, factors: Factors, scales: torch.Tensor) -> Iterator[None]:
    """The student as W + s·B·A, through hooks on its outputs; gradients flow into `scales` (matrices,), in the
    order of `factors`. Afterwards the plain student again."""
    import torch.nn.functional as F

    def hook(number: int, module: str, b: torch.Tensor, a: torch.Tensor) -> Any:
        def add(_: Any, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            # the embedding's rows are token ids, and so are those of B
            inside = F.embedding(given[0], b) @ a if module == "embed" else given[0].float() @ a.T @ b.T
            return output + (scales[number] * inside).to(output.dtype)

        return add

    handles = []
    try:
        for number, ((layer, module), (b, a)) in enumerate(factors.items()):
            target = student.model.get_submodule(student.architecture.path(module, layer))
            b, a = (x.to(student.device).float() for x in (b, a))
            handles.append(target.register_forward_hook(hook(number, module, b, a)))
        yield
    finally:
        for handle in handles:
            handle.remove()


METHOD = Method(
    name="block_scales",
    title="Learned block scales",
    paradigm="pre-align",
    reference="arXiv 2407.02880 (NeurIPS 2024)",
    needs=("another method that moves blocks",),
    cost="as the method it scales, without its fine-tuning; then a few epochs with one number per matrix",
    start=start,
    settings=ScaleSettings,
    locates=True,
    check=check,
    variants={"noise": noise},
)
