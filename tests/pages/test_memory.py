"""Memory on the Transfer page: what does not fit, the settings that do, where the memory goes."""

from __future__ import annotations

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from paraknow import devices, memory
from paraknow.memory import LIBRARIES
from tests.pages.test_pages import ROOT, no_worker, warm_server  # noqa: F401

# bytes: less than tuning takes with the quick settings, more than any other stage does
FREE = 60_000_000 + LIBRARIES["cpu"]


@pytest.fixture(autouse=True)
def forgotten():
    """Estimates are kept for some seconds."""
    st.cache_data.clear()
    yield
    st.cache_data.clear()


@pytest.fixture
def little(monkeypatch):
    """A machine with so much free memory."""

    def make(free: int) -> None:
        monkeypatch.setattr(devices, "free_bytes", lambda device: ("cpu", free))

    return make


def page() -> AppTest:
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
    app.switch_page("pages/transfer.py").run()
    assert not app.exception, [e.value for e in app.exception]
    return app


def test_a_refusal_offers_the_settings_that_fit_and_fills_them_in(runs, little, monkeypatch):
    # with so small a pair it is most of tuning's need, and no setting makes it smaller
    monkeypatch.setattr(memory, "RELOADING", {"cpu": 0})
    little(FREE)
    app = page()
    refusal = " ".join(e.value for e in app.error).replace("\\", "").replace("\u2060", "")
    assert "memory: the tune stage needs about" in refusal and "--set tune.micro_batch=" in refusal
    assert app.button(key="t.start").disabled
    app.button(key="t.fitting").click().run()
    assert not app.exception and not app.error
    assert not app.button(key="t.start").disabled
    assert app.number_input(key="t.tune.micro_batch").value < 64


def test_what_cannot_fit_offers_nothing(runs, little):
    little(1_000_000)
    app = page()
    assert any("no settings fit" in e.value for e in app.error)
    assert "t.fitting" not in [b.key for b in app.button]


def test_the_parts_of_every_stage_are_shown(runs):
    app = page()
    table = next(d.value for d in app.dataframe if "Stage" in d.value.columns)
    assert list(table.Stage) == ["load", "locate", "similarity", "align", "tune", "evaluate"]
    parts = [c for c in table.columns if c not in ("Stage", "At the peak")]
    assert "The weights" in parts
    assert (table[parts].sum(axis=1) - table["At the peak"]).abs().max() < 1e-6
