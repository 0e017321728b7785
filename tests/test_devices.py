"""GPUs as torch counts them, from a management library that is made up."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import psutil
import pytest
import torch

from paraknow import devices, models
from paraknow.errors import InputError, ResourceError

UUIDS = ("GPU-aaaa1111", "GPU-aaaa2222", "GPU-bbbb3333")
MIG = "MIG-cccc4444"


class NVMLError(Exception):
    """What the library raises."""


@pytest.fixture(autouse=True)
def library(monkeypatch):
    """A library that knows three GPUs with 1, 2 and 3 GB free, and a part of a fourth with 4."""
    handles = (*UUIDS, MIG)
    made = SimpleNamespace(
        NVMLError=NVMLError,
        closed=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: len(UUIDS),
        nvmlDeviceGetHandleByIndex=lambda k: handles[k],
        nvmlDeviceGetUUID=lambda handle: handle,
        nvmlDeviceGetName=lambda handle: "Large",
        nvmlDeviceGetMemoryInfo=lambda h: SimpleNamespace(free=10**9 * (1 + handles.index(h)), total=8 * 10**9),
    )

    def by_uuid(uuid):
        if uuid not in handles:
            raise NVMLError("Not Found")
        return uuid

    def close():
        made.closed += 1

    made.nvmlDeviceGetHandleByUUID, made.nvmlShutdown = by_uuid, close
    monkeypatch.setitem(sys.modules, "pynvml", made)
    monkeypatch.setattr(devices, "version", lambda package: "2.13.0")
    for name in (devices.VISIBLE, devices.GPU):
        monkeypatch.delenv(name, raising=False)
    return made


def test_all_are_seen_where_nothing_is_said(library):
    found = devices.gpus()
    assert [g.uuid for g in found] == list(UUIDS) and library.closed == 1
    assert found[1] == devices.Gpu(1, "GPU-aaaa2222", "Large", 2 * 10**9, 8 * 10**9)


@pytest.mark.parametrize(
    ("visible", "wanted"),
    [
        ("2,0", [2, 0]),
        (" 1 ", [1]),
        ("GPU-bbbb,GPU-aaaa1", [2, 0]),
        ("GPU-aaaa", []),  # two begin so
        ("1,7,0", [1]),  # a wrong entry ends the list
        ("-1", []),
        ("", []),
        ("NoDevFiles", []),
        ("1,1", []),
        ("1,GPU-aaaa2222", []),
        ("MIG-nothing,0", []),
    ],
)
def test_visible_devices_as_cuda_reads_them(monkeypatch, visible, wanted):
    monkeypatch.setenv(devices.VISIBLE, visible)
    assert [(g.index, g.uuid) for g in devices.gpus()] == [(k, UUIDS[n]) for k, n in enumerate(wanted)]


def test_a_part_of_a_gpu(monkeypatch):
    monkeypatch.setenv(devices.VISIBLE, MIG)
    assert [(g.uuid, g.free) for g in devices.gpus()] == [(MIG, 4 * 10**9)]


def test_the_gpu_this_process_works_on(monkeypatch):
    assert devices.current() == 0 and devices.free_bytes("auto") == ("cuda", 10**9)
    monkeypatch.setenv(devices.GPU, "1")
    assert devices.current() == 1 and devices.free_bytes("cuda") == ("cuda", 2 * 10**9)
    monkeypatch.setenv(devices.VISIBLE, "2,0")
    assert devices.free_bytes("cuda") == ("cuda", 10**9)
    assert devices.free_bytes("cpu")[0] == "cpu"
    monkeypatch.setenv(devices.GPU, "2")
    with pytest.raises(InputError, match="there is no GPU 2 here; the last is 1"):
        devices.free_bytes("auto")
    monkeypatch.setenv(devices.GPU, "cuda:1")
    with pytest.raises(InputError, match="PARAKNOW_GPU: 'cuda:1' is no number"):
        devices.current()


@pytest.mark.parametrize("why", ["cpu build", "no driver"])
def test_none_without_a_driver_or_with_a_cpu_build(monkeypatch, library, why):
    def refuse():
        raise NVMLError("Driver Not Loaded")

    if why == "no driver":
        library.nvmlInit = refuse
    else:
        monkeypatch.setattr(devices, "version", lambda package: "2.13.0+cpu")
    assert devices.gpus() == []
    device, free = devices.free_bytes("auto")
    assert device == "cpu" and abs(free - psutil.virtual_memory().available) < 2**31
    with pytest.raises(ResourceError, match="no CUDA device"):
        devices.free_bytes("cuda")


def test_models_go_to_that_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv(devices.ORDER, "PCI_BUS_ID")  # set here, so that it goes again
    monkeypatch.setenv(devices.GPU, "1")
    assert models.pick_device("auto") == torch.device("cuda", 1)
    monkeypatch.setenv(devices.GPU, "2")
    with pytest.raises(InputError, match="no GPU 2"):
        models.pick_device("cuda")
    assert models.pick_device("cpu") == torch.device("cpu")
