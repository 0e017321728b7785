from __future__ import annotations

import torch

from paraknow import models
from paraknow.demo import clone
from tests.reference import clone_literal


def test_widening_keeps_the_function(tiny_pair):
    _, student = tiny_pair
    wide, mapping = clone.widen(student.model, seed=3)
    ids = torch.randint(0, 512, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = student.model(input_ids=ids).logits, wide.eval()(input_ids=ids).logits
    torch.testing.assert_close(before, after, atol=2e-5, rtol=1e-4)
    a = student.architecture
    for module in ("q", "k", "v", "o", "gate", "up", "down"):
        path = a.path(module, 1)
        narrow, wider = student.model.get_submodule(path).weight, wide.get_submodule(path).weight
        sides = mapping.sides(module)
        assert torch.equal(wider, clone_literal.wide_weight(narrow, *sides))
        assert torch.equal(clone.narrow_weight(wider, *sides), narrow)


def test_maps_are_doublings_and_survive_a_file(tmp_path):
    mapping = clone.draw_map(hidden=12, ffn=10, heads=4, kv_heads=2, head_dim=3, seed=0)
    for values, size in ((mapping.hidden, 12), (mapping.ffn, 10), (mapping.query, 12), (mapping.key_value, 6)):
        assert torch.bincount(values).tolist() == [2] * size
    mapping.save(tmp_path)
    again = clone.CloneMap.load(tmp_path)
    assert torch.equal(again.query, mapping.query) and torch.equal(again.hidden, mapping.hidden)


def test_the_shipped_clone_teacher_undoes_to_weights_near_the_student():
    teacher, student = models.load("demo:clone-teacher", device="cpu"), models.load("demo:student", device="cpu")
    mapping = clone.CloneMap.load(teacher.checkpoint.folder)
    embed = teacher.weight("embed", -1)
    narrow = torch.empty_like(student.weight("embed", -1))
    narrow[:, mapping.hidden] = embed
    assert torch.equal(narrow, student.weight("embed", -1)), "embeddings were frozen while the clone learned"
    undone = clone.narrow_weight(teacher.weight("up", 0), *mapping.sides("up"))
    change = (undone - student.weight("up", 0)).norm() / student.weight("up", 0).norm()
    assert 0 < float(change) < 1
