"""Shared by the methods that train on their own before anything is moved: distillation from the teacher's logits, and
what a training used (no torch at import).

Notation: per answer token z_T, z_S the teacher's and the trained student's logits (V,), y the right token,
p_τ = softmax(z/τ). Loss: (1 − mix)·τ²·KL(target_τ ‖ p_S,τ) − mix·log p_S(y), averaged over answer tokens; τ² keeps the
gradient's size as τ changes (Hinton et al., arXiv 1503.02531, section 2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import Field

from paraknow.errors import InputError
from paraknow.methods.base import Align, RankSettings, Start

if TYPE_CHECKING:
    import torch

    from paraknow.checkpoints import Checkpoint
    from paraknow.tune import Tuned

# (teacher's logits, untouched student's logits, tokens) -> whether the teacher is the target, per token
Sure = Callable[["torch.Tensor", "torch.Tensor", "torch.Tensor"], "torch.Tensor"]


class TeachingSettings(RankSettings):
    """Settings of distillation."""

    temperature: float = Field(
        2.0, ge=0.1, le=100, description="Both distributions are softened by it; Hinton et al.: 1 to 20, 2 for us."
    )
    mix: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Weight of plain cross-entropy on the answers beside the teacher. 0: the teacher alone teaches.",
    )


def need_one_vocabulary(name: str, teacher: Checkpoint, student: Checkpoint) -> None:
    """Raises InputError where logits of the two models cannot be compared."""
    from paraknow.checkpoints import same_vocabulary

    if not same_vocabulary(teacher, student):
        raise InputError(
            f"method {name!r} compares both models' logits and needs one vocabulary; {teacher.spec} and "
            f"{student.spec} have different ones (use sft, seeking or laten)."
        )


def used(tuned: Tuned) -> dict[str, Any]:
    """What a training used, as fields of a Start."""
    return {
        "examples": tuned.examples,
        "steps": tuned.steps,
        "trainable": tuned.trainable,
        "losses": tuned.losses,
    }


def outcome(tuned: Tuned) -> dict[str, Any]:
    """Facts of a training whose loss ran away; none of one that went through."""
    return {"warning": tuned.warning, "kept_step": tuned.kept_step} if tuned.warning else {}


def soft_loss(
    target: torch.Tensor, logits: torch.Tensor, tokens: torch.Tensor, temperature: float, mix: float
) -> torch.Tensor:
    """The loss above, summed; target and logits (tokens, V) in float32 before temperature, tokens (tokens,)."""
    import torch.nn.functional as F

    wanted, found = (F.log_softmax(z / temperature, dim=-1) for z in (target, logits))
    divergence = F.kl_div(found, wanted, reduction="sum", log_target=True)
    loss = (1 - mix) * temperature**2 * divergence
    if mix:
        loss = loss + mix * F.cross_entropy(logits, tokens, reduction="sum")
    return loss


def teach(align: Align, sure: Sure | None = None) -> Start:
    """Train a plain LoRA (Gaussian A, B zero) of the located matrices on align.train against the teacher's logits.

    The teacher reads the same micro-batch, without gradients. With `sure`, the untouched student (the same model
    with its adapter off) reads it too and is the target where the teacher is not; `facts.taught` is then the share
    of answer tokens the teacher taught.
    """
    import torch

    from paraknow import inject, tune

    student, teacher, settings = align.student, align.teacher.model, align.settings
    # one encoding serves both models, so it must fit both contexts
    length = min(align.tune.max_length, align.teacher.architecture.context)
    both = align.other(tune=align.tune.model_copy(update={"max_length": length}))
    items = both.encode(align.train, student)
    start = Start(inject.peft_start(align, "gaussian"))
    counts = torch.zeros(2, dtype=torch.float64, device=student.device)

    with inject.attached(student, start) as wrapped:

        def objective(
            ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor, logits: torch.Tensor
        ) -> torch.Tensor:
            tokens = tune.answers(labels).to(logits.device, non_blocking=True)
            # with the adapter off, for the teacher may be the student itself (the control `self`)
            with torch.no_grad(), wrapped.disable_adapter():
                place = align.teacher.device
                with tune.answers_alone(teacher, labels):
                    given = teacher(input_ids=ids.to(place), attention_mask=mask.to(place), use_cache=False).logits[0]
                target = given.to(logits.device).float()
                if sure is not None:
                    with tune.answers_alone(wrapped, labels):
                        before = wrapped(input_ids=ids, attention_mask=mask, use_cache=False).logits[0].float()
                    taught = sure(target, before, tokens)
                    target = torch.where(taught[:, None], target, before)
                    counts.add_(torch.stack([taught.sum(), torch.ones_like(taught).sum()]))
            return soft_loss(target, logits.float(), tokens, settings.temperature, settings.mix)

        pad = student.tokenizer.pad_token_id or 0
        if align.savepoint:
            align.savepoint.also["taught"] = counts
        tuned = tune.fine_tune(wrapped, items, align.tune, align.seed, pad, align.progress, objective, align.savepoint)
        factors = read_back(wrapped, align, start)
    facts: dict[str, Any] = dict(outcome(tuned))
    if sure is not None:
        taught_tokens, all_tokens = counts.tolist()
        facts["taught"] = taught_tokens / all_tokens
    return Start(factors, tuned=False, facts=facts, **used(tuned))


def read_back(wrapped: Any, align: Align, start: Start) -> dict[tuple[int, str], tuple[torch.Tensor, torch.Tensor]]:
    """B (out, r) and A (r, in) of the moving adapter as they are now, in float32."""
    from paraknow.inject import MOVING, _slots

    factors = {}
    for layer, module in start.factors:
        path = align.student.architecture.path(module, layer)
        b, a, embedding = _slots(wrapped.get_base_model().get_submodule(path), MOVING)
        b, a = (a.T, b.T) if embedding else (b, a)
        factors[(layer, module)] = (b.detach().float().clone(), a.detach().float().clone())
    return factors
