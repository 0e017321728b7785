"""Fixtures of the tests of LaTen, which are two files."""

from __future__ import annotations

import pytest

from paraknow import config, data, methods, models
from paraknow.locate.blocks import Block
from paraknow.methods.base import Align
from tests.conftest import SMALL

PAIRS = [2, 0]  # teacher layers of student layers 0 and 1
QUICK = {"extract_examples": 2, "align_examples": 3, "std": 0.02, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def laten_pair(checkpoint):
    """Grouped queries in both; the teacher has a layer more."""
    teacher = checkpoint("llama", seed=3, num_hidden_layers=3)
    student = checkpoint("llama", seed=4, **SMALL | {"num_attention_heads": 4}, num_key_value_heads=2, head_dim=6)
    return tuple(models.load(str(folder), device="cpu") for folder in (teacher, student))


@pytest.fixture(scope="module")
def people():
    return data.load_task("demo:people")


@pytest.fixture(scope="module")
def for_laten(laten_pair, people):
    """for_laten(locate={…}, …settings) → what LaTen starts from."""

    def make(
        seed: int = 0, locate: dict | None = None, train=people.train[:40], known=people.align[:12], **changes
    ) -> Align:
        teacher, student = laten_pair
        where, method = config.Locate(**locate or {}), methods.get("laten")
        blocks = [
            Block(module, source, layer, "window", student.architecture.shape(module), 0, 0, 0.0)
            for layer, source in enumerate(PAIRS)
            for module in where.selected()
        ]
        values = method.settings(**QUICK | {"steps": 2} | changes)
        return Align(teacher, student, blocks, where, seed, values, method, train, known)

    return make
