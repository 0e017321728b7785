from __future__ import annotations

import copy

import pytest
import torch

from paraknow import inject, twins
from paraknow.methods.base import Start
from tests.test_inject import random_start

IDS = torch.arange(3, 40).reshape(1, -1)


def joined(wrapped) -> list:
    return [m for m in wrapped.modules() if "forward" in vars(m)]


def passed(wrapped) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits, and the gradients of some loss of them."""
    logits = wrapped(input_ids=IDS, use_cache=False).logits
    wrapped.zero_grad()
    logits.float().square().mean().backward()
    return logits.detach(), {n: p.grad.clone() for n, p in wrapped.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("tuned", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_and_gradients_are_pefts_own(tiny_pair, tuned, dtype):
    student = copy.copy(tiny_pair[1])
    student.model = copy.deepcopy(student.model).to(dtype)
    with inject.attached(student, random_start(student, tuned)) as wrapped:
        assert len(joined(wrapped)) == 4  # q, v, up, lm_head; the embedding stays as peft has it
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if inject.MOVING in name:
                    parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        ours = passed(wrapped)
        for layer in joined(wrapped):
            del layer.forward
        theirs = passed(wrapped)
    assert ours[1].keys() == theirs[1].keys() and all(inject.MOVING in name for name in ours[1])
    close = {"atol": 1e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.1}
    torch.testing.assert_close(ours[0], theirs[0], **close)
    for name, gradient in ours[1].items():
        scale = max(float(theirs[1][name].abs().max()), 1e-12)
        torch.testing.assert_close(gradient / scale, theirs[1][name] / scale, **close)


def test_the_gradient_is_the_derivative():
    torch.manual_seed(0)
    sizes = ((5, 4), (5, 3), (4, 2), (2, 3), (4, 2), (2, 3))  # base, x, B, A, −B0, A0
    given = [torch.randn(*s, dtype=torch.float64, requires_grad=k < 4) for k, s in enumerate(sizes)]
    assert torch.autograd.gradcheck(twins._Added.apply, given)
    assert torch.autograd.gradcheck(twins._Added.apply, given[:4])
    base, x, b, a, b0, a0 = given
    torch.testing.assert_close(twins._Added.apply(*given), base + x @ a.T @ b.T + x @ a0.T @ b0.T)


def test_adapters_that_are_off_change_nothing(tiny_pair):
    _, student = tiny_pair
    plain = inject.probe_logits(student.model, IDS[0])
    with inject.attached(student, Start(random_start(student).factors, tuned=False)) as wrapped:
        assert not torch.equal(inject.probe_logits(wrapped, IDS[0]), plain)
        with wrapped.disable_adapter():
            assert torch.equal(inject.probe_logits(wrapped, IDS[0]), plain)
    assert torch.equal(inject.probe_logits(student.model, IDS[0]), plain)


def test_adapters_of_another_scale_stay_pefts(tiny_pair):
    _, student = tiny_pair
    with inject.attached(student, random_start(student)) as wrapped:
        for layer in joined(wrapped):
            del layer.forward
            layer.scaling[inject.MOVING] = 2.0
        twins.join(wrapped, [inject.MOVING, inject.FROZEN])
        assert not joined(wrapped)
