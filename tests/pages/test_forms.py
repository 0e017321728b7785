"""The Transfer form against the config's own schema: every field can be set, and refusals stand beside theirs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from pages.parts import forms, presets
from paraknow import config as configs
from paraknow import methods, recipes
from paraknow.config import Benchmark, RunConfig
from paraknow.runs import store
from tests.pages.test_pages import no_worker, run, show, warm_server, words  # noqa: F401 (fixtures)


def leaves(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """The dotted names of all fields that hold values."""
    for name, info in model.model_fields.items():
        inner = info.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from leaves(inner, f"{path}{name}.")
        else:
            yield path + name


def test_every_field_of_the_config_is_in_the_form_or_named_as_not(run: store.Run) -> None:  # noqa: F811
    app = show("transfer")
    app.multiselect(key="t.evaluate.benchmarks").set_value(["humaneval"]).run()
    missing = [p for p in leaves(RunConfig) if f"t.{p}" not in app.session_state and p not in forms.NOT_HERE]
    assert not missing
    own = [f"evaluate.benchmark.humaneval.{n}" for n in Benchmark.model_fields if n != "name"]
    missing = [p for p in own if f"t.{p}" not in app.session_state and not p.endswith("label")]
    assert not missing and "evaluate.benchmarks.label" in forms.NOT_HERE
    assert all(words_ in words(app) for words_ in forms.NOT_HERE.values())


def test_every_field_has_a_description() -> None:
    parts = [c for c in vars(configs).values() if isinstance(c, type) and issubclass(c, configs.Part)]
    parts += [m.settings for m in methods.catalogue().values()]
    bare = [
        f"{part.__name__}.{name}"
        for part in parts
        for name, info in part.model_fields.items()
        if not info.description and not (isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel))
    ]
    assert [n for n in bare if n not in ("Named.name", "Named.label")] == []


@pytest.mark.parametrize(
    "sentence, path, part",
    [
        ("method.rank: 4096 is above the shorter side.", "method.rank", None),
        ("method.steps: too few.", "method.laten.steps", None),
        ("settings: 'tune.epochs': input should be greater.", "tune.epochs", "Tune"),
        ("settings: 'seeds.1': input should be a valid integer.", "seeds", "Name, seeds, device"),
        ("pair: the teacher has 4 layers.", "pair.teacher", None),
        ("model '/b': no such folder.", "pair.student", None),
        ("evaluate.benchmarks.gsm8k: answers leave no room.", "evaluate.benchmarks", "Benchmarks"),
        ("memory: the tune stage needs about 3 GiB.", None, None),
    ],
)
def test_a_refusal_is_put_beside_the_field_it_names(sentence, path, part, monkeypatch) -> None:
    class Slot:
        said = None

        def error(self, text: str, icon: str) -> None:
            self.said = text

    known = "method.rank method.laten.steps tune.epochs seeds pair.teacher pair.student evaluate.benchmarks".split()
    slots = {name: Slot() for name in known}
    monkeypatch.setattr(forms.st, "session_state", {forms.SLOTS: slots})
    assert forms.point_at(sentence, "laten", {"teacher": "/a", "student": "/b"}) == part
    assert [name for name, slot in slots.items() if slot.said] == ([path] if path else [])


def test_a_wrong_value_is_said_twice(run: store.Run) -> None:  # noqa: F811
    app = show("transfer")
    app.number_input(key="t.method.rank").set_value(4096).run()
    assert len([e for e in app.error if "4096 is above" in e.value]) == 2
    app.number_input(key="t.method.rank").set_value(8).run()
    assert not app.error


def test_presets_say_what_they_cost_and_fill_the_form(run: store.Run) -> None:  # noqa: F811
    app = show("transfer")
    said = words(app).replace("\\", "")
    assert "7 models × 3 seeds, 20 passes of training, 32 seed examples, all test items" in said
    app.button(key="t.preset.thorough").click().run()
    assert app.text_input(key="t.seeds").value == "0, 1, 2" and not app.exception
    assert set(app.multiselect(key="t.controls").value) == set(presets.THOROUGH["controls"])
    name = next(n for n in recipes.catalogue() if n.endswith("gsm8k-laten"))
    app.toggle(key="t.keep").set_value(True)
    app.selectbox(key="t.recipe").set_value(name).run()
    app.button(key="t.preset.recipe").click().run()
    assert app.selectbox(key="t.method.name").value == "laten" and not app.exception
    assert app.selectbox(key="t.pair.teacher").value == "demo:teacher"
    assert app.multiselect(key="t.task").value == ["demo:people"]
    app.toggle(key="t.keep").set_value(False).run()
    app.button(key="t.preset.recipe").click().run()
    assert app.selectbox(key="t.pair.teacher").value == "meta-llama/Llama-2-13b-chat-hf" and not app.exception


def test_the_queue_is_seen_from_the_top(run: store.Run, runs) -> None:  # noqa: F811
    other = store.create(run.config().model_copy(update={"name": "another"}), runs)
    app = show("transfer", run=run.id)
    assert "Another run waits: another" in words(app)
    app.button(key="t.elsewhere").click().run()
    assert app.session_state["run"] == other.id and not app.exception
