from __future__ import annotations

import copy

import pytest
import torch

from paraknow import budget, inject, models
from tests.test_inject import random_start

IDS = torch.arange(3, 33)[None].repeat(2, 1)  # 60 tokens
TOKENS = 60


def size_of(loaded) -> int:
    """N by hand: matrices and norms of the layers, the last norm, lm_head; not the embedding."""
    a = loaded.architecture
    layer = sum(n * m for n, m in map(a.shape, ("q", "k", "v", "o", "gate", "up", "down"))) + 2 * a.hidden
    return a.layers * layer + a.hidden + a.vocabulary * a.hidden


@pytest.fixture
def spent(tiny_pair):
    with budget.counting(*tiny_pair) as found:
        yield found


def test_nothing_costs_nothing(spent):
    assert spent == {"teacher_flops": 0.0, "student_flops": 0.0}


def test_a_forward_pass_costs_two_a_parameter_and_token(tiny_pair, spent):
    teacher, student = tiny_pair
    with torch.no_grad():
        teacher.model(input_ids=IDS)
        teacher.model(IDS)
        student.model.model(input_ids=IDS[:1])  # without lm_head: as similarity reads a model
        student.model(inputs_embeds=student.model.model.embed_tokens(IDS))
    assert spent["teacher_flops"] == 2 * 2 * TOKENS * size_of(teacher)
    assert spent["student_flops"] == 2 * (TOKENS / 2 + TOKENS) * size_of(student)


def test_generation_counts_every_step(tiny_pair, spent):
    with torch.no_grad():
        tiny_pair[1].model.generate(IDS[:1], max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert spent["student_flops"] == 2 * (30 + 3) * size_of(tiny_pair[1])  # what was read is cached


def test_lora_pays_for_gradients_through_the_model_and_for_what_is_trained(tiny_pair, spent):
    _, student = tiny_pair
    with inject.attached(student, random_start(student, modules=("q", "up"))) as wrapped:
        trained = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
        wrapped(input_ids=IDS, labels=IDS).loss.backward()
    a = student.architecture
    assert trained == 3 * (sum(a.shape("q")) + sum(a.shape("up")))
    assert spent["student_flops"] == 2 * TOKENS * (2 * size_of(student) + trained)


def test_full_training_costs_two_more_for_every_parameter(tiny_pair, spent):
    teacher, _ = tiny_pair
    with models.gradients_on(teacher.model):
        teacher.model(input_ids=IDS, labels=IDS).loss.backward()
    parameters = sum(p.numel() for p in teacher.model.parameters())  # lm_head is one of them
    assert spent["teacher_flops"] == 2 * TOKENS * (2 * size_of(teacher) + parameters)


def test_gradients_end_at_the_lowest_layer_that_is_trained(tiny_pair, spent):
    teacher, _ = tiny_pair
    upper = [p for n, p in teacher.model.named_parameters() if n.startswith("model.layers.1.")]
    with models.gradients_on(teacher.model, upper):
        teacher.model(input_ids=IDS, labels=IDS).loss.backward()
    layer = sum(p.numel() for p in upper)
    assert spent["teacher_flops"] == 2 * TOKENS * (2 * size_of(teacher) - layer + layer)


def test_tied_embeddings_are_multiplied_once(checkpoint, tiny_pair):
    gemma = models.load(str(checkpoint("gemma", seed=1)), device="cpu")
    with budget.counting(gemma, tiny_pair[1]) as spent, torch.no_grad():
        gemma.model(input_ids=IDS)
    assert spent["teacher_flops"] == 2 * TOKENS * size_of(gemma)


def test_copies_count_for_the_model_they_are_of(tiny_pair):
    with budget.counting(*tiny_pair) as spent, torch.no_grad():
        copy.deepcopy(tiny_pair[1].model)(input_ids=IDS)
    assert spent == {"teacher_flops": 0.0, "student_flops": 2 * TOKENS * size_of(tiny_pair[1])}


def test_a_widened_copy_costs_what_it_holds(tiny_pair):
    """As healing a checkpoint with more neurons does."""
    from paraknow import results
    from tests.test_results import shaped

    _, student = tiny_pair
    with budget.counting(*tiny_pair) as spent, torch.no_grad():
        model = results.rebuilt(student, shaped(student, ffn=100))
        model(input_ids=IDS)
    a = student.architecture
    wider = size_of(student) + a.layers * 3 * a.hidden * (100 - a.ffn)
    assert spent["student_flops"] == 2 * TOKENS * wider


@pytest.mark.parametrize("fails", [False, True])
def test_hooks_leave_in_any_case(tiny_pair, fails):
    try:
        with budget.counting(*tiny_pair):
            if fails:
                raise KeyError
    except KeyError:
        pass
    for loaded in tiny_pair:
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in loaded.model.modules())


def test_one_model_in_both_parts_counts_in_both(tiny_pair):
    _, student = tiny_pair
    with budget.counting(student, student) as spent, torch.no_grad():
        student.model(input_ids=IDS)
    assert spent["teacher_flops"] == spent["student_flops"] == 2 * TOKENS * size_of(student)


def test_more_than_names_what_was_given_in_excess():
    examined = dict.fromkeys(budget.FIELDS, 100.0) | {"added": 0}
    assert budget.more_than(examined, examined) == []
    assert budget.more_than(examined | {"steps": 104, "examples": 20}, examined) == []
    assert budget.more_than(examined | {"steps": 106, "added": 1}, examined) == ["steps", "added"]
    assert budget.more_than(examined | {"teacher_flops": 1e9}, examined) == ["teacher_flops"]
