"""What only a CUDA device can show. Skipped, saying so, where there is none."""

from __future__ import annotations

import pytest
import torch

from paraknow import config, data, models
from paraknow.locate.neurons import attribute
from paraknow.locate.sensitivity import sensitivity
from paraknow.runs import store, worker
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
