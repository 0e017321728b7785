from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from paraknow import config, data, models
from paraknow.demo.clone import widen
from paraknow.errors import Cancelled, InputError, RunError
from paraknow.locate.located import locate
from paraknow.similarity.activations import OUTPUTS, batches, rows_of, untrained_pair
from paraknow.similarity.compared import compare
from tests.reference import cka_literal

FEW = config.Similarity(examples=40, tokens=2, permutations=4, resamples=100, forward_batch=8, max_length=64)
PEOPLE = "demo:people"


@pytest.fixture(scope="module")
def task() -> data.Task:
    return data.load_task(PEOPLE)


def only(*parts: str, **more) -> config.Similarity:
    return FEW.model_copy(update={"parts": parts, **more})


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma"])
def test_rows_are_the_models_own(checkpoint, family, task):
    """Against transformers' hidden states, one text at a time; the last block's output is before the final norm."""
    loaded = models.load(str(checkpoint(family)), device="cpu")
    items = data.encode_all(task.train[:3], loaded.tokenizer, 64, "x").items
    at = [[1, 4], [2], [0, 3]]
    found = rows_of(loaded, [i.ids for i in items], at, forward_batch=2)
    assert set(found) == {(layer, module) for layer in (0, 1) for module in OUTPUTS}
    line = 0
    for item, positions in zip(items, at, strict=True):
        with torch.no_grad():
            states = loaded.model.model(input_ids=torch.tensor([item.ids]), output_hidden_states=True).hidden_states
        for position in positions:
            torch.testing.assert_close(found[(0, "residual")][line], states[1][0, position], rtol=1e-4, atol=1e-5)
            last = found[(1, "residual")][line]
            torch.testing.assert_close(loaded.model.model.norm(last), states[2][0, position], rtol=1e-4, atol=1e-4)
            line += 1
    inner = rows_of(loaded, [i.ids for i in items], at, ("down",), inputs=True)
    torch.testing.assert_close(
        inner[(1, "down")] @ loaded.weight("down", 1).T, found[(1, "down")], rtol=1e-4, atol=1e-4
    )


def test_models_are_left_alone_even_after_a_stop(tiny_pair, task):
    def stop(*_: object, **__: object) -> None:
        raise Cancelled("stop")

    with pytest.raises(Cancelled):
        compare(*tiny_pair, [task], FEW, progress=stop)
    for loaded in tiny_pair:
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in loaded.model.modules())
        assert not any(p.requires_grad for p in loaded.model.parameters()) and not loaded.model.training


def test_a_model_is_like_itself(tiny_pair, task):
    teacher, _ = tiny_pair
    found = compare(teacher, teacher, [task], only("cka", untrained=False)).cka
    diagonal = found[found.teacher_layer == found.student_layer]
    assert np.allclose(diagonal.cka, 1.0, atol=1e-9) and np.allclose(diagonal[["lo", "hi"]], 1.0, atol=1e-9)
    assert found.untrained.isna().all()
    wide = found[found.module == "up"].pivot(index="teacher_layer", columns="student_layer", values="cka").to_numpy()
    assert np.allclose(wide, wide.T, atol=1e-6)


def test_a_widened_model_is_like_its_original(tiny_pair, task):
    """A pair whose answer is known: twice as wide, the same function, everything permuted."""
    student = tiny_pair[1]
    wide, _ = widen(student.model, seed=0)
    teacher = models.Loaded(student.checkpoint, wide.eval().requires_grad_(False), student.tokenizer)
    found = compare(teacher, student, [task], only("cka", "stitching", untrained=False))
    diagonal = found.cka[found.cka.teacher_layer == found.cka.student_layer]
    assert np.allclose(diagonal.cka, 1.0, atol=1e-5)
    paired = found.stitching[found.stitching.paired]
    assert list(paired.teacher_layer) == list(paired.student_layer) == [0, 1] and (paired.r2 > 0.99).all()


def test_the_clone_pairs_layers_are_matched_in_order(task):
    teacher, student = (models.load(f"demo:{name}", device="cpu") for name in ("clone-teacher", "student"))
    found = compare(teacher, student, [task], only("stitching", examples=160)).stitching
    paired = found[found.paired]
    assert list(paired.teacher_layer) == list(paired.student_layer) == [0, 1, 2, 3]


def test_the_table_is_what_the_literal_version_gives(tiny_pair, task):
    teacher, student = tiny_pair
    from paraknow.similarity.compared import points_of

    settings = only("cka", untrained=False, batch_rows=20)
    found = compare(teacher, student, [task], settings).cka
    points = points_of(task, teacher, student, settings)
    made = list(batches(teacher, student, points, 20, ("v",)))
    assert len(made) == 4 and all(len(set(b.owners)) == len(b.owners) <= 20 for b in made)
    pairs = [(b.teacher[(1, "v")].double().numpy(), b.student[(0, "v")].double().numpy()) for b in made]
    row = found[(found.module == "v") & (found.teacher_layer == 1) & (found.student_layer == 0)].iloc[0]
    assert row.cka == pytest.approx(cka_literal.minibatch_cka([p[0] for p in pairs], [p[1] for p in pairs]), abs=1e-6)
    assert row.n == sum(len(b.owners) for b in made) > 40 and row.batches == 4 and row.examples == 40
    assert row.lo < row.cka < row.hi and row.null_lo < 0 < row.null_hi
    same = found.set_index(["module", "teacher_layer", "student_layer"]).cka
    pd.testing.assert_series_equal(same["attention"], same["o"])
    pd.testing.assert_series_equal(same["ffn"], same["down"])


def test_all_parts_over_two_tasks(tiny_pair, task, tmp_path):
    teacher, student = tiny_pair
    tasks = [task, data.load_task("demo:sum")]
    blocks = locate(teacher, student, tasks, config.Locate(seeds=2, max_length=64, neurons="none")).blocks
    steps: list[tuple[int, int]] = []
    found = compare(teacher, student, tasks, FEW, blocks, 4, 0, lambda s, t, *_, **__: steps.append((s, t)))
    assert steps == sorted(steps) and steps[-1][0] == steps[-1][1]
    assert set(found.cka.task) == {PEOPLE, "demo:sum"} and found.cka.untrained.notna().all()
    assert len(found.tasks) == 10 and found.tasks.n.eq(4).all()
    assert len(found.stitching) == 4 and found.stitching.paired.sum() == 2
    assert set(found.weights.source) == {"block", "own", "noise"} and len(found.weights) == 3 * 14
    own = found.weights[found.weights.source == "own"]
    assert np.allclose(own.cos, own.norm_ratio, atol=1e-5) and np.allclose(own.cos_rest, 0, atol=1e-5)
    assert found.weights.interference.between(0, 1).all()
    assert set(found.spectra.model) == {"teacher", "student"} and found.spectra["size"].between(0, 1).all()
    found.save(tmp_path)
    assert {p.stem for p in tmp_path.glob("*.parquet")} == {"cka", "stitching", "weights", "spectra", "tasks"}
    again = compare(teacher, student, tasks, FEW, blocks, 4)
    pd.testing.assert_frame_equal(again.cka, found.cka)
    pd.testing.assert_frame_equal(again.stitching, found.stitching)


def test_parts_can_be_left_out(tiny_pair, task):
    found = compare(*tiny_pair, [task], only("stitching"))
    assert len(found.stitching) and not len(found.cka) and not len(found.weights) and not len(found.spectra)
    nothing = compare(*tiny_pair, [task], only())
    assert not any(len(getattr(nothing, n)) for n in ("cka", "stitching", "weights", "spectra", "tasks"))


def test_constant_outputs_are_missing_not_zero(checkpoint, tiny_pair, task):
    student = models.load(str(checkpoint("llama", seed=7)), device="cpu")
    with torch.no_grad():
        student.model.model.layers[1].self_attn.v_proj.weight.zero_()
    found = compare(tiny_pair[0], student, [task], only("cka"))
    missing = found.cka[found.cka.cka.isna()]
    assert set(missing.module) == {"v", "o", "attention"} and set(missing.student_layer) == {1}
    assert missing[["lo", "hi", "null"]].isna().all().all()
    assert any("CKA of v is undefined for 2 of 4 layer pairs" in w for w in found.warnings)


def test_what_is_not_finite_is_named(checkpoint, tiny_pair, task):
    student = models.load(str(checkpoint("llama", seed=8)), device="cpu")
    with torch.no_grad():
        student.model.model.layers[1].mlp.up_proj.weight[0, 0] = float("inf")
    with pytest.raises(RunError, match="up: the output of layer 1 of the student is NaN or infinite"):
        compare(tiny_pair[0], student, [task], only("cka"))
    with pytest.raises(RunError, match="residual stream after layer 1 of the student"):
        compare(tiny_pair[0], student, [task], only("stitching"))


def test_one_example_is_too_few(tiny_pair, task):
    short = data.Task("short", task.train[:1], task.align, task.test)
    with pytest.raises(InputError, match="short has 1 examples to compare the models on; at least 4"):
        compare(*tiny_pair, [short], FEW)


def test_few_examples_still_have_their_cka(tiny_pair, task):
    short = data.Task("short", task.train[:6], task.align, task.test)
    found = compare(*tiny_pair, [short], only("cka", "stitching"))
    assert len(found.cka) and not len(found.stitching)
    assert any("6 examples are too few to stitch" in w for w in found.warnings)


def test_the_untrained_pair_has_the_shapes_and_nothing_learned(tiny_pair):
    state = torch.get_rng_state()
    with untrained_pair(*tiny_pair, seed=3) as pair:
        for made, loaded in zip(pair, tiny_pair, strict=True):
            for (name, a), b in zip(made.model.named_parameters(), loaded.model.parameters(), strict=True):
                assert a.shape == b.shape and a.dtype == b.dtype
                assert a.ndim < 2 or not torch.equal(a, b), name
    assert torch.equal(torch.get_rng_state(), state)
