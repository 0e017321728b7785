"""The Models page: facts side by side, links, what cannot be read, and the way to the Transfer form."""

from __future__ import annotations

import json

import pytest
import streamlit as st

from paraknow import access, described
from paraknow.errors import InputError
from paraknow.runs import store
from tests.pages.test_pages import no_worker, run, show, warm_server, words  # noqa: F401 (fixtures)


def said(app) -> str:
    return words(app).replace("\\", "").replace("\u2060", "")


def facts(app):
    return next(d.value for d in app.dataframe if "differs" in d.value.columns).set_index("")


def test_a_pair_is_shown_with_what_differs(run: store.Run) -> None:  # noqa: F811
    app = show("models")
    table = facts(app)
    assert table.loc["layers"].tolist() == ["6", "4", "≠"] and table.loc["vocabulary", "differs"] == ""
    assert "It fits with default settings" in said(app) and "two models of different size" in said(app)
    titles = [json.loads(c.proto.spec)["layout"]["title"]["text"] for c in app.get("plotly_chart")]
    assert len(titles) == 2 and "to one scale" in titles[0]
    stages = next(d.value for d in app.dataframe if "Stage" in d.value.columns)
    assert stages.Fits.tolist() == ["yes"] * 6
    assert "demo:student" in next(c.value for c in app.code if c.language == "yaml")


def test_a_link_chooses_the_pair_and_a_bad_one_is_said(run: store.Run) -> None:  # noqa: F811
    app = show("models")
    app.query_params.update({"teacher": "demo:clone-teacher", "student": "demo:nobody"})
    app.run()
    assert not app.exception
    assert "The link names a student that cannot be read" in said(app) and "no demo model 'nobody'" in said(app)
    assert list(facts(app).columns) == ["teacher", "differs"]
    app.selectbox(key="m.student").set_value("demo:student").run()
    assert "The link names" not in said(app) and facts(app).loc["layers"].tolist() == ["4", "4", ""]


def test_known_pairs_fill_both_fields_and_the_pair_lasts(run: store.Run) -> None:  # noqa: F811
    app = show("models")
    name = next(o for o in app.selectbox(key="m.known").options if o.startswith("Llama-3.1-8B → Llama-3.2-1B"))
    app.selectbox(key="m.known").set_value(name).run()
    assert app.selectbox(key="m.teacher").value == "meta-llama/Llama-3.1-8B" and not app.exception
    assert "one lineage" in said(app) and "not here: sizes from the shipped table" in said(app)
    app.switch_page("pages/runs.py").run()
    app.switch_page("pages/models.py").run()
    assert app.selectbox(key="m.teacher").value == "meta-llama/Llama-3.1-8B"


def test_the_pair_goes_into_the_transfer_form(run: store.Run) -> None:  # noqa: F811
    app = show("models")
    app.selectbox(key="m.teacher").set_value("demo:clone-teacher").run()
    app.selectbox(key="m.dtype").set_value("bfloat16").run()
    app.button(key="m.use").click().run()
    app.switch_page("pages/transfer.py").run()
    assert not app.exception and app.selectbox(key="t.pair.teacher").value == "demo:clone-teacher"
    assert app.selectbox(key="t.dtype").value == "bfloat16"
    app.button(key="t.preset.demo").click().run()  # presets leave it, as a toggle says
    assert app.selectbox(key="t.pair.teacher").value == "demo:clone-teacher" and not app.exception


def test_a_hub_model_is_fetched_on_request_alone(run: store.Run, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    asked = []
    app = show("models")
    app.query_params["teacher"] = "someone/gated"
    app.run()
    assert "nothing is downloaded to look" in said(app) and not asked

    def fetch(spec: str) -> None:
        asked.append(spec)
        raise InputError(f"model {spec!r} is gated: accept its licence on the hub and set HF_TOKEN.")

    monkeypatch.setattr(described, "fetch", fetch)
    app.button(key="m.fetch.teacher").click().run()
    assert asked == ["someone/gated"] and "is gated" in said(app) and not app.exception


def test_a_shared_page_opens_allowed_folders_alone(run: store.Run, tmp_path, monkeypatch) -> None:  # noqa: F811
    st.cache_data.clear()
    monkeypatch.setenv(access.VARIABLE, access.grant(True, [tmp_path]).dump())
    app = show("models")
    app.query_params["teacher"] = "/etc"
    app.run()
    assert "only from the folders named with --models-dir" in said(app) and not app.exception
    app.selectbox(key="m.teacher").set_value("demo:teacher").run()
    assert "others use it too" in said(app)
