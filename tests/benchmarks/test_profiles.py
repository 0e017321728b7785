from __future__ import annotations

import time
from collections import Counter

from benchmarks import profiles
from paraknow import tune

OURS = tune.__file__


def test_the_innermost_of_our_own_functions_is_at_work():
    library = ("/site-packages/torch/nn/modules/module.py", "Module._call_impl")
    assert profiles.place([library, (OURS, "fine_tune"), (OURS, "outer")]) == "tune.fine_tune"
    assert profiles.place([(OURS, "fine_tune.<locals>.inner")]) == "tune.fine_tune.inner"
    assert profiles.place([("<frozen importlib._bootstrap>", "_find_and_load"), (OURS, "f")]) == "(imports)"
    assert profiles.place([library]) == "(elsewhere)"


def test_a_thread_is_watched_while_it_works():
    with profiles.Looks() as looks:
        time.sleep(0.05)
    assert looks.found["(elsewhere)"] >= 1 and not looks.is_alive()


def test_the_largest_have_their_share_of_all():
    found = Counter(a=60, b=30, c=9.5, d=0.5)
    assert profiles.largest(found, 2) == "`a` 60%, `b` 30%"
    assert profiles.largest(found) == "`a` 60%, `b` 30%, `c` 10%"
    assert profiles.largest(Counter()) == "–"


def test_operators_are_recorded_until_the_block_ends():
    import torch

    with profiles.Windows() as windows:
        torch.ones(8, 8) @ torch.ones(8, 8)
    assert windows.found["aten::mm"] > 0 and windows.record is None
