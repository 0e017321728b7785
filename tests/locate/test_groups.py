"""Sensitivity past one card: groups of layers, sums elsewhere, layers computed again. No number depends on them."""

from __future__ import annotations

from itertools import combinations, pairwise

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import models as random_models
from benchmarks.measure import peak_bytes
from paraknow import config, data, models, passes, placing
from paraknow.checkpoints import Checkpoint
from paraknow.errors import ResourceError, RunError
from paraknow.locate import groups
from paraknow.locate.accumulators import PIECE, Pinned
from paraknow.locate.located import locate
from paraknow.locate.sensitivity import Passes, groups_of, sensitivity
from tests.locate.test_sensitivity import seeds

TINY = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 6, "vocab_size": 256}


def equal(one, other) -> bool:
    return (
        one.losses == other.losses
        and one.table.equals(other.table)
        and one.maps.keys() == other.maps.keys()
        and all(torch.equal(other.maps[place], values) for place, values in one.maps.items())
        and one.halves.keys() == other.halves.keys()
        and all(torch.equal(a, b) for p in one.halves for a, b in zip(one.halves[p], other.halves[p], strict=True))
    )


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma"])  # grouped queries; biases too; tied embeddings
def test_groups_and_places_of_sums_change_no_bit(checkpoint, family):
    loaded = models.load(str(checkpoint(family)), device="cpu")
    items = seeds(loaded.tokenizer)
    plain = sensitivity(loaded, items, halves=True)
    assert plain.halves
    for change in ({"groups": 2}, {"groups": 99, "accumulators": "disk"}, {"groups": 3, "accumulators": "host"}):
        assert equal(plain, sensitivity(loaded, items, halves=True, settings=config.Locate(**change)))


def test_layers_that_are_computed_again_give_the_same_wherever_they_wait(checkpoint):
    how = config.Locate(checkpointing=True, groups=2)
    for place in ("device", "offload"):
        loaded = models.load(str(checkpoint("llama")), device="cpu", placement=place)
        before = [vars(layer).get("forward") for layer in loaded.model.model.layers]
        items = seeds(loaded.tokenizer)
        assert equal(sensitivity(loaded, items), sensitivity(loaded, items, settings=how))
        assert [vars(layer).get("forward") for layer in loaded.model.model.layers] == before
        assert placing.is_placed(loaded.model) == (place == "offload")


def test_everything_is_put_back_after_a_failure(checkpoint):
    loaded = models.load(str(checkpoint("llama")), device="cpu")

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    how = config.Locate(checkpointing=True, groups=2, accumulators="disk")
    with pytest.raises(KeyboardInterrupt):
        sensitivity(loaded, seeds(loaded.tokenizer), stop, settings=how)
    assert not any("forward" in vars(layer) for layer in loaded.model.model.layers)
    for parameter in loaded.model.parameters():
        assert not parameter.requires_grad and parameter.grad is None and not parameter._post_accumulate_grad_hooks


def test_only_the_group_at_work_gets_gradients_and_nan_is_named_there(checkpoint):
    loaded = models.load(str(checkpoint("llama", seed=5)), device="cpu")
    place, seen = loaded.architecture.place, []

    def look(step: int, total: int, *_: object) -> None:
        wanted = {n for n, p in loaded.model.named_parameters() if p.requires_grad}
        assert not seen or seen[-1] == wanted or not seen[-1] & wanted
        seen.append(wanted)
        assert step == len(seen) and total == 4 * 2

    found = groups_of(loaded, config.Locate(groups=2))
    sensitivity(loaded, seeds(loaded.tokenizer), look, settings=config.Locate(groups=2))
    assert len(found) == 2 and seen[0] | seen[-1] == {n for n, _ in loaded.model.named_parameters()}
    assert {place(n)[0] for n in seen[0]} == set(found[0])
    with torch.no_grad():
        loaded.model.lm_head.weight[0, 0] = float("inf")
    with pytest.raises(RunError, match="NaN or infinite"):
        sensitivity(loaded, seeds(loaded.tokenizer), settings=config.Locate(groups=2))


@pytest.mark.parametrize("structure", ["window", "random_entries"])
def test_locating_finds_the_same_group_by_group(tiny_pair, structure):
    tasks = [data.load_task(f"demo:{name}") for name in ("people", "sum")]
    plain = {"seeds": 3, "max_length": 64, "structure": structure, "neurons": "none"}
    one = locate(*tiny_pair, tasks, config.Locate(**plain))
    other = locate(*tiny_pair, tasks, config.Locate(**plain, groups=3, accumulators="disk", checkpointing=True))
    for name in ("sensitivity", "layers", "agreement", "ffn"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name), check_exact=True)
    assert one.notes == other.notes and all((one.maps[k] == other.maps[k]).all() for k in one.maps | other.maps)
    for a, b in zip(one.blocks, other.blocks, strict=True):
        places = (a.module, a.teacher_layer, a.student_layer, a.row, a.col, a.share)
        assert places == (b.module, b.teacher_layer, b.student_layer, b.row, b.col, b.share)
        assert (a.rows is None and b.rows is None) or torch.equal(a.rows, b.rows)


def test_disk_is_asked_before_it_is_written(tiny_pair, monkeypatch, tmp_path):
    teacher, _ = tiny_pair
    monkeypatch.setattr(placing, "scratch", lambda: tmp_path)
    monkeypatch.setattr(placing.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10}))
    with pytest.raises(ResourceError, match=r"locate.accumulators: .* of sensitivities are to lie in .* set TMPDIR"):
        sensitivity(teacher, seeds(teacher.tokenizer), settings=config.Locate(accumulators="disk"))
    assert not list(tmp_path.iterdir())


def test_memory_falls_with_groups_and_with_layers_computed_again():
    loaded = random_models.llama(torch.device("cpu"), **TINY)
    size, layers = 4 * sum(p.numel() for p in loaded.model.parameters()), 4 * TINY["num_hidden_layers"]
    few, long = (random_models.seeds(1, length, TINY["vocab_size"]) for length in (4, 384))

    def peak(items, **change):
        # maps are used up group by group, as in locate
        found = groups_of(loaded, how := config.Locate(**change))
        taken = Passes(loaded, items, how)
        return peak_bytes(lambda: [taken.over(g) and None for g in found], torch.device("cpu"))

    whole, halved, quarter = (peak(few, groups=count) for count in (1, 2, 4))
    assert whole > size and halved < 0.75 * whole and quarter < 0.75 * halved
    kept = peak(long) - peak(long, checkpointing=True)
    assert kept > 0.5 * layers * 384 * TINY["hidden_size"] * 4


def test_pieces_reach_host_memory_in_order():
    pinned, total = Pinned(torch.device("cpu")), torch.zeros(PIECE + 5)
    pieces = torch.rand(4, PIECE + 5)
    try:
        for piece in pieces:
            for start in (0, PIECE):
                score = piece[start : start + PIECE].clone()
                pinned.add(score, total[start : start + PIECE])
        pinned.settle()
        expected = torch.zeros(PIECE + 5)
        for piece in pieces:
            expected += piece
        assert torch.equal(total, expected)
        pinned.add(torch.ones(2), torch.zeros(3))
        with pytest.raises(RuntimeError):
            pinned.settle()
    finally:
        pinned.thread.shutdown()


@given(st.lists(st.integers(1, 50), min_size=1, max_size=7), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_groups_are_consecutive_and_their_largest_is_as_small_as_can_be(sizes, count):
    found = groups.split(sizes, count)
    assert [u for group in found for u in group] == list(range(len(sizes))) and len(found) <= count
    borders = [
        (0, *cut, len(sizes)) for k in range(min(count, len(sizes))) for cut in combinations(range(1, len(sizes)), k)
    ]
    least = min(max(sum(sizes[a:b]) for a, b in pairwise(cut)) for cut in borders)
    assert max(sum(sizes[u] for u in group) for group in found) == least


def test_work_is_counted_as_it_is_done():
    """Against torch's own count of the matrix products. Embeddings are looked up: their share is left small."""
    from torch.utils.flop_counter import FlopCounterMode

    loaded = random_models.llama(torch.device("cpu"), **{**TINY, "vocab_size": 16, "num_hidden_layers": 3})
    a, items = loaded.architecture, [data.Encoded(None, tuple(range(1, 13)), 1)]  # type: ignore[arg-type]
    whole = sum(p.numel() for p in loaded.model.parameters())
    model = Checkpoint("x", None, a, whole, a.ffn * a.hidden)  # type: ignore[arg-type]
    for count, again in ((1, False), (3, False), (2, True)):
        how = config.Locate(groups=count, checkpointing=again)
        with FlopCounterMode(display=False) as counter:
            sensitivity(loaded, items, settings=how)
        one = passes.Pass("locate", "sensitivity", "teacher", 1, 1, 12, False, whole, passes.multiplied(model))
        counted = passes._in_groups(one, model, how).flops
        assert counted == pytest.approx(counter.get_total_flops(), rel=0.1), (count, again)


def test_settings_of_memory_are_written_down_only_where_they_are_set():
    plain = config.parse({"pair": {"teacher": "a", "student": "b"}, "task": "demo:people"})
    assert not {"groups", "accumulators", "checkpointing"} & set(config.dump(plain).replace(":", " ").split())
    changed = config.changed(plain, {"locate.groups": 4, "locate.accumulators": "disk", "locate.checkpointing": True})
    assert all(line in config.dump(changed) for line in ("groups: 4", "accumulators: disk", "checkpointing: true"))
