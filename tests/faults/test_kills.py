from __future__ import annotations

import shlex
import subprocess

import pytest

from benchmarks import faults, full_disk

# In processes of their own, reload checks are made as in this one; see tests/fresh.py. A disk that is mounted for one
# process alone needs a server that sees it.
FORKED = """
from paraknow import inject
from tests import fresh
watched = inject._watched
inject._watched = lambda command, *rest: watched(fresh.client({address!r}, "paraknow.reload", command), *rest)
"""
ON_THE_DISK = """
from benchmarks import full_disk
from paraknow import inject
from tests import fresh
with fresh.Forks("paraknow.reload") as forks:
    watched = inject._watched
    inject._watched = lambda command, *rest: watched(forks.forked(command), *rest)
    full_disk.main()
"""


@pytest.mark.timeout(900)
def test_kills_leave_every_run_readable_and_equal_to_an_unbroken_one(tmp_path, monkeypatch, reload_checks):
    """Ten of them; twenty are in docs/results.md, by `python -m benchmarks.faults`."""
    reload_checks.start()
    forks = FORKED.format(address=reload_checks.address)
    monkeypatch.setattr(faults.Forks, "CODE", faults.Forks.CODE.replace("\nfor line", f"{forks}for line", 1))
    found = faults.kills(tmp_path, 10, 0)
    print(faults.line(found))
    assert found["kills"] == 10 and len(found["stages"]) > 1
    assert not found["unreadable"] and not found["stuck"] and not found["unequal"]


def test_a_full_disk_in_every_stage(monkeypatch):
    run = subprocess.run

    def forking(command, **more):
        *words, inside = command
        return run([*words, inside.replace("-m benchmarks.full_disk", f"-c {shlex.quote(ON_THE_DISK)}", 1)], **more)

    monkeypatch.setattr(full_disk.subprocess, "run", forking)
    try:
        rows = full_disk.rows()
    except full_disk.NoDisk as reason:
        pytest.skip(f"no small disk can be mounted here: {reason}")
    *stages, whole, submitting = rows
    assert [row["stage"] for row in stages] == ["load", "locate", "similarity", "align", "tune", "evaluate", "diagnose"]
    for row in stages:
        assert row["state"] == "failed" and "no space is left" in row["said"] and row["resumed"], row
        assert not row["unreadable"] and not row["half written"], row
    assert whole["equal"] and submitting == {"stage": "submitting", "refused": True, "left behind": 0}
