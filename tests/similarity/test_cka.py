from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paraknow.errors import InputError, RunError
from paraknow.similarity.cka import Stream, permuted
from tests.reference import cka_literal

SEED = st.integers(0, 10**6)


def features(draw: np.random.Generator, n: int, *widths: int) -> list[torch.Tensor]:
    """Layers that share some of what they hold, beside a large mean."""
    common = draw.normal(size=(n, 3))
    return [
        torch.tensor(common @ draw.normal(size=(3, p)) + draw.normal(size=(n, p)) + 20 * draw.normal(size=p))
        for p in widths
    ]


def result(batches, resamples=0, permutations=0, **more):
    stream = Stream(len(batches[0][0]), len(batches[0][1]), resamples, permutations)
    for xs, ys in batches:
        stream.add(xs, ys, **more)
    return stream.result()


def kind(sides, dtype):
    return tuple([x.to(dtype) for x in side] for side in sides)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_literal_version_on_the_same_batches(dtype):
    draw = np.random.default_rng(0)
    made = []
    for n in (40, 40, 37):
        layers = features(draw, n, 6, 11, 30, 5, 9)
        made.append(kind((layers[:3], layers[3:]), dtype))
    found = result(made)
    for t in range(3):
        for s in range(2):
            expected = cka_literal.minibatch_cka([xs[t] for xs, _ in made], [ys[s] for _, ys in made])
            assert found.cka[t, s] == pytest.approx(expected, abs=1e-6)
    assert (found.rows, found.batches, found.examples) == (117, 3, 40)
    assert np.isnan(found.lo).all() and np.isnan(found.null).all()


def test_one_batch_is_the_full_version():
    x, y = features(np.random.default_rng(1), 200, 8, 12)
    expected = cka_literal.full_cka(x.numpy(), y.numpy())
    assert result([([x], [y])]).cka[0, 0] == pytest.approx(expected, abs=1e-9)
    parts = [([x[i : i + 50]], [y[i : i + 50]]) for i in range(0, 200, 50)]
    assert result(parts).cka[0, 0] == pytest.approx(expected, abs=0.05)  # another estimate of the same thing


def test_agrees_with_pytorch_cka():
    """On equally large batches, where the weights that we give to batches are equal."""
    hsic = pytest.importorskip("cka.hsic", reason="pytorch-cka is not installed").hsic
    draw = np.random.default_rng(2)
    made = []
    for _ in range(3):
        layers = features(draw, 64, 6, 11, 30, 5, 9)
        made.append((layers[:3], layers[3:]))
    sums = [0, 0, 0]
    for sides in made:
        grams = [torch.stack([x @ x.T for x in side]) for side in sides]
        sums = [a + b for a, b in zip(sums, hsic(*grams), strict=True)]
    theirs = sums[0] / (sums[1][:, None] * sums[2][None]).sqrt()
    assert np.allclose(result(made).cka, theirs.numpy(), atol=1e-6)


@given(SEED)
@settings(max_examples=25, deadline=None)
def test_a_model_is_like_itself(seed):
    layers = features(np.random.default_rng(seed), 12, 5, 7)
    found = result([(layers, layers)])
    assert np.allclose(np.diag(found.cka), 1.0, atol=1e-9) and np.allclose(found.cka, found.cka.T)


@given(SEED, st.floats(1e-3, 1e3))
@settings(max_examples=25, deadline=None)
def test_rotating_scaling_and_shifting_change_nothing(seed, scale):
    draw = np.random.default_rng(seed)
    x, y = features(draw, 15, 6, 4)
    turn = torch.tensor(np.linalg.qr(draw.normal(size=(6, 6)))[0])
    moved = scale * x @ turn + torch.tensor(draw.normal(size=6))
    assert np.allclose(result([([x], [y])]).cka, result([([moved], [y])]).cka, atol=1e-8)
    assert np.allclose(result([([x], [y])]).cka, result([([y], [x])]).cka.T, atol=1e-12)


def test_what_is_unrelated_is_zero_within_its_interval():
    draw, inside = np.random.default_rng(3), []
    for seed in range(40):
        stream = Stream(1, 1, 400, 0, seed)
        x, y = (torch.tensor(draw.normal(size=(60, 8))) for _ in range(2))
        stream.add([x], [y])
        found = stream.result()
        inside.append(found.lo[0, 0] <= 0 <= found.hi[0, 0])
    assert np.mean(inside) >= 0.85


def test_the_null_lies_within_its_band_of_zero():
    draw = np.random.default_rng(4)
    stream = Stream(2, 2, 100, 40)
    for _ in range(3):
        layers = features(draw, 80, 6, 7, 8, 9)
        stream.add(layers[:2], layers[2:], list(range(80)), list(draw.integers(1, 6, 80)))
    found = stream.result()
    assert (found.cka > 5 * found.null_hi).all()
    assert ((found.null_lo < 0) & (found.null_hi > 0)).all()
    assert (np.abs(found.null) < (found.null_hi - found.null_lo) / 4).all()


def test_the_null_that_keeps_positions_keeps_what_positions_explain():
    """Both models know nothing but how far they have read."""
    draw = np.random.default_rng(5)
    offsets = draw.integers(0, 5, 100)
    codes = draw.normal(size=(2, 5, 6))
    x, y = (torch.tensor(codes[k][offsets] + 0.01 * draw.normal(size=(100, 6))) for k in range(2))
    stream = Stream(1, 1, 100, 20)
    stream.add([x], [y], list(range(100)), offsets.tolist())
    found = stream.result()
    assert found.null_position[0, 0] > 0.9 * found.cka[0, 0] > 0.1
    assert abs(found.null[0, 0]) < 0.05


def test_the_band_of_the_null_is_the_spread_of_literal_permutations():
    """Rows and columns of the student's kernel permuted together: the same as its rows permuted beforehand."""
    draw = np.random.default_rng(12)
    made = [features(draw, n, 6, 9) for n in (40, 55)]
    stream = Stream(1, 1, 0, 400)
    for x, y in made:
        stream.add([x], [y])
    found = stream.result()
    xs, ys = zip(*[(x.numpy(), y.numpy()) for x, y in made], strict=True)
    single = [cka_literal.minibatch_cka(xs, [y[draw.permutation(len(y))] for y in ys]) for _ in range(400)]
    band = float(found.null_hi[0, 0] - found.null_lo[0, 0])
    assert band == pytest.approx(3.92 * np.std(single), rel=0.2)
    assert found.null[0, 0] == pytest.approx(np.mean(single), abs=0.2 * band)
    assert np.mean([found.null_lo[0, 0] <= v <= found.null_hi[0, 0] for v in single]) > 0.9


def test_the_null_that_keeps_positions_breaks_what_rows_share():
    """Where positions explain nothing, nothing is left of a model's likeness to itself."""
    draw = np.random.default_rng(13)
    (x,) = features(draw, 100, 6)
    stream = Stream(1, 1, 0, 20)
    stream.add([x], [x], list(range(100)), draw.integers(0, 5, 100).tolist())
    found = stream.result()
    assert found.cka[0, 0] == pytest.approx(1.0) and abs(found.null_position[0, 0]) < 0.1


def population(draw, examples, per_example=1, spread=1.0):
    """Rows whose shared part belongs to their example."""
    common = np.repeat(draw.normal(size=(examples, 3)), per_example, 0)
    n = len(common)
    mix = np.random.default_rng(99).normal(size=(2, 3, 5))
    return [torch.tensor(common @ mix[k] + spread * draw.normal(size=(n, 5))) for k in range(2)]


def test_intervals_cover_the_value_of_the_population():
    draw, covered, widths = np.random.default_rng(6), 0, []
    big = population(draw, 4000)
    truth = cka_literal.full_cka(*(x.numpy() for x in big))
    values = []
    for seed in range(60):
        stream = Stream(1, 1, 400, 0, seed)
        for batch in range(2):
            x, y = population(draw, 60)
            stream.add([x], [y], list(range(60 * batch, 60 * batch + 60)))
        found = stream.result()
        values.append(found.cka[0, 0])
        widths.append(found.hi[0, 0] - found.lo[0, 0])
        covered += found.lo[0, 0] <= truth <= found.hi[0, 0]
    print(
        f"{covered} of 60 intervals hold the value; widths {np.mean(widths):.3f}, 3.92 sd {3.92 * np.std(values):.3f}"
    )
    assert covered >= 51
    assert np.mean(widths) == pytest.approx(3.92 * np.std(values), rel=0.35)


def test_rows_of_one_example_count_as_one():
    """The same examples four times, one row of each in a batch: more rows, hardly more to know."""
    draw = np.random.default_rng(7)
    x, y = population(draw, 60, spread=0.1)
    once, often = Stream(1, 1, 1000, 0), Stream(1, 1, 1000, 0)
    once.add([x], [y], list(range(60)))
    for _ in range(4):
        often.add([x], [y], list(range(60)))
    widths = [found.hi[0, 0] - found.lo[0, 0] for found in (once.result(), often.result())]
    assert widths[1] == pytest.approx(widths[0], rel=0.15)


def test_rows_that_come_in_examples_widen_the_interval():
    """Four nearly equal rows of each example, one a batch: read as free rows they would feign certainty."""
    draw = np.random.default_rng(14)
    rows = population(draw, 60, per_example=4, spread=0.2)
    widths = []
    for free in (False, True):
        stream = Stream(1, 1, 1000, 0)
        for k in range(4):
            x, y = (side[k::4] for side in rows)
            stream.add([x], [y], [e + 60 * k * free for e in range(60)])
        found = stream.result()
        assert found.examples == (240 if free else 60)
        widths.append(found.hi[0, 0] - found.lo[0, 0])
    assert 1.5 < widths[0] / widths[1] < 2.5  # 2 if the rows were equal


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("value", [0.0, 0.1, -1e4])
def test_constant_features_are_missing(dtype, value):
    x, y = features(np.random.default_rng(8), 30, 4, 6)
    found = result([([x, torch.full((30, 5), value, dtype=dtype).to(x.dtype)], [y])] * 2, 100, 4)
    assert np.isfinite(found.cka[0, 0]) and np.isnan(found.cka[1, 0])
    assert np.isnan([found.lo[1, 0], found.hi[1, 0], found.null[1, 0], found.null_position[1, 0]]).all()


def test_too_few_rows():
    x, y = features(np.random.default_rng(9), 3, 4, 6)
    with pytest.raises(InputError, match="3 rows in a batch are too few"):
        result([([x], [y])])
    with pytest.raises(InputError, match="no batch of 4 rows"):
        Stream(1, 1).result()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(value):
    x, y, z = features(np.random.default_rng(10), 9, 4, 6, 6)
    z[3, 2] = value
    with pytest.raises(RunError, match="layer 1 of the student is NaN or infinite"):
        result([([x], [y, z])])


def test_memory_does_not_grow_with_tokens():
    """What a stream holds after many batches is what it held after the first."""
    draw = np.random.default_rng(11)
    stream, sizes = Stream(2, 2, 50, 4), []
    for _ in range(6):
        layers = features(draw, 20, 4, 4, 4, 4)
        stream.add(layers[:2], layers[2:], list(range(20)))
        held = [*stream._sums, *stream._resampled, stream._permuted, stream._placed, stream._weights]
        sizes.append(sum(x.nbytes for x in held))
    assert len(set(sizes)) == 1


def test_few_rows_have_an_interval_or_none_but_never_a_narrow_one():
    """A resample of the unbiased estimator can be undefined: a few are left out, many leave no interval."""
    draw, shown = np.random.default_rng(15), 0
    for seed in range(20):
        x, y = (torch.tensor(draw.normal(size=(20, 64))) for _ in range(2))
        stream = Stream(1, 1, 400, 0, seed)
        stream.add([x], [y], list(range(20)))
        found = stream.result()
        lo, hi, value = found.lo[0, 0], found.hi[0, 0], found.cka[0, 0]
        assert np.isnan(lo) == np.isnan(hi)
        if np.isfinite(lo):
            shown += 1
            assert lo < value < hi
    assert shown >= 10


def test_rows_and_columns_are_permuted_alike():
    draw = np.random.default_rng(0)
    grams, order = torch.randn(3, 7, 7), draw.permutation(7)
    assert torch.equal(permuted(grams, order), grams[:, order][:, :, order])
