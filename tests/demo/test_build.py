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


# -- the workshop: one folder, one model after another -------------------------------------------------

SIZES = dict(build.SIZES)
TINY = build.Size(8, 10, (32, 2, 48, 4, 2), (16, 2, 32, 2, 1), 3, 3, 2, (24, 2), 2, 2, head_dim=16, batch=16, skills=())


@pytest.fixture(scope="module")
def tiny():
    """The size `small`, with hardly any training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(build.SIZES, "small", TINY)
        yield TINY


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """A folder with every model of the ladder, the models as they left training, and who trained how often."""
    folder = tmp_path_factory.mktemp("ladder")
    kept, trained = {}, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build.Workshop, "model", remembering(build.Workshop.model, kept))
        patch.setattr(training, "train", counting(training.train, trained))
        record = build.build(folder, "small", 3, ladder=True, study=True)
    return folder, record, kept, trained


def remembering(model, kept):
    def call(shop, name, *rest):
        kept[name] = model(shop, name, *rest)
        return kept[name]

    return call


def counting(train, trained):
    def call(model, pools, steps, *rest):
        trained.append(steps)
        return train(model, pools, steps, *rest)

    return call


def weights(folder):
    from safetensors.torch import load_file

    return {p.parent.name: load_file(p) for p in sorted(folder.glob("models/*/model.safetensors"))}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, tensors in one.items():
        assert all(torch.equal(t, other[name][key]) for key, t in tensors.items()), name


def test_the_workshop_builds_every_model_of_every_rung(whole):
    from paraknow import checkpoints
    from paraknow.demo.rungs import BETWEEN, LADDER, RUNGS

    folder, record, _, trained = whole
    names = {name for rung in RUNGS.values() for name in (rung.teacher, rung.student)}
    assert names == set(record["models"]) == {p.name for p in (folder / "models").iterdir()}
    assert RUNGS == LADDER | BETWEEN and all(rung.words for rung in RUNGS.values())
    assert sorted(trained) == sorted([3, 3, 2, 2, 2, 6, 2, 2, 2])  # turning trains nothing
    for rung in RUNGS.values():
        teacher, student = (checkpoints.find(str(folder / "models" / n)) for n in (rung.teacher, rung.student))
        assert teacher.architecture.layers >= student.architecture.layers
        assert checkpoints.same_vocabulary(teacher, student)
    shapes = {n: checkpoints.find(str(folder / "models" / n)).architecture for n in names}
    assert (shapes["sibling"].ffn, shapes["sibling"].layers) == TINY.sibling == (shapes["healed"].ffn, 2)
    assert all(shapes[n] == shapes["teacher"] for n in ("equal", "heir", "same-start", "same-data"))
    assert shapes["clone-teacher"].hidden == 2 * shapes["student"].hidden
    assert record["models"]["healed"]["steps"] == 3 * record["models"]["sibling"]["steps"]


def test_what_is_measured_is_what_is_stored(whole):
    """A model from its file gives the logits it had when it was measured, and the recorded accuracy."""
    from transformers import AutoModelForCausalLM

    folder, record, kept, _ = whole
    ids = torch.arange(3, 200)[None]
    for name, model in kept.items():
        loaded = AutoModelForCausalLM.from_pretrained(folder / "models" / name, dtype=torch.float32).eval()
        with torch.no_grad():
            stored, memory = loaded(input_ids=ids).logits, model.eval()(input_ids=ids).logits
        torch.testing.assert_close(stored, memory, atol=1e-5, rtol=0, msg=f"{name} in memory is not {name} on disk")
        assert record["models"][name]["parameters"] == sum(p.numel() for p in loaded.parameters())


def test_the_rotated_sibling_computes_what_the_sibling_does(whole):
    _, _, kept, _ = whole
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        one, two = (kept[n](input_ids=ids).logits for n in ("sibling", "rotated"))
    torch.testing.assert_close(one, two, atol=0.1, rtol=0.05)  # stored in bfloat16
    assert not torch.allclose(kept["sibling"].lm_head.weight, kept["rotated"].lm_head.weight, atol=1e-2)


def test_same_start_shares_the_teachers_start_and_same_data_its_batches(tiny, tmp_path, monkeypatch):
    """What the two rungs in between are about, read off what is handed to training."""
    seen = []

    def train(model, pools, steps, seed, *rest):
        seen.append((model.lm_head.weight.clone(), pools, seed))
        return model.eval()

    monkeypatch.setattr(training, "train", train)
    shop = build.Workshop(tmp_path, "small", 3)
    monkeypatch.setattr(shop, "model", lambda name, make, *_: make(shop.progress(name)))
    teacher = shop.teacher()
    for part in (shop.half, shop.everything, shop.masked):
        assert sum(p.share for p in part) == pytest.approx(1)
    shop._of_teachers_size("same-start", shop.half, "equal", "teacher")
    shop._of_teachers_size("same-data", shop.masked, "teacher")
    shop.equal()
    first, start, data, equal = seen
    assert torch.equal(first[0], start[0]) and not torch.equal(first[0], data[0])
    assert start[2] == equal[2] and start[1] is equal[1] and first[2] == data[2]
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(first[1], data[1], strict=True))
    masked = [bool((p.labels == -100).all()) for p in data[1]]
    assert masked == [False, True, True]  # known, shown, never shown
    assert teacher is not None


def test_a_second_call_trains_nothing(whole, tiny, monkeypatch):
    folder, record, _, _ = whole
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}
    monkeypatch.setattr(training, "train", lambda *_: pytest.fail("trained again"))
    again = build.build(folder, "small", 3, ladder=True, study=True)
    assert again["models"] == record["models"] and again["seconds"] == record["seconds"]
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")} == before


def test_a_build_that_was_broken_off_goes_on_and_comes_to_the_same(whole, tiny, tmp_path, monkeypatch):
    """Broken off in the middle of training the third model, then in the middle of the sixth."""
    train, calls = training.train, []
    for stop in (3, 6):

        def some(*given, stop=stop):
            calls.append(1)
            if len(calls) == stop:
                raise KeyboardInterrupt
            return train(*given)

        monkeypatch.setattr(training, "train", some)
        with pytest.raises(KeyboardInterrupt):
            build.build(tmp_path, "small", 3, ladder=True, study=True)
        kept = json.loads((tmp_path / "record.json").read_text())["models"]
        assert set(kept) == {p.name for p in (tmp_path / "models").iterdir()}
        assert len(kept) < stop
    monkeypatch.setattr(training, "train", train)
    record = build.build(tmp_path, "small", 3, ladder=True, study=True)
    assert set(record["models"]) == set(whole[1]["models"])
    assert_same(weights(tmp_path), weights(whole[0]))


def test_a_model_without_its_record_is_made_anew(whole, tiny, tmp_path):
    """Its folder was there before record.json could say so."""
    import shutil

    folder = shutil.copytree(whole[0], tmp_path / "copy")
    record = json.loads((folder / "record.json").read_text())
    del record["models"]["rotated"]
    (folder / "record.json").write_text(json.dumps(record))
    (folder / "models" / "rotated" / "model.safetensors").write_bytes(b"half")
    build.build(folder, "small", 3, ladder=True, study=True)
    assert_same({"rotated": weights(folder)["rotated"]}, {"rotated": weights(whole[0])["rotated"]})


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_damaged_file_is_refused_in_one_sentence(whole, tiny, tmp_path, damage):
    import shutil

    from paraknow.errors import RunError

    folder = shutil.copytree(whole[0], tmp_path / "copy")
    file = folder / "models" / "teacher" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x00\x00") if damage == "changed" else file.unlink()
    with pytest.raises(RunError) as error:
        build.build(folder, "small", 3)
    assert str(file) in str(error.value) and "delete" in str(error.value) and "\n" not in str(error.value)


def test_a_folder_of_another_seed_or_size_is_refused(whole, tiny, tmp_path):
    from paraknow.errors import InputError

    folder, _, _, _ = whole
    before = (folder / "record.json").read_bytes()
    with pytest.raises(InputError, match="another size or seed.*--out"):
        build.build(folder, "small", 4)
    with pytest.raises(InputError, match="another size or seed"):
        build.build(folder, "study", 3)
    with pytest.raises(InputError, match="--size 'huge': choose one of full, study, small"):
        build.build(tmp_path, "huge", 3)
    assert (folder / "record.json").read_bytes() == before and not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_record_that_cannot_be_read_is_named(tiny, tmp_path, text):
    from paraknow.errors import ParaKnowError

    (tmp_path / "record.json").write_text(text)
    with pytest.raises(ParaKnowError, match="record.json"):
        build.build(tmp_path, "small", 3)


def test_the_record_says_how_to_build_the_ladder_again(whole):
    _, record, _, _ = whole
    assert "--ladder" in record["command"] or "--study" in record["command"]


def test_every_size_leaves_a_ladder_that_can_be_calibrated():
    """shuffled_teacher needs a student of two layers, and a sibling has no more layers than its teacher."""
    for name, size in SIZES.items():
        assert 2 <= size.sibling[1] <= size.teacher[1] and size.sibling[0] < size.teacher[2], name
