"""Who may see the pages. The button itself is tried in Chromium, with a login that is really set up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import streamlit as st

from pages.parts import login
from paraknow import access
from tests.pages.test_pages import no_worker, run, show, warm_server, words  # noqa: F401 (fixtures)


def visitor(monkeypatch: pytest.MonkeyPatch, user: dict, allowed: object = None) -> bool:
    monkeypatch.setattr(st, "user", user)
    monkeypatch.setattr(st, "secrets", {} if allowed is None else {"paraknow": {"allowed_emails": allowed}})
    return login._let_in()


def test_only_those_who_are_named_come_in(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"is_logged_in": True, "email": "Ada@example.org", "email_verified": True}
    assert visitor(monkeypatch, known) and visitor(monkeypatch, known, ["ada@example.org "])
    assert visitor(monkeypatch, known, "ada@example.org") and not visitor(monkeypatch, known, ["b@example.org"])
    assert not visitor(monkeypatch, known, [])
    assert not visitor(monkeypatch, {**known, "email_verified": False}, ["ada@example.org"])
    assert not visitor(monkeypatch, {"is_logged_in": True}, ["ada@example.org", "none"])
    for user in ({}, {"is_logged_in": False}, {**known, "is_logged_in": False}):
        assert not visitor(monkeypatch, user)


def test_a_login_that_cannot_work_lets_nobody_in(run, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv(access.VARIABLE, access.grant(shared=True, login=True).dump())
    app = show("overview", run=run.id)
    assert [b.label for b in app.button] == ["Log in"] and run.id not in words(app) and not app.selectbox
    assert not app.exception


@pytest.mark.parametrize("address, shared", [("127.0.0.1", False), ("::1", False), ("0.0.0.0", True), (None, True)])
def test_a_server_started_otherwise_is_shared_where_others_reach_it(address, shared, monkeypatch) -> None:
    monkeypatch.setenv(access.VARIABLE, "")
    monkeypatch.setattr(st, "get_option", lambda name: address)
    login._mark_shared()
    assert access.current().shared == shared and (access.current().data == ()) == shared
    os.environ.pop(access.VARIABLE, None)


def test_a_shared_page_refuses_and_keeps_paths_to_itself(run, runs: Path, tmp_path: Path, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setenv(access.VARIABLE, access.grant(True, [tmp_path / "runs"]).dump())
    run.update(state="failed", error=f"OSError: {tmp_path}/hidden-place/x.bin is gone.")
    app = show("transfer", run=run.id)
    assert "hidden-place" not in words(app) and "OSError" in words(app)
    app.multiselect(key="t.task").set_value(["/etc/passwd"]).run()
    here = [e.value for e in app.error if "data\\-dir" in e.value]
    app.multiselect(key="t.task").set_value(["/etc/absent"]).run()
    absent = [e.value for e in app.error if "data\\-dir" in e.value]
    assert [t.replace("passwd", "absent") for t in here] == absent and len(here) == 1
    assert app.button(key="t.start").disabled and not app.exception
    listed = show("runs", run=run.id)
    assert listed.button(key="r.delete").disabled and "hidden-place" not in str(listed.dataframe[0].value.to_dict())
