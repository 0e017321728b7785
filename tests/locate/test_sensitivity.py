from __future__ import annotations

import math

import pandas as pd
import pytest
import torch

from paraknow import data, models
from paraknow.errors import RunError
from paraknow.locate.sensitivity import add_maps, joined, sensitivity
from tests.reference import sensitivity_literal

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma")


def seeds(tokenizer, count: int = 4) -> list[data.Encoded]:
    task = data.load_task("demo:people")
    return data.encode_all(task.train[:count], tokenizer, 64, "seeds").items


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_literal_version(checkpoint, family):
    loaded = models.load(str(checkpoint(family)), device="cpu")
    items = seeds(loaded.tokenizer)
    found = sensitivity(loaded, items)
    literal = sensitivity_literal.sensitivity(loaded.model, items)
    assert len(found.maps) == len(literal)
    for name, expected in literal.items():
        values = found.maps[loaded.architecture.place(name)].double()
        torch.testing.assert_close(values, expected, rtol=2e-3, atol=1e-6 * float(expected.max()) + 1e-12)


def test_table_adds_up(tiny_pair):
    teacher, _ = tiny_pair
    found = sensitivity(teacher, seeds(teacher.tokenizer))
    table = found.table
    whole = table[table.seed == -1].set_index(["layer", "module"])
    per_seed = table[table.seed >= 0].groupby(["layer", "module"])["sum"].sum()
    pd.testing.assert_series_equal(whole["sum"].sort_index(), per_seed.sort_index(), rtol=1e-9)
    assert math.isclose(whole.share.sum(), 1.0, rel_tol=1e-9)
    for (layer, module), values in found.maps.items():
        row = whole.loc[(layer, module)]
        assert math.isclose(row["sum"], float(values.double().sum()), rel_tol=1e-5)
        assert math.isclose(row["max"], float(values.max()), rel_tol=1e-6)
        assert math.isclose(row["mean"], float(values.double().mean()), rel_tol=1e-5)
    layers = teacher.architecture.layers
    assert set(table.layer) == {-1, *range(layers), layers}
    scores = found.layer_scores(layers)
    assert math.isclose(scores[0], float(whole.loc[0]["sum"].sum()), rel_tol=1e-9)


def test_does_not_depend_on_the_order_of_seeds(tiny_pair):
    teacher, _ = tiny_pair
    items = seeds(teacher.tokenizer)
    forth, back = sensitivity(teacher, items), sensitivity(teacher, items[::-1])
    for place, values in forth.maps.items():
        torch.testing.assert_close(values, back.maps[place], rtol=1e-4, atol=1e-9)


def test_leaves_the_model_as_it_was(tiny_pair):
    teacher, _ = tiny_pair
    before = {n: p.clone() for n, p in teacher.model.named_parameters()}
    teacher.model.train()
    try:
        sensitivity(teacher, seeds(teacher.tokenizer))
        assert teacher.model.training
    finally:
        teacher.model.eval()
    for name, parameter in teacher.model.named_parameters():
        assert not parameter.requires_grad and parameter.grad is None
        assert torch.equal(parameter, before[name])
        assert not parameter._post_accumulate_grad_hooks


def test_restores_after_a_failure(tiny_pair):
    teacher, _ = tiny_pair

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sensitivity(teacher, seeds(teacher.tokenizer), stop)
    for parameter in teacher.model.parameters():
        assert not parameter.requires_grad and parameter.grad is None
        assert not parameter._post_accumulate_grad_hooks


def test_refuses_nan_by_name(checkpoint):
    loaded = models.load(str(checkpoint("llama", seed=5)), device="cpu")
    with torch.no_grad():
        loaded.model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(RunError, match="NaN"):
        sensitivity(loaded, seeds(loaded.tokenizer))


def test_half_precision_keeps_small_gradients():
    """The demo teacher knows its facts, so its gradients are below what float16 can hold unscaled."""
    scores = {}
    for dtype in ("float32", "float16", "bfloat16"):
        loaded = models.load("demo:teacher", dtype, "cpu")
        found = sensitivity(loaded, seeds(loaded.tokenizer, 6))
        scores[dtype] = torch.tensor(found.layer_scores(loaded.architecture.layers))
    for dtype in ("float16", "bfloat16"):
        assert float(torch.corrcoef(torch.stack([scores[dtype], scores["float32"]]))[0, 1]) > 0.9


def test_refuses_gradients_that_are_all_zero(checkpoint):
    loaded = models.load(str(checkpoint("llama", seed=6)), device="cpu")
    with torch.no_grad():
        loaded.model.lm_head.weight.zero_()
        loaded.model.model.norm.weight.zero_()
    with pytest.raises(RunError, match="every gradient is 0"):
        sensitivity(loaded, seeds(loaded.tokenizer))


def test_adding_sums_maps_over_tasks(tiny_pair):
    teacher, _ = tiny_pair
    one, two = (sensitivity(teacher, seeds(teacher.tokenizer)[i : i + 2]) for i in (0, 2))
    place = (0, "q")
    expected = one.maps[place] + two.maps[place]
    parts = {"a": one, "b": two}
    maps, table = add_maps(add_maps({}, one.maps), two.maps), joined(parts)
    torch.testing.assert_close(maps[place], expected)
    assert table.columns[0] == "task" and set(table.task) == {"a", "b"}
    both = sensitivity(teacher, seeds(teacher.tokenizer))
    torch.testing.assert_close(maps[place], both.maps[place], rtol=1e-4, atol=1e-9)
