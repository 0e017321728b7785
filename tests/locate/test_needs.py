"""What locating is estimated to need, and the settings of it that are offered where it does not fit."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from paraknow import config as configs
from paraknow import fitting
from paraknow.fitting import Free
from paraknow.locate import needs
from tests.test_fitting import GIB, PAIR, case, fits, parse


@given(
    count=st.integers(1, 50),
    where=st.sampled_from(["device", "host", "disk"]),
    device=st.sampled_from(["cpu", "cuda"]),
    placed=st.sampled_from(["device", "offload"]),
    again=st.booleans(),
    tasks=st.integers(1, 3),
    neurons=st.sampled_from(["none", "exact"]),
)
@settings(max_examples=40, deadline=None)
def test_more_groups_and_sums_elsewhere_never_need_more(count, where, device, placed, again, tasks, neurons):
    names = ["demo:people", "demo:sum", "demo:add"][:tasks]

    def need(**change):
        locate = {"task": names, "groups": count, "accumulators": where, "checkpointing": again, "neurons": neurons}
        config = parse(locate=locate | change, placement={"teacher": placed}, similarity={"parts": []})
        found = case(config, device).need(config)
        return found.totals["locate"], found.host.get("locate", 0), found.disk.get("locate", 0)

    here = need()
    assert all(a <= b for a, b in zip(need(groups=count + 1), here, strict=True))
    assert need(accumulators="disk")[0] <= need(accumulators="host")[0] <= need(accumulators="device")[0]
    assert need(checkpointing=True)[0] <= need(checkpointing=False)[0]
    assert need(accumulators="disk")[1] <= need(accumulators="device")[1] <= need(accumulators="host")[1]
    assert (here[2] > 0) == (where == "disk")


def test_sums_of_a_model_by_hand():
    config = parse(locate={"groups": 1})
    about = case(config)
    assert needs.sums(about, config, 0) == {"device": 4 * PAIR[0].parameters, "host": 0, "disk": 0}
    both = parse(locate={"task": ["demo:people", "demo:sum", "demo:add"], "accumulators": "disk"})
    assert needs.sums(about, both, 0)["disk"] == 2 * 4 * PAIR[0].parameters
    few = needs.sums(about, parse(locate={"groups": 4}), 0)["device"]
    assert PAIR[0].parameters < few < 1.1 * PAIR[0].parameters  # a quarter of 4 bytes each, and what is left over


LIGHT = {"similarity": {"parts": []}, "tune": {"micro_batch": 1}, "evaluate": {"batch_size": 1}}


def test_groups_are_offered_first_where_locating_does_not_fit():
    config = parse(locate={"neurons": "none"}, **LIGHT)
    about = case(config)
    room = Free("cuda", 60 * GIB, 20 * GIB, disk=100 * GIB)
    refusal = fitting.refused(config, about, room)
    assert refusal is not None and "memory: the locate stage needs about" in str(refusal)
    assert set(refusal.settings) == {"locate.groups"} and "--set locate.groups=" in str(refusal)
    assert fits(fitting.changed(config, refusal.settings), about, room)
    # with as many groups as there are layers already, sums go to host memory, and to the disk where that is short
    many = parse(locate={"neurons": "none", "groups": 1024, "max_length": 16}, **LIGHT)
    least = case(many).need(many).totals["locate"]
    for host, place in ((60 * GIB, "host"), (needs.PINNED, "disk")):
        fit, _ = fitting.nearest(many, case(many), Free("cuda", least - 1, host, disk=100 * GIB))
        assert fit is None or fit.settings.get("locate.accumulators") in (None, place)


def test_a_disk_that_is_too_small_is_refused_in_one_sentence():
    config = configs.parse(parse(locate={"accumulators": "disk", "neurons": "none"}, **LIGHT).model_dump(mode="json"))
    refusal = fitting.refused(config, case(config), Free("cuda", 400 * GIB, 400 * GIB, disk=10 * GIB))
    assert "memory: the locate stage needs about 48.5 GiB of files in " in str(refusal)
    assert "10.0 GiB are free; --set locate.groups=8 would need" in str(refusal)
    assert refusal is not None and refusal.settings == {"locate.groups": 8}
