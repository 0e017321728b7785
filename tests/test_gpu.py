"""What only a CUDA device can show. Skipped, saying so, where there is none."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch

from benchmarks import agreeing, shapes, sized
from benchmarks.models import llama
from paraknow import chance, config, data, memory, models, tune
from paraknow.locate.blocks import factor
from paraknow.locate.neurons import attribute, score
from paraknow.locate.sensitivity import sensitivity
from paraknow.locate.states import collect
from paraknow.models import gradients_on
from paraknow.runs import store, worker
from paraknow.similarity.activations import untrained_pair
from paraknow.similarity.compared import compare
from tests.test_bad_input import QUICK

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_sensitivity_agrees_with_the_cpu():
    items = None
    found = {}
    for device in ("cpu", "cuda"):
        loaded = models.load("demo:teacher", device=device)
        items = items or data.encode_all(data.load_task("demo:people").train[:8], loaded.tokenizer, 64, "seeds").items
        found[device] = sensitivity(loaded, items)
    for place, values in found["cpu"].maps.items():
        torch.testing.assert_close(found["cuda"].maps[place].cpu(), values, rtol=2e-2, atol=1e-3 * float(values.max()))


def test_neurons_agree_with_the_cpu():
    found = {}
    for device in ("cpu", "cuda"):
        loaded = models.load("demo:teacher", device=device)
        items = data.encode_all(data.load_task("demo:people").train[:8], loaded.tokenizer, 64, "seeds").items
        found[device] = attribute(loaded, items).scores
    for key, values in found["cpu"].items():
        atol = 1e-3 * float(values.abs().max())
        torch.testing.assert_close(found["cuda"][key].cpu(), values, rtol=2e-2, atol=atol)


def test_comparing_agrees_with_the_cpu_and_brings_the_models_back():
    few, found = config.Similarity(examples=120), {}
    for device in ("cpu", "cuda"):
        pair = [models.load(f"demo:{name}", device=device) for name in ("teacher", "student")]
        found[device] = compare(*pair, [data.load_task("demo:people")], few)
        assert all(loaded.device.type == device for loaded in pair)
    for name, tolerance in (("cka", 1e-3), ("null", 1e-3), ("lo", 1e-2), ("hi", 1e-2)):
        values = [found[device].cka[name].to_numpy() for device in ("cpu", "cuda")]
        assert abs(values[0] - values[1]).max() < tolerance, name
    values = [found[device].stitching.r2.to_numpy() for device in ("cpu", "cuda")]
    assert abs(values[0] - values[1]).max() < 1e-2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_whole_run(runs, dtype):
    run = store.create(config.parse({**QUICK, "device": "cuda", "dtype": dtype}))
    worker.execute(run)
    assert run.status()["state"] == "done"


def test_everything_agrees_with_the_cpu_in_float32_and_in_bfloat16():
    """Maps, layers, blocks, factors, both kinds of attribution, CKA, a step of LaTen; tied and untied."""
    assert agreeing.failed(agreeing.check(torch.device("cuda"))) == []


def quarter(sizes: dict) -> dict:
    return {name: value // 4 if name in shapes.SCALES else value for name, value in sizes.items()}


def items_of(loaded: models.Loaded, count: int, length: int = 32) -> list[data.Encoded]:
    task = shapes.task(loaded.architecture.vocabulary, shapes.Work(seeds=count, length=length))
    return data.encode_all(task.train, loaded.tokenizer, length, "seeds").items


def test_a_tuning_step_agrees_with_the_cpu():
    losses = {}
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.float32), ("cuda", torch.bfloat16)):
        loaded, _ = agreeing.pair(False, torch.device(device), dtype)
        settings = config.Tune(epochs=2, batch_size=4, micro_batch=2, learning_rate=1e-3)
        before = {name: p.clone() for name, p in loaded.model.named_parameters()}
        with gradients_on(loaded.model):
            losses[device, dtype] = tune.fine_tune(loaded.model, items_of(loaded, 4), settings, 0).losses
        assert any(not torch.equal(p, before[name]) for name, p in loaded.model.named_parameters())
    exact, *others = losses.values()
    for other, tolerance in zip(others, (1e-4, 2e-2), strict=True):
        assert other == pytest.approx(exact, rel=tolerance)


@pytest.mark.parametrize("elsewhere", ["cpu", "cuda:1"])
def test_layers_that_wait_elsewhere_change_nothing(elsewhere):
    """Half of the teacher in host memory, or on a second card, beside a student that is whole."""
    if elsewhere == "cuda:1" and torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    whole, student = (models.load(f"demo:{name}", device="cuda") for name in ("teacher", "student"))
    layers = [str(whole.device)] * whole.architecture.layers
    layers[::2] = [elsewhere] * len(layers[::2])
    split = models.load("demo:teacher", device="cuda", placement=layers)
    assert {p.device.type for p in split.model.parameters()} == {"cuda", torch.device(elsewhere).type}
    items = data.encode_all(data.load_task("demo:people").train[:4], whole.tokenizer, 64, "seeds").items
    for one, other in (
        (sensitivity(m, items).maps for m in (whole, split)),
        (attribute(m, items).scores for m in (whole, split)),
    ):
        for key, values in one.items():
            atol = 1e-4 * float(values.abs().max())
            torch.testing.assert_close(other[key].to(values.device), values, rtol=1e-3, atol=atol)
    few = config.Similarity(examples=60, parts=("cka",), untrained=False)
    tables = [compare(m, student, [data.load_task("demo:people")], few).cka for m in (whole, split)]
    assert abs(tables[0].cka.to_numpy() - tables[1].cka.to_numpy()).max() < 1e-3


@contextmanager
def waiting() -> Iterator[Callable[[], int]]:
    """Yields what says how often the host has waited for the device."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield lambda: sum("called a synchronizing" in str(w.message) for w in seen)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_the_host_does_not_wait_inside_the_loops():
    """At most twice a seed: its tokens go to the device, and transformers looks whether a mask hides anything."""
    teacher, _ = agreeing.pair(False, torch.device("cuda"), torch.bfloat16)
    items, marks = items_of(teacher, 4), []
    with waiting() as so_far:
        float(torch.ones((), device="cuda"))
        assert so_far() == 1  # a wait is seen
        sensitivity(teacher, items, lambda *_, **__: marks.append(so_far()))
        each = [after - before for before, after in pairwise(marks)]
        assert len(each) >= 3 and max(each) <= 2, each
        states, marks[:] = collect(teacher, items), []
        score(teacher, states, progress=lambda *_, **__: marks.append(so_far()))
        assert len(marks) > 3 and len(set(marks)) == 1  # from the first chunk to the last layer


@pytest.mark.parametrize("name", shapes.PAIRS)
def test_memory_stays_under_the_estimate(name):
    """A quarter of the true sizes in every direction."""
    device, made = torch.device("cuda"), []
    for number, sizes in enumerate(shapes.PAIRS[name]):
        made.append(shapes.named(llama(device, torch.bfloat16, number, **quarter(sizes)), str(number)))
    work = shapes.Work(seeds=4, length=512, texts=64, positions=16, examples=8)
    for part in sized.PARTS:
        row = sized.measure(part, (made[0], made[1]), work, 120)
        own = memory.CONTEXT / 2**30  # CUDA's share, which torch does not count
        assert row["GiB"] <= row["estimated"] - own * (part.work in (sized.extraction, sized.laten_step)) + 0.1, row


def test_random_numbers_go_on_as_if_nothing_had_been_drawn():
    torch.cuda.init()
    loaded = models.load("demo:student", device="cuda")
    before = torch.get_rng_state(), torch.cuda.get_rng_state_all()
    with chance.drawn_from(3):
        first = torch.rand(4, device="cuda"), torch.rand(4)
    with chance.drawn_from(3):
        assert torch.equal(torch.rand(4, device="cuda"), first[0]) and torch.equal(torch.rand(4), first[1])
    for device in ("cpu", "cuda"):  # a matrix on the host must not reseed the card
        factor(torch.eye(1030, device=device), 4)
    with untrained_pair(loaded, loaded):
        pass
    assert torch.equal(torch.get_rng_state(), before[0])
    assert all(map(torch.equal, torch.cuda.get_rng_state_all(), before[1]))
