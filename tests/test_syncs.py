"""On a GPU every look of the host at a number waits for the device. So how often the host looks must not grow with
seeds, layers or neurons; on a CPU those looks can be counted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import shapes, sized
from benchmarks.models import llama
from paraknow import data, tune
from paraknow.config import Tune
from paraknow.locate.neurons import attribute
from paraknow.locate.sensitivity import sensitivity
from paraknow.methods import _translate, laten
from paraknow.models import gradients_on
from paraknow.progress import silent
from paraknow.similarity.activations import rows_of
from paraknow.similarity.cka import Stream

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
DEEPER, WIDER = {"num_hidden_layers": 4}, {"intermediate_size": 96}
LOOKS = ("tolist", "numpy", "cpu")


def ours() -> bool:
    """Whether the library asks: transformers looks once a pass, whether its mask hides anything; AdamW counts its steps
    on the host."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if "/transformers/" in name or "/torch/optim/" in name:
            return False
        if "/site-packages/" not in name and "/paraknow/" in name:
            return True
        frame = frame.f_back
    return True


class _Scalars(TorchDispatchMode):
    """Counts item(), float(), bool() and what has a shape that depends on numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        masks = [i for i in (args[1] if name == "index" else ()) if i is not None and i.dtype == torch.bool]
        if masks or name in ("_local_scalar_dense", "nonzero", "masked_select"):
            self.count += ours()
        return function(*args, **kwargs or {})


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """Yields what says how often the host has looked so far."""
    scalars, looks = _Scalars(), []
    with monkeypatch.context() as patch:
        for name in LOOKS:
            plain = getattr(torch.Tensor, name)
            patch.setattr(
                torch.Tensor, name, lambda self, *a, plain=plain, **k: looks.append(1) or plain(self, *a, **k)
            )
        with scalars:
            yield lambda: scalars.count + len(looks)


def seeds(loaded: Any, count: int) -> list[data.Encoded]:
    work = replace(shapes.SMALL_WORK, seeds=count, length=12)
    found = shapes.task(loaded.architecture.vocabulary, work)
    return data.encode_all(found.train, loaded.tokenizer, work.length, "seeds").items


def _attribution(loaded: Any, count: int) -> None:
    attribute(loaded, seeds(loaded, count), budget=64 * 16)  # several chunks


def _outputs(loaded: Any, count: int) -> None:
    layers = loaded.architecture.layers
    rows = rows_of(loaded, [i.ids for i in seeds(loaded, count)], [(3, 5)] * count, forward_batch=count)
    sides = [[rows[(k, "up")] for k in range(layers)] for _ in range(2)]
    Stream(layers, layers, 8, 4).add(*sides)


def _tuning(loaded: Any, count: int) -> None:
    with gradients_on(loaded.model):
        settings = Tune(epochs=1, batch_size=count, micro_batch=count)  # one step
        tune.fine_tune(loaded.model, seeds(loaded, count), settings, 0)


def _laten(loaded: Any, count: int) -> None:
    """The step, neurons located before it; the same model is teacher and student."""
    align = sized.align_of((loaded, loaded), replace(shapes.SMALL_WORK, length=12, examples=count), silent)
    examples, modules = laten._examples(align), list(laten.PAPER_MODULES)
    moved = laten.counts(loaded.architecture, 0.1)
    layers = loaded.architecture.layers
    scores = {kind: torch.rand(1, layers, n) for kind, n in laten.sizes(loaded.architecture).items()}
    matched = _translate.match(*({k: s.sum(0) for k, s in scores.items()} for _ in range(2)), align.pairs, moved)
    with _translate.frozen(loaded.model):
        vectors = _translate.extract(loaded, modules, align.pairs, matched.teacher)
        network = _translate.Hypernetwork(modules, (32, 32), 0.02, 0, loaded.device)
        _translate.gradients(loaded, network, vectors, matched.student, examples.pool, 1.0, len(examples.pool))


WORK = {"attribution": _attribution, "outputs": _outputs, "tuning step": _tuning, "LaTen step": _laten}


def small(**more: int) -> Any:
    return shapes.named(llama(torch.device("cpu"), **SIZES | HEADS | more), "small")


def test_the_host_looks_at_nothing_from_the_first_seed_to_the_last(monkeypatch):
    """Sensitivity; its tables are made afterwards."""
    loaded, marks = small(), []
    with counted(monkeypatch) as so_far:
        sensitivity(loaded, seeds(loaded, 3), lambda *_, **__: marks.append(so_far()))
        assert so_far() > marks[-1]  # what is looked at is counted
    assert len(marks) >= 3 and len(set(marks)) == 1


@pytest.mark.parametrize("name", WORK)
def test_the_host_looks_no_oftener_where_there_is_more_to_do(name, monkeypatch):
    def looks(count: int, **more: int) -> int:
        loaded = small(**more)
        with counted(monkeypatch) as so_far:
            WORK[name](loaded, count)
            return so_far()

    few = looks(4)
    grown = {"seeds": looks(6), "layers": looks(4, **DEEPER), "neurons": looks(4, **WIDER)}
    assert grown == dict.fromkeys(grown, few)
