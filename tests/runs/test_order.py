"""Which work comes next, how often again, how much at once, and with how many threads: all of it without Ray."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paraknow import config
from paraknow.checks import check
from paraknow.runs import reuse, threads
from paraknow.runs.order import AGAIN, Order, room
from tests.runs.test_sweep import CHEAP


def points(*changes: dict) -> list:
    return [check(config.parse({**CHEAP, **change})) for change in changes]


def test_points_wait_for_the_one_that_locates_for_them():
    ranks = [{"method": {"name": "seeking", "rank": rank}} for rank in (2, 2, 3, 3)]
    other = {"locate": {**CHEAP["locate"], "seeds": 3}}
    made = points(ranks[0], {**ranks[1], "tune": {"epochs": 2}}, ranks[2], {**ranks[3], "tune": {"epochs": 2}}, other)
    assert reuse.donors(made) == [None, 0, 0, 2, None]


def test_what_must_wait_lets_others_go_first():
    order, located = Order([None, 0, 0, None]), set()
    assert [order.next(located.__contains__) for _ in range(3)] == [0, 3, None]
    located.add(0)
    assert [order.next(located.__contains__) for _ in range(3)] == [1, 2, None]


@given(st.data())
def test_every_place_is_handed_out_once_and_after_its_own(data):
    count = data.draw(st.integers(1, 12))
    after = [data.draw(st.none() | st.integers(0, n - 1)) if n else None for n in range(count)]
    order, located, busy, seen = Order(after), set(), [], []
    while order.waiting or busy:
        place = order.next(located.__contains__)
        if place is None or data.draw(st.booleans()):
            busy += [] if place is None else [place]
            located.add(busy.pop(data.draw(st.integers(0, len(busy) - 1))))
        else:
            busy.append(place)
        if place is not None:
            seen.append(place)
            assert after[place] is None or after[place] in located
    assert sorted(seen) == list(range(count))


def test_a_killed_place_comes_again_so_often_and_no_more():
    order = Order([None, None])
    for _ in range(AGAIN):
        assert order.next(lambda place: True) == 0 and order.again(0)
    assert order.next(lambda place: True) == 0 and not order.again(0)
    assert order.next(lambda place: True) == 1


@pytest.mark.parametrize(
    ("nodes", "count", "gpu", "most", "found"),
    [
        ([{"CPU": 2}], 1, True, 9, (2, 0.0, 1.0)),
        ([{"CPU": 2}], 2, False, 9, (1, 0.0, 2.0)),
        ([{"CPU": 8}, {"CPU": 16}], 4, False, 9, (6, 0.0, 4.0)),
        ([{"CPU": 8}, {"CPU": 16}], 4, False, 3, (3, 0.0, 4.0)),
        ([{"CPU": 2}], 64, False, 9, (1, 0.0, 2.0)),  # more threads than a node has cores: it still has room for one
        ([{"CPU": 8}, {"CPU": 16, "GPU": 4}], 16, True, 9, (4, 1.0, 1.0)),
        ([{"CPU": 8}, {"CPU": 16, "GPU": 4}], 4, False, 9, (6, 0.0, 4.0)),
    ],
)
def test_room(nodes, count, gpu, most, found):
    slots, takes = room(nodes, count, gpu, most)
    assert (slots, takes["num_gpus"], takes["num_cpus"]) == found


def test_threads_are_the_sweeps_own_and_put_back(monkeypatch):
    made = points({})
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads.decide(made) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    assert threads.decide(made) == 1
    monkeypatch.setattr(threads, "SMALL", 10)
    assert threads.decide(made) == threads.cores()
    before = torch.get_num_threads()
    with pytest.raises(ValueError), threads.limited(before + 1):
        assert torch.get_num_threads() == before + 1
        raise ValueError
    assert torch.get_num_threads() == before
