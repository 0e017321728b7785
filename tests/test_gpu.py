"""What only a CUDA device can show. Skipped, saying so, where there is none."""

from __future__ import annotations

import pytest
import torch

from paraknow import config, data, models
from paraknow.locate.sensitivity import sensitivity
from paraknow.runs import store, worker
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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_whole_run(runs, dtype):
    run = store.create(config.parse({**QUICK, "device": "cuda", "dtype": dtype}))
    worker.execute(run)
    assert run.status()["state"] == "done"
