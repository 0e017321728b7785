from __future__ import annotations

import json

import pytest
import torch

from paraknow.demo import build, training


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    seen: dict[str, list[tuple[int, int]]] = {}

    def progress(name: str):
        return lambda step, total, message="", **values: seen.setdefault(name, []).append((step, total))

    return folder, build.build(folder, "small", 7, progress), seen


def test_a_small_build_learns(built):
    _, record, seen = built
    accuracy = {name: facts["accuracy"] for name, facts in record["models"].items()}
    for group in ("known", "shown", "never_shown"):
        assert accuracy["teacher"][f"people/{group}"] >= 0.8
    assert accuracy["student"]["people/known"] >= 0.8
    assert accuracy["student"]["people/never_shown"] <= 0.4 and accuracy["student"]["sort"] <= 0.1
    assert all(steps[-1][0] == steps[-1][1] for steps in seen.values()) and set(seen) == {
        "teacher",
        "student",
        "clone-teacher",
    }


def test_the_record_describes_the_files(built):
    folder, record, _ = built
    assert json.loads((folder / "record.json").read_text()) == json.loads(json.dumps(record))
    assert "--seed 7" in record["command"] and "--size small" in record["command"]
    for name, facts in record["models"].items():
        for file, digest in facts["sha256"].items():
            assert build.sha256(folder / "models" / name / file) == digest


def test_training_repeats_bit_by_bit(demo_tokenizer):
    from paraknow.demo import world

    records = training.corpus(world.make_world(1, people=8, held_out=20))
    pools = training.make_pools(records, {"known": 0.5, "sum": 0.5}, demo_tokenizer)
    weights = []
    for _ in range(2):
        model = training.new_model((32, 1, 64, 2, 1), 16, 3, demo_tokenizer)
        training.train(model, pools, 4, seed=5)
        weights.append(model.lm_head.weight.detach().clone())
    assert torch.equal(*weights)
