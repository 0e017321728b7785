from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paraknow import config, data, inject, methods, models
from paraknow.methods import _layerwise as layerwise
from paraknow.methods import _semantics as semantics
from paraknow.methods import semalign
from paraknow.methods.base import Align
from tests.conftest import SMALL
from tests.methods.test_baselines import assert_untouched, state_of
from tests.reference import semalign_literal as literal
from tests.similarity.test_points import letters, text_until

TASK = data.load_task("demo:people")
METHOD = methods.get("semalign")


def two_models(checkpoint):
    """Grouped queries in both; the teacher is wider and has a layer more."""
    teacher = checkpoint("llama", seed=3, num_hidden_layers=3)
    student = checkpoint("llama", seed=4, **SMALL | {"num_attention_heads": 4}, num_key_value_heads=2, head_dim=6)
    return tuple(models.load(str(folder), device="cpu") for folder in (teacher, student))


def maker(pair):
    """maker(pair)(seed=…, locate={…}, …settings) → what SemAlign starts from: ten examples, three batches an epoch."""

    def make(seed: int = 0, locate: dict | None = None, models=pair, train=TASK.train[:10], **changes) -> Align:
        values = METHOD.settings(**{"rank": 4, "epochs": 1, "batch_size": 4, "learning_rate": 1e-2} | changes)
        where, tune = config.Locate(seeds=2, **locate or {}), config.Tune(micro_batch=3, max_length=64)
        return Align(*models, [], where, seed, values, METHOD, train, (), tune)

    return make


@pytest.fixture(scope="module")
def pair(checkpoint):
    return two_models(checkpoint)


@pytest.fixture(scope="module")
def align_for(pair):
    return maker(pair)


def nudged(align: Align, modules, scale: float = 0.2):
    """LoRA of every student layer that already changes something, and the map and texts to measure with."""
    start = semalign.plain_lora(align, range(align.student.architecture.layers), modules)
    draw = torch.Generator().manual_seed(5)
    start.factors = {p: (scale * torch.randn(b.shape, generator=draw), a) for p, (b, a) in start.factors.items()}
    return start


def rows_for(texts):
    return [(t.teacher.ids, t.teacher_at, t.student.ids, t.student_at, t.student.answer_start) for t in texts]


# -- the map ---------------------------------------------------------------------------------------------


def test_the_vocabulary_map_equals_the_literal_version(align_for, pair, monkeypatch):
    expected = literal.vocabulary_map(*(m.weight("lm_head", 0) for m in reversed(pair)))
    for chunk in (8192, 100):  # 512 tokens: one piece, and six of which the last is shorter
        monkeypatch.setattr(semantics, "CHUNK", chunk)
        found = semantics.make_map(align_for(), "vocabulary", {}, [])
        assert found.shape == (16, 32) and found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@given(rows=st.integers(2, 40), width=st.integers(1, 12), rank=st.integers(1, 12), seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_the_gram_matrix_gives_the_pseudo_inverse(rows, width, rank, seed):
    """Also of matrices whose columns depend on one another, or that have more columns than rows."""
    draw = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, rank, generator=draw).double() @ torch.randn(rank, width, generator=draw).double()
    s = torch.linalg.svdvals(w)
    s = s[s > 1e-12 * s[0]]
    if s[-1] < 1e-4 * s[0]:  # squared in the Gram matrix: too close to rounding to say which side it falls on
        return
    expected = torch.linalg.pinv(w, rtol=1e-9)
    found = semantics.inverse(w.T @ w, rows) @ w.T
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


@given(scales=st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)), seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_the_map_turns_with_the_spaces_and_ignores_the_heads_sizes(scales, seed):
    """Hidden spaces turned by Q give Q_Sᵀ·M·Q_T; a head times a number gives the same M."""
    draw = torch.Generator().manual_seed(seed)
    heads = [torch.randn(60, width, generator=draw).double() for width in (5, 8)]
    turns = [torch.linalg.qr(torch.randn(w, w, generator=draw).double())[0] for w in (5, 8)]
    plain = semantics.between(*map(semantics.vocabulary_frame, heads))
    other = semantics.between(
        *(semantics.vocabulary_frame(k * h @ q) for k, h, q in zip(scales, heads, turns, strict=True))
    )
    torch.testing.assert_close(other.double(), turns[0].T @ plain.double() @ turns[1], rtol=1e-4, atol=1e-4)


def test_the_map_of_a_model_with_itself(pair):
    """Symmetric, without negative eigenvalues, and its trace is the number of tokens: every column has length one."""
    head = pair[1].weight("lm_head", 0)
    m = semantics.between(semantics.vocabulary_frame(head), semantics.vocabulary_frame(head)).double()
    torch.testing.assert_close(m, m.T)
    assert float(m.trace()) == pytest.approx(512) and float(torch.linalg.eigvalsh(m)[0]) > 0


@given(tokens=st.integers(1, 50), width=st.integers(1, 9), seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_a_random_frame_has_unit_columns(tokens, width, seed):
    state = torch.get_rng_state()
    one, again, other = (torch.cat(list(semantics.random_frame((tokens, width), s))) for s in (seed, seed, seed + 1))
    assert one.shape == (tokens, width) and torch.equal(one, again) and torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(one.norm(dim=1), torch.ones(tokens, dtype=torch.float64))
    assert width == 1 or not torch.equal(one, other)


def test_a_random_map_has_the_size_of_chance(align_for):
    """V outer products of independent unit columns: ‖M‖² is about V, where aligned frames would give far more."""
    m = semantics.make_map(align_for(), "random_frame", {}, [])
    assert m.shape == (16, 32) and float(m.square().sum()) == pytest.approx(512, rel=0.3)
    assert not torch.equal(m, semantics.make_map(align_for(seed=1), "random_frame", {}, []))


@given(rows=st.integers(1, 30), seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_the_fitted_map_is_least_squares(rows, seed):
    """Two layers and both sublayers together; with few rows the smallest of the maps that fit exactly."""
    draw = torch.Generator().manual_seed(seed)
    teacher = {(n, s): torch.randn(rows, 6, generator=draw) for n in (0, 1) for s in semantics.SUBLAYERS}
    student = {(n, s): torch.randn(rows, 4, generator=draw) for n in (0, 1) for s in semantics.SUBLAYERS}
    pairing = {0: [{0: 1.0}], 1: [{0: 0.25, 1: 0.75}]}
    found = semantics.fitted(teacher, student, pairing)
    x, y = [], []
    for layer, weights in ((0, (1, 0)), (1, (0.25, 0.75))):
        for s in semantics.SUBLAYERS:
            h = sum(w * teacher[(n, s)].double() for n, w in enumerate(weights))
            x += [row / row.norm() for row in h]
            y += [row / row.norm() for row in student[(layer, s)].double()]
    expected = (torch.linalg.pinv(torch.stack(x)) @ torch.stack(y)).T
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_targets_do_not_depend_on_the_outputs_size(scale, seed):
    draw = torch.Generator().manual_seed(seed)
    m, h, found = (torch.randn(*shape, generator=draw) for shape in ((4, 6), (7, 6), (7, 4)))
    plain, scaled = ({(0, "o"): x, (1, "o"): 2 * x} for x in (h, scale * h))
    for mix in ({0: 1.0}, {0: 0.3, 1: 0.7}):
        one, other = (layerwise.targets_of(m, rows, [mix], "o")[0] for rows in (plain, scaled))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    expected = torch.stack([m @ (row / row.norm()) for row in h])
    target = layerwise.targets_of(m, plain, [{0: 1.0}], "o")
    torch.testing.assert_close(target[0], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        layerwise.hidden_loss(scale * found, target), layerwise.hidden_loss(found, target), rtol=1e-4, atol=1e-4
    )


# -- layers ----------------------------------------------------------------------------------------------

SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))


def test_layers_are_paired_as_the_literal_version_pairs_them():
    """Every pair of sizes up to seven, every set of attributed layers up to five."""
    for l_t in range(1, 8):
        for l_s in range(1, 8):
            for chosen in range(1, 2 ** min(l_t, 5)):
                attributed = [n for n in range(l_t) if chosen >> n & 1]
                expected = literal.pairing([n + 1 for n in attributed], l_t, l_s)
                found = semantics.pair(attributed, (l_t, l_s))
                assert {k + 1: [n + 1 for mix in mixes for n in mix] for k, mixes in found.items()} == expected
                assert all(mix == {n: 1.0} for mixes in found.values() for mix in mixes for n in mix)


@given(sizes=SIZES, data=st.data(), how=st.sampled_from(["floor", "interpolate"]))
@settings(max_examples=60, deadline=None)
def test_every_attributed_layer_has_a_student_layer(sizes, data, how):
    l_t, l_s = sizes
    attributed = sorted(data.draw(st.sets(st.integers(0, l_t - 1), min_size=1)))
    found = semantics.pair(attributed, sizes, how)
    assert found and list(found) == sorted(found) and set(found) <= set(range(l_s))
    depths = {k: max(1, (k + 1) * l_t / l_s) - 1 for k in range(l_s)}
    if how == "floor":
        assert {n for mixes in found.values() for mix in mixes for n in mix} == set(attributed)
    else:
        for k, (mix,) in found.items():
            assert sum(mix.values()) == pytest.approx(1)
            assert sum(n * weight for n, weight in mix.items()) == pytest.approx(depths[k])
        for layer in attributed:
            beside = {k for k, depth in depths.items() if abs(depth - layer) < 1 - 1e-9}
            assert beside <= set(found) and (beside or min(k for k, d in depths.items() if d > layer) in found)


def test_all_student_layers_take_part_where_all_teacher_layers_do():
    for l_t in range(1, 12):
        for l_s in range(1, l_t + 1):
            for how in ("floor", "interpolate"):
                assert list(semantics.pair(range(l_t), (l_t, l_s), how)) == list(range(l_s))


def test_layer_scores_equal_the_literal_version(align_for, pair):
    texts = semantics.read_texts(align_for(), TASK.train[:3])
    for loaded, items in zip(pair, ([t.teacher for t in texts], [t.student for t in texts]), strict=True):
        before = state_of(loaded)
        found = semantics.layer_scores(loaded, items)
        assert found == pytest.approx(literal.layer_scores(loaded.model, items), rel=1e-4)
        assert_untouched(loaded, before)


def test_the_best_layers_stand_in_order():
    assert semantics.best_layers([1.0, 5.0, 5.0, 2.0], 2) == [1, 2]
    assert semantics.best_layers([3.0, 1.0, 3.0], 1) == [0] and semantics.best_layers([3.0, 1.0], None) == [0, 1]


# -- the loss --------------------------------------------------------------------------------------------

TARGETS = [[{0: 1.0}], [{1: 1.0}, {2: 1.0}], [{1: 0.25, 2: 0.75}]]


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("layer", [0, 1])
def test_a_batch_equals_the_literal_version(align_for, pair, layer, targets):
    """Loss, closeness and the layer's gradients, with adapters that are not zero, whole and in micro-batches."""
    align, modules = align_for(), ["v", "o", "up", "down"]
    teacher, student = pair
    texts, start = semantics.read_texts(align, TASK.train[:5]), nudged(align, modules)
    m = semantics.make_map(align, "vocabulary", {}, [])
    counted = [[(n + 1, weight) for n, weight in mix.items()] for mix in targets]
    expected, slopes, close = literal.loss(
        teacher.model, student.model, m.double(), layer + 1, counted, rows_for(texts), start.factors
    )
    with inject.attached(student, start) as wrapped:
        for micro in (64, 2):
            limited = align.other(tune=config.Tune(micro_batch=micro, max_length=64))
            aligner = layerwise.Aligner(limited, wrapped, m, {layer: targets}, modules)
            for n in range(2):
                for parameter in aligner.moving(n):
                    parameter.requires_grad_(n == layer)
                    parameter.grad = None
            assert float(aligner.gradients(layer, texts)) == pytest.approx(expected, rel=1e-5)
            gradients = iter(p.grad for p in aligner.moving(layer))
            for module in modules:
                for side in "BA":
                    wanted, found = slopes[(layer, module), side], next(gradients)
                    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))
            assert all(p.grad is None for p in aligner.moving(1 - layer)), "one layer at a time"
            assert aligner.measure(layer, texts) == pytest.approx((close, expected), abs=1e-5)


def test_the_student_as_its_own_teacher_is_read_without_its_adapters(align_for, pair):
    student = pair[1]
    align, modules = align_for(models=(student, student)), ["v", "up"]
    texts, start = semantics.read_texts(align, TASK.train[:3]), nudged(align, modules)
    m = semantics.make_map(align, "vocabulary", {}, [])
    expected, _, _ = literal.loss(
        student.model, student.model, m.double(), 1, [[(1, 1.0)]], rows_for(texts), start.factors
    )
    before = state_of(student)
    with inject.attached(student, start) as wrapped:
        aligner = layerwise.Aligner(align, wrapped, m, {0: [{0: 1.0}]}, modules)
        for parameter in aligner.moving(1):
            parameter.requires_grad_(False)
        assert float(aligner.gradients(0, texts)) == pytest.approx(expected, rel=1e-5)
        flags = [[p.requires_grad for p in aligner.moving(n)] for n in range(2)]
        assert flags == [[True] * 4, [False] * 4], "peft would have switched all of them on"
    assert_untouched(student, before)


@given(scale=st.floats(0.01, 100), seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_the_answers_term(scale, seed):
    """Between 0 and 2, 0 where the right token has the only logit, and blind to the logits' size."""
    draw = torch.Generator().manual_seed(seed)
    logits, tokens = torch.randn(5, 9, generator=draw), torch.randint(9, (5,), generator=draw)
    onehot = torch.nn.functional.one_hot(tokens, 9).float()
    loss = layerwise.answer_loss(logits, tokens)
    assert float(loss) == pytest.approx(float((1 - torch.cosine_similarity(logits, onehot)).sum()), rel=1e-4)
    assert float(layerwise.answer_loss(scale * logits, tokens)) == pytest.approx(float(loss), rel=1e-4)
    assert float(layerwise.answer_loss(scale * onehot, tokens)) == pytest.approx(0, abs=1e-5)


# -- texts -----------------------------------------------------------------------------------------------


def test_one_tokenizer_gives_all_positions_that_predict_the_answer(align_for, demo_tokenizer):
    for text in semantics.read_texts(align_for(), TASK.train[:5]):
        assert text.teacher == text.student and text.teacher_at == text.student_at
        assert [text.student.ids[p + 1] for p in text.student_at] == list(text.student.ids[text.student.answer_start :])


def test_two_tokenizers_share_the_ends_of_their_tokens(align_for, pair, demo_tokenizer):
    """At every position both models have read the same of the answer; the prompt's end is one of them."""
    other = replace(pair[0], tokenizer=letters())
    align = align_for(models=(other, pair[1])).other(tune=config.Tune(max_length=256))
    for text in semantics.read_texts(align, TASK.train[:5]):
        assert text.teacher.ids != text.student.ids and len(text.teacher_at) == len(text.student_at) > 1
        ends = [
            (text_until(other.tokenizer, text.teacher.ids, a), text_until(demo_tokenizer, text.student.ids, b))
            for a, b in zip(text.teacher_at, text.student_at, strict=True)
        ]
        assert all(one == two for one, two in ends)
        assert text.student_at[0] == text.student.answer_start - 1 == max(text.student_at[0], 0)


def test_measuring_reads_other_examples_than_locating(align_for):
    texts = semantics.read_texts(align_for(), TASK.train[:10])
    seeds, probe = semantics.seeds_and_probe(texts, 4, 0)
    assert len(seeds) == len(probe) == 4 and not {t.student.ids for t in seeds} & {t.student.ids for t in probe}
    assert semantics.seeds_and_probe(texts, 4, 0) == (seeds, probe) != semantics.seeds_and_probe(texts, 4, 1)
    seeds, probe = semantics.seeds_and_probe(texts, 10, 0)
    assert seeds == probe and len(seeds) == 10
