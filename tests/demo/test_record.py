from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paraknow import config
from paraknow.demo.record import pool, record
from paraknow.errors import InputError
from paraknow.locate.located import pool as pool_torch
from paraknow.runs import store
from tests.test_bad_input import QUICK


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12))
def test_pooling_keeps_the_largest_values(n, m, side):
    values = np.random.default_rng(n * 41 + m).random((n, m)).astype(np.float32)
    small = pool(values, side)
    assert small.shape == (min(n, side), min(m, side)) and small.max() == values.max()
    assert set(small.ravel()) <= set(values.ravel())
    assert float(pool_torch(torch.from_numpy(values), side).max()) == values.max()


def test_a_recorded_run_is_whole_and_small(runs, tmp_path, finished):
    with pytest.raises(InputError, match="not done"):
        record(store.create(config.parse(QUICK)), tmp_path / "kept")
    run = store.Run(finished)
    kept = store.Run(record(run, tmp_path / "kept"), recorded=True)
    assert kept.status()["state"] == "done" and "pid" not in kept.status()
    assert kept.config() == run.config() and not kept.path("adapters", "seeking").exists()
    with pytest.raises(InputError, match="cannot be deleted"):
        store.delete(kept)


def test_the_shipped_run_is_of_the_shipped_models():
    """A recorded run that was made with other weights than the ones beside it would be a lie."""
    from paraknow import checkpoints, files

    recorded = store.recorded_runs()
    assert recorded, "the Overview needs a recorded run"
    for run in recorded:
        assert run.status()["state"] == "done"
        for facts in files.read_json(run.path("environment.json"))["models"].values():
            assert facts["sha256"] == checkpoints.weights_hash(checkpoints.find(facts["spec"]))
