"""Questions put on pages: what is said while they wait, what their answers become. No model is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from streamlit.testing.v1 import AppTest

from pages.parts import asking
from paraknow.runs import asks, questions, queue, store
from tests.pages import hostile
from tests.pages.test_hostile import read_as_markdown
from tests.pages.test_pages import no_worker, run, show, warm_server, words  # noqa: F401 (fixtures)


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "PATIENCE", 0.0)


def cell(model: str, layer: int, module: str, share: float) -> questions.Cell:
    return questions.Cell(model=model, layer=layer, module=module, sum=share, mean=share, max=share, share=share)


def own(text: str = " a") -> questions.SensitivityAnswer:
    cells = [cell(m, layer, q, 0.1 + 0.1 * layer) for m in ("teacher", "student") for layer in (0, 1) for q in "qk"]
    tokens = [questions.Token(text=text, logprob=-0.5), questions.Token(text="", logprob=-0.5)]
    models = [questions.Surprise(model=m, loss=0.5, tokens=tokens) for m in ("teacher", "student")]
    return questions.SensitivityAnswer(models=models, cells=cells)


def tried(text: str = "bread") -> questions.AnswersAnswer:
    about: dict[str, Any] = {"tokens": 3, "ended": True, "mean_logprob": -0.25}
    held = {"text": text, "expected": -2.0, "expected_tokens": 2, "rank": 4, **about}
    said = [questions.Said(label=label, **held) for label in ("teacher", "student")]
    said.append(questions.Said(label="seeking", seed=0, text="", **about))
    said.append(questions.Said(label="zero", seed=0, missing=f"it is not there {text}"))
    return questions.AnswersAnswer(models=said)


def put(app: AppTest, key: str, **typed: str) -> asks.Ask:
    """Fill in a form, press its button; the question that lies in the mailbox then."""
    for name, value in typed.items():
        box = app.text_area if name == "prompt" else app.text_input
        box(key=f"{key}.{name}").set_value(value)
    app.button(key=f"{key}.ask").click().run()
    assert not app.exception
    return asks.waiting(store.runs_folder())[-1]


def answer(app: AppTest, ask: asks.Ask, given: questions.Answer, values: np.ndarray | None = None) -> None:
    ask.done(given, values)
    app.run()
    assert not app.exception


def test_a_prompts_maps_are_drawn_beside_the_tasks(run: store.Run) -> None:  # noqa: F811
    app = show("sensitivity")
    charts = len(app.get("vega_lite_chart") or app.get("arrow_vega_lite_chart"))
    ask = put(app, "s.own", prompt="Who?", answer="a")
    question = ask.question()
    assert isinstance(question, questions.SensitivityQuestion) and question.models == ("teacher", "student")
    assert "no worker" in words(app)
    answer(app, ask, own())
    assert "depends more on the matrix than those of demo:people".replace(":", "\\:") in words(app)
    assert len(app.get("vega_lite_chart") or app.get("arrow_vega_lite_chart")) == charts + 4
    assert [t.value for t in app.text if "Who?" in t.value] == ["Who?\na"]
    table = next(d.value for d in app.dataframe if "probability" in d.value.columns)
    assert table.probability.tolist() == pytest.approx([np.exp(-1.0)] * 2)
    app.run()  # the answer stays when its files are gone
    asks.named(ask.id, store.runs_folder()).cancel()
    app.run()
    assert "One prompt always differs" in words(app)


def test_every_model_is_shown_and_the_missing_named(run: store.Run) -> None:  # noqa: F811
    app = show("benchmarks")
    ask = put(app, "b.try", prompt="Who?", answer="a")
    assert isinstance(ask.question(), questions.AnswersQuestion)
    answer(app, ask, tried())
    shown = words(app)
    assert [t.value for t in app.text if t.value in ("bread", "(nothing)")] == ["bread", "bread", "(nothing)"]
    assert "expected answer −2.00, its first token at rank 4" in shown and "log-probability −0.25 per token" in shown
    assert "Not available: Nothing moved" in shown
    table = next(d.value for d in app.dataframe if "rank of its first token" in d.value.columns)
    assert table["model"].tolist() == ["demo:teacher", "demo:student", "Seeking Neural Nuggets"]


def test_an_item_can_be_filled_in(run: store.Run) -> None:  # noqa: F811
    app = show("benchmarks")
    app.button(key="b.try.fill.gained").click().run()
    assert app.text_area(key="b.try.prompt").value.startswith("Question 0")
    assert app.text_input(key="b.try.answer").value == "a" and app.checkbox(key="b.try.raw").value
    app.button(key="b.try.ask").click().run()
    question = asks.waiting(store.runs_folder())[0].question()
    assert isinstance(question, questions.AnswersQuestion) and question.raw and question.prompt.startswith("Question 0")


def test_what_cannot_be_asked_is_said(run: store.Run) -> None:  # noqa: F811
    app = show("sensitivity")
    for prompt, answered, said in ((" ", "a", "prompt: it is empty"), ("q", "", "answer: it is empty")):
        app.text_area(key="s.own.prompt").set_value(prompt)
        app.text_input(key="s.own.answer").set_value(answered)
        app.button(key="s.own.ask").click().run()
        assert not app.exception and app.error[0].value.replace("\\", "").startswith(said)
    assert not asks.waiting(store.runs_folder())


def test_waiting_says_for_what_and_can_be_given_up(run: store.Run, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    app = show("sensitivity")
    ask = put(app, "s.own", prompt="q", answer="a")
    monkeypatch.setattr(queue, "worker_alive", lambda *_: True)
    app.run()
    assert "is being asked; your question is next" in words(app)
    other = store.create(run.config(), run.folder.parent)
    with other.lock():
        other.update(state="running")
        app.run()
        assert f"busy with {other.id}".replace("-", "\\-") in words(app)
    taken = asks.take(run.folder.parent, lambda device: True)
    assert taken is not None
    taken.say("loading <b>x</b>")
    app.run()
    assert r"The worker is at it: loading \<b\>" in words(app)
    app.button(key=f"ask.own.{run.id}.cancel").click().run()
    assert not app.exception and ask.cancelled and "The worker" not in words(app)[-400:]


def test_a_failure_is_a_sentence(run: store.Run) -> None:  # noqa: F811
    app = show("benchmarks")
    ask = put(app, "b.try", prompt="q")
    ask.fail(hostile.TEXT)
    app.run()
    assert not app.exception and "\\<img" in app.error[0].value
    gone = put(app, "b.try", prompt="q")
    gone.cancel()
    app.run()
    assert "gone" in app.error[0].value


@pytest.mark.parametrize("page, key, given", [("sensitivity", "s.own", own), ("benchmarks", "b.try", tried)])
def test_answers_are_text(run: store.Run, page: str, key: str, given: Callable[[str], questions.Answer]) -> None:  # noqa: F811
    app = show(page)
    ask = put(app, key, prompt=hostile.TEXT, answer="a")
    answer(app, ask, given(hostile.TEXT))
    for text in read_as_markdown(app):
        assert not any(re.search(rf"(?<!\\){re.escape(raw)}", text) for raw in hostile.RAW), text


def test_single_weights_of_a_pooled_map(run: store.Run, runs: Path) -> None:  # noqa: F811
    keys = [f"{m}/{layer}/{module}" for m in ("teacher", "student") for layer in (0, 1) for module in ("q", "k")]
    arrays = {k: np.linspace(0, 1, 48, dtype=np.float16).reshape(6, 8) for k in keys}
    notes = {k: {"shape": [1200, 1600], "max": 0.5, "pooling": "max"} for k in keys}
    save_file(arrays, run.path("locate", "maps.safetensors"), metadata={"maps": json.dumps(notes)})
    app = show("sensitivity")
    assert app.button(key="s.single").disabled  # the whole matrix is more than can be shown
    from paraknow.figures.heatmaps import Region

    place = (run.id, app.session_state["s.model"], app.session_state["s.layer"], app.session_state["s.module"])
    app.session_state["s.region"] = (place, Region(200, 210, 40, 60))
    app.run()
    app.button(key="s.single").click().run()
    (ask,) = asks.waiting(runs)
    question = ask.question()
    assert isinstance(question, questions.RegionQuestion) and (question.rows, question.cols) == ((200, 210), (40, 60))
    values = np.arange(1, 201, dtype=np.float32).reshape(10, 20)
    answer(app, ask, questions.RegionAnswer(rows=(200, 210), cols=(40, 60), examples=7), values)
    figures = [json.loads(c.proto.spec) for c in app.get("plotly_chart")]
    (drawn,) = [f for f in figures if "single weights" in json.dumps(f["layout"]["title"])]
    assert (drawn["data"][0]["x0"], drawn["data"][0]["y0"], drawn["data"][0]["dx"]) == (40.5, 200.5, 1.0)
    assert drawn["layout"]["yaxis"]["range"] == [210, 200] and "7 seed examples" in words(app)
    app.session_state["s.region"] = (place, Region(200, 211, 40, 60))
    app.run()
    assert "7 seed examples" not in words(app)  # it was about another part
