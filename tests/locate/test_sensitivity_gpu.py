"""Sums in host memory or on disk, and layers computed again, on a CUDA device. Skipped where there is none."""

from __future__ import annotations

import pytest
import torch

from benchmarks.measure import peak_bytes
from benchmarks.models import llama, seeds
from paraknow.config import Locate
from paraknow.locate.sensitivity import Passes, groups_of, sensitivity

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SIZES = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 6, "vocab_size": 8192}
CUDA = torch.device("cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("where", ["host", "disk"])
def test_sums_elsewhere_are_the_devices_own(dtype, where):
    """The matrices are wider than a piece, so several pieces are on their way at once."""
    loaded = llama(CUDA, dtype, **{**SIZES, "intermediate_size": 6144})
    items = seeds(4, 128, SIZES["vocab_size"])
    one = sensitivity(loaded, items, halves=True)
    other = sensitivity(loaded, items, halves=True, settings=Locate(accumulators=where, groups=2))
    for place, values in one.maps.items():
        assert values.is_cuda and not other.maps[place].is_cuda
        torch.testing.assert_close(other.maps[place], values.cpu(), rtol=1e-4, atol=1e-5 * float(values.max()))
    assert one.halves.keys() == other.halves.keys() and not any(h.is_cuda for pair in one.halves.values() for h in pair)
    table = one.table["sum"].to_numpy(), other.table["sum"].to_numpy()
    assert abs(table[0] / table[1] - 1).max() < 1e-4


def test_host_sums_leave_the_device():
    loaded = llama(CUDA, torch.bfloat16, **SIZES)
    items, size = seeds(2, 64, SIZES["vocab_size"]), sum(p.numel() for p in loaded.model.parameters())

    def peak(**change) -> int:
        how = Locate(**change)
        taken = Passes(loaded, items, how)
        return peak_bytes(lambda: [taken.over(group) and None for group in groups_of(loaded, how)], CUDA)

    plain = peak()
    assert plain - peak(accumulators="host") > 3 * size  # of 4 bytes a parameter
    assert peak(groups=4) < plain - 2 * size


def test_layers_computed_again_give_the_same_in_less_memory():
    loaded = llama(CUDA, torch.float32, **SIZES)
    items = seeds(2, 1024, SIZES["vocab_size"])
    one, other = (sensitivity(loaded, items, settings=Locate(checkpointing=again)) for again in (False, True))
    for place, values in one.maps.items():
        torch.testing.assert_close(other.maps[place], values, rtol=1e-3, atol=1e-4 * float(values.max()))
    peaks = [
        peak_bytes(lambda again=again: sensitivity(loaded, items, settings=Locate(checkpointing=again)), CUDA)
        for again in (False, True)
    ]
    assert peaks[1] < 0.8 * peaks[0]
