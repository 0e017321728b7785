"""Controls change one ingredient of the method they stand beside, and nothing else (METHODS 2.5)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paraknow import config, data, methods, models
from paraknow.checks import check
from paraknow.errors import InputError
from paraknow.locate.blocks import Block
from paraknow.locate.located import locate
from paraknow.methods.base import Align, Method, Start
from paraknow.methods.shuffled_teacher import derangement
from tests.conftest import SMALL

RANK = 4
TASK = data.load_task("demo:people")


@pytest.fixture(scope="module")
def align(checkpoint):
    """Seeking on a teacher with a layer more than the student; embeddings take part."""
    teacher = models.load(str(checkpoint("llama", seed=3, num_hidden_layers=4)), device="cpu")
    folder = checkpoint("llama", seed=4, **SMALL | {"num_hidden_layers": 3}, num_key_value_heads=1)
    student = models.load(str(folder), device="cpu")
    settings = config.Locate(seeds=2, max_length=64, origins=("all",))
    found = locate(teacher, student, [TASK], settings)
    seeking = methods.get("seeking")
    tables = {"neurons": found.neurons, "ffn_sensitivity": found.ffn}
    return Align(teacher, student, found.blocks, settings, 0, seeking.settings(rank=RANK), seeking, **tables)


def seen_by(align: Align, control: str, **changes) -> Align:
    """What the examined method is started with by a control."""
    kept: list[Align] = []

    def start(given: Align) -> Start:
        kept.append(given)
        return methods.get("seeking").start(given)

    methods.get(control).start(align.other(method=replace(align.method, start=start), **changes))
    (found,) = kept
    return found


def unchanged(one: Align, other: Align, *but: str) -> None:
    names = {"teacher", "student", "blocks", "locate", "seed", "settings", "neurons", "ffn_sensitivity", "tune"}
    assert all(getattr(one, n) is getattr(other, n) for n in names - set(but))


# -- shuffled_teacher ----------------------------------------------------------------------------------


@given(st.integers(2, 60), st.integers(0, 2**31 - 1))
def test_nothing_stays_in_its_place(count, seed):
    order = derangement(count, seed)
    assert sorted(order) == list(range(count)) and all(k != place for place, k in enumerate(order))
    assert order == derangement(count, seed)


def test_orders_differ_between_seeds_and_leave_chance_alone():
    state = torch.get_rng_state()
    assert len({tuple(derangement(8, seed)) for seed in range(20)}) > 15
    assert torch.equal(torch.get_rng_state(), state)
    for count in (0, 1):
        with pytest.raises(InputError, match="two layers"):
            derangement(count, 0)


def test_shuffled_teacher_moves_the_same_blocks_to_other_layers(align):
    found = seen_by(align, "shuffled_teacher")
    unchanged(align, found, "blocks")
    assert sorted(found.pairs) == sorted(align.pairs)
    assert all(a != b for a, b in zip(found.pairs, align.pairs, strict=True))
    assert {(b.student_layer, b.module) for b in found.blocks} == {(b.student_layer, b.module) for b in align.blocks}

    def content(blocks):
        return sorted((b.module, b.teacher_layer, b.row, b.col, b.shape) for b in blocks)

    assert content(found.blocks) == content(align.blocks)  # every block is the one that was located
    outer = [[b for b in blocks if b.module in ("embed", "lm_head")] for blocks in (found.blocks, align.blocks)]
    assert sorted(map(str, outer[0])) == sorted(map(str, outer[1])) and len(outer[0]) == 2
    feeds = {b.student_layer: {c.teacher_layer for c in found.blocks if c.student_layer == b.student_layer}
             for b in found.blocks}  # fmt: skip
    assert all(len(teachers) == 1 for teachers in feeds.values())  # a layer moves as a whole


def test_shuffled_teacher_needs_two_layers_and_says_so_before_the_first_stage(checkpoint):
    pair = (checkpoint("llama"), checkpoint("llama", seed=1, **SMALL | {"num_hidden_layers": 1}, num_key_value_heads=2))
    values = {"pair": dict(zip(("teacher", "student"), map(str, pair), strict=True)), "task": "demo:people"}
    values |= {"controls": ["shuffled_teacher"], "similarity": {"parts": []}}
    with pytest.raises(InputError, match="shuffled_teacher.*two layers"):
        check(config.parse(values))


# -- self ----------------------------------------------------------------------------------------------


def test_self_puts_the_student_in_the_teachers_place(align):
    found = seen_by(align, "self")
    unchanged(align, found, "teacher", "blocks", "neurons", "ffn_sensitivity")
    assert found.teacher is align.student and found.pairs == [0, 1, 2]
    for block in found.blocks:
        matrix = align.student.weight(block.module, block.student_layer)
        assert torch.equal(block.cut(matrix), matrix)
    for name in ("neurons", "ffn_sensitivity"):
        table, own = getattr(found, name), getattr(align, name)
        parts = {model: part.drop(columns="model") for model, part in table.groupby("model")}
        assert set(parts) == {"teacher", "student"}
        expected = own[own.model == "student"].drop(columns="model").reset_index(drop=True)
        for part in parts.values():
            assert part.reset_index(drop=True).equals(expected)


def test_self_of_seeking_is_the_students_own_first_directions(align):
    start = methods.get("self").start(align)
    assert start.tuned
    for (layer, module), (b, a) in start.factors.items():
        u, s, vh = torch.linalg.svd(align.student.weight(module, layer), full_matrices=False)
        torch.testing.assert_close(b @ a, (u[:, :RANK] * s[:RANK]) @ vh[:RANK], atol=1e-4, rtol=1e-3)


def test_self_does_without_tables(align):
    found = seen_by(align, "self", neurons=None, ffn_sensitivity=None)
    assert found.neurons is None and found.ffn_sensitivity is None


# -- noise and random_window ---------------------------------------------------------------------------


def test_noise_starts_at_the_methods_size_in_random_directions(align):
    real, noise = (methods.get(n).start(align) for n in ("seeking", "noise"))
    other = methods.get("noise").start(align.other(seed=1))
    assert noise.tuned == real.tuned and noise.factors.keys() == real.factors.keys()
    for place, (b, a) in real.factors.items():
        new_b, new_a = noise.factors[place]
        expected, found = (torch.linalg.svdvals(x)[:RANK] for x in (b @ a, new_b @ new_a))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
        assert not torch.allclose(new_b, other.factors[place][0])
        torch.testing.assert_close(new_a @ new_a.T, torch.eye(RANK), atol=1e-5, rtol=0)


def test_noise_is_as_tuned_as_the_method(align):
    def start(given: Align) -> Start:
        return replace(methods.get("seeking").start(given), tuned=False)

    assert not methods.get("noise").start(align.other(method=replace(align.method, start=start))).tuned


def test_noise_copes_with_a_rank_above_a_matrix_side(align):
    """peft fills such factors with zeros; so may a method."""

    def small(given: Align) -> Start:
        torch.manual_seed(0)
        return Start({(0, "k"): (torch.randn(8, 12), torch.randn(12, 16))})

    with torch.random.fork_rng():
        found = methods.get("noise").start(align.other(method=replace(align.method, start=small)))
        expected = small(align).factors[(0, "k")]
    (b, a) = found.factors[(0, "k")]
    assert b.shape == (8, 12) and a.shape == (12, 16)
    sizes = [torch.linalg.svdvals(x) for x in (b @ a, expected[0] @ expected[1])]
    torch.testing.assert_close(*sizes, atol=1e-4, rtol=1e-3)


def test_noise_has_no_form_for_what_is_no_adapter(align):
    def start(given: Align) -> Start:
        return Start(decoder={"weight": 0.5}, tuned=False)

    examined = replace(align.method, start=start, name="mixing")
    with pytest.raises(InputError, match="noise has no form for 'mixing'"):
        methods.get("noise").start(align.other(method=examined))


def test_random_window_draws_only_where_blocks_are_cut(align):
    found = seen_by(align, "random_window")
    unchanged(align, found, "blocks")
    moved = 0
    for one, other in zip(align.blocks, found.blocks, strict=True):
        assert isinstance(other, Block) and other.structure == "random_window"
        same = ("module", "teacher_layer", "student_layer", "shape")
        assert all(getattr(one, n) == getattr(other, n) for n in same)
        full = align.teacher.weight(other.module, other.teacher_layer).shape
        assert other.cut(align.teacher.weight(other.module, other.teacher_layer)).shape == other.shape
        if other.structure == "random_window" and other.module not in ("embed", "lm_head"):
            assert 0 <= other.row <= full[0] - other.shape[0] and 0 <= other.col <= full[1] - other.shape[1]
        moved += (one.row, one.col) != (other.row, other.col)
    assert moved > len(align.blocks) / 2


@pytest.mark.parametrize("control", ["noise", "random_window", "shuffled_teacher"])
def test_a_methods_own_form_of_a_control_comes_first(align, control):
    own = Start({(0, "q"): (torch.zeros(1, 1), torch.zeros(1, 1))})
    examined = replace(align.method, variants={control: lambda given: own})
    assert methods.get(control).start(align.other(method=examined)) is own


@pytest.mark.parametrize("control", ["noise", "random_window", "shuffled_teacher", "self", "zero"])
def test_controls_repeat_and_leave_both_models_alone(align, control):
    before = [{n: p.clone() for n, p in m.model.named_parameters()} for m in (align.teacher, align.student)]
    state = torch.get_rng_state()
    one, other = (methods.get(control).start(align) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(x, y) for p in one.factors for x, y in zip(one.factors[p], other.factors[p], strict=True))
    for loaded, old in zip((align.teacher, align.student), before, strict=True):
        assert all(torch.equal(p, old[n]) for n, p in loaded.model.named_parameters())


def test_a_control_of_a_method_without_a_rank_asks_for_none(checkpoint):
    """Sixteen, the default rank, is above a side of this student's k matrix; transport knows no rank at all."""
    pair = (checkpoint("llama"), checkpoint("llama", seed=1, **SMALL, num_key_value_heads=1))
    values = {"pair": dict(zip(("teacher", "student"), map(str, pair), strict=True)), "task": "demo:people"}
    values |= {"controls": ["zero", "noise", "shuffled_teacher"], "method": "transport", "similarity": {"parts": []}}
    assert check(config.parse(values)).candidates[0].label == "transport"


def test_a_control_is_a_method_of_the_catalogue():
    found = {n: m for n, m in methods.catalogue().items() if m.paradigm == "control"}
    assert set(found) == {"zero", "noise", "random_window", "shuffled_teacher", "self", "oracle"}
    assert all(isinstance(m, Method) and m.cost for m in found.values())
    assert {n for n, m in found.items() if m.stands_alone} >= {"zero"}
