"""What fits into memory, and the nearest settings that do; on sizes alone, nothing is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paraknow import config as configs
from paraknow import devices, fitting, memory, methods, recipes
from paraknow.architecture import from_config
from paraknow.checkpoints import Checkpoint
from paraknow.fitting import Free
from paraknow.memory import Case
from tests.test_bad_input import QUICK

GIB = 2**30
SMALL = {"micro_batch": 1}


def llama(name: str, parameters: int) -> Checkpoint:
    a = from_config(recipes.model_configs()[name]["config"], name)
    return Checkpoint(name, Path("nowhere"), a, parameters, a.vocabulary * a.hidden)


PAIR = (
    llama("meta-llama/Llama-2-13b-hf", 13_015_864_320),
    llama("meta-llama/Llama-2-7b-hf", 6_738_415_616),
)


def parse(**changes) -> configs.RunConfig:
    return configs.parse({"pair": QUICK["pair"], "task": "demo:people", "dtype": "bfloat16", **changes})


def case(config: configs.RunConfig, device: str = "cuda", **more) -> Case:
    return Case(*PAIR, methods.candidates(config), device, {}, **more)


def fits(config: configs.RunConfig, about: Case, free: Free) -> bool:
    return not fitting.shorts(about.need(config), free)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.sampled_from([1, 7, 128]),
    micro=st.sampled_from([1, 5, 64]),
    length=st.sampled_from([16, 512, 3000]),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    placed=st.sampled_from(["device", "auto", "offload"]),
    device=st.sampled_from(["cpu", "cuda"]),
    free=st.integers(2, 400),
    host=st.integers(2, 200),
)
def test_the_suggested_settings_are_accepted_and_none_of_them_is_idle(
    batch, micro, length, dtype, placed, device, free, host
):
    config = parse(
        evaluate={"batch_size": batch},
        tune={"micro_batch": micro, "max_length": length},
        locate={"max_length": length},
        dtype=dtype,
        placement={"teacher": placed},
    )
    about, room = case(config, device), Free(device, free * GIB, host * GIB, {1: 8 * GIB})
    refusal = fitting.refused(config, about, room)
    assert (refusal is None) == fits(config, about, room)
    fit, least = fitting.nearest(config, about, room)
    if refusal is None:
        assert fit is not None and fit.settings == {}
        return
    assert refusal.settings == (fit.settings if fit else {})
    if fit is None:
        assert f"would still need {fitting.gib(least.need)}" in str(refusal) or not least.settings
        return
    # as a user would apply them: through the command line's own flags
    flags = fit.flags.removeprefix("--set ").split(" --set ")
    wanted = configs.parse(configs.overridden(config.model_dump(mode="json"), flags))
    assert wanted == configs.parse(fitting.changed(config, fit.settings).model_dump(mode="json"))
    assert fits(wanted, about, room) and f"{fit.flags} would need {fitting.gib(fit.need)}" in str(refusal)
    for name in fit.settings:
        others = {k: v for k, v in fit.settings.items() if k != name}
        assert not fits(fitting.changed(config, others), about, room)


@pytest.mark.parametrize("over", [("evaluate",), ("evaluate", "tune")])
def test_what_changes_only_speed_comes_first(over):
    fields = {"evaluate": "evaluate.batch_size", "tune": "tune.micro_batch"}
    config = parse(evaluate={"batch_size": 8192}, locate={"max_length": 64}, similarity={"parts": []})
    about = case(config)
    largest = max(size for stage, size in about.need(config).totals.items() if stage not in over)
    fit, _ = fitting.nearest(config, about, Free("cuda", largest, 200 * GIB))
    assert fit is not None and set(fit.settings) == {fields[stage] for stage in over}


def test_the_sentence_names_stage_need_part_and_setting():
    config = parse(evaluate={"batch_size": 65536}, tune={"micro_batch": 1}, similarity={"parts": []})
    refusal = fitting.refused(config, case(config), Free("cuda", 110 * GIB, 400 * GIB))
    assert "memory: the evaluate stage needs about" in str(refusal) and "110.0 GiB are free" in str(refusal)
    assert "most of it for activations and logits (" in str(refusal)
    assert "--set evaluate.batch_size=" in str(refusal) and str(refusal).count(". ") == 0


def test_layers_wait_elsewhere_where_nothing_else_helps():
    config = parse(similarity={"parts": []}, locate={"neurons": "none"})
    about = case(config)
    fit, _ = fitting.nearest(config, about, Free("cuda", 30 * GIB, 300 * GIB))
    assert fit is not None and fit.settings["placement.teacher"] == "auto"
    none, least = fitting.nearest(config, about, Free("cuda", 30 * GIB, 10 * GIB))  # nowhere to wait
    assert none is None and least.need > 0


def test_a_part_that_waits_leaves_the_device_and_is_counted_in_host_memory():
    plain, placed = parse(), parse(placement={"teacher": "offload"})
    about = case(plain)
    before, after = about.need(plain), about.need(placed)
    moved = before.stages["load"].weights - after.stages["load"].weights
    layers = 2 * memory.layers_size(PAIR[0].architecture)
    assert 0.9 * layers < moved < layers and after.host["load"] - before.host["load"] >= moved
    saved = before.stages["locate"].accumulators - after.stages["locate"].accumulators
    assert saved > memory.layers_size(PAIR[0].architecture)


def test_rooms_leave_what_the_stages_need():
    config = parse(placement={"teacher": "auto"}, similarity={"parts": []}, evaluate={"batch_size": 8}, tune=SMALL)
    about, free = case(config), Free("cuda", 60 * GIB, 100 * GIB, {2: 10 * GIB})
    rooms = fitting.rooms(config, about, free)
    assert set(rooms) == {"teacher"} and set(rooms["teacher"]) == {devices.current(), 2, "cpu"}
    assert rooms["teacher"][2] == int(0.9 * 10 * GIB)
    need = about.need(config)
    beside = max(p.total - p.weights for p in need.stages.values())
    assert rooms["teacher"][devices.current()] + about.resident(config, 1) + beside <= free.bytes
    own = fitting.rooms(parse(placement={"student": "auto"}), case(config, "cpu"), Free("cpu", 2 * GIB))
    assert set(own["student"]) == {"cpu"}


def test_estimates_grow_with_what_they_count():
    config = parse(similarity={"parts": []})
    one = case(config).need(config).stages
    two = case(config).need(parse(similarity={"parts": []}, locate={"task": ["demo:people", "demo:sum"]})).stages
    assert two["locate"].accumulators == 2 * one["locate"].accumulators
    assert one["locate"].gradients == 2 * 2 * PAIR[0].largest or one["locate"].other > 0
    writing = case(config, generated=256, asked=True).need(config).stages
    assert writing["evaluate"].kept > 0 == one["evaluate"].kept
    compared = case(config).need(parse()).stages
    assert compared["similarity"].total > one["similarity"].total
    hungry = parse(similarity={"parts": []}, method={"name": "transport"})
    assert case(hungry).need(hungry).stages["align"].kept > 0


def test_examples_count_by_their_own_tokens():
    from paraknow import checks

    short = checks.prepare(configs.parse({**QUICK, "locate": {"max_length": 512}}))
    assert short.case.lengths(short.config).locate < 64  # the longest question, not the limit
    unknown = Case(short.teacher, short.student, short.candidates, "cpu", {})
    assert unknown.lengths(short.config).locate == 512
    assert short.memory == {stage: parts.total for stage, parts in short.parts.items()}
    assert short.parts["load"].weights == 4 * (short.teacher.parameters + short.student.parameters)
