"""Methods on the pages: the form of every method, the catalogue, budgets, and rows that methods keep."""

from __future__ import annotations

import pytest
import yaml

from paraknow import config as configs
from paraknow import files, methods
from paraknow.runs import store
from tests.pages import tables
from tests.pages.test_pages import no_worker, run, show, warm_server, words  # noqa: F401 (fixtures)


def config_of(app) -> configs.RunConfig:
    return configs.parse(yaml.safe_load(next(c.value for c in app.code if c.language == "yaml")))


def test_every_method_has_a_form_and_keeps_its_own_defaults(run: store.Run) -> None:  # noqa: F811
    app = show("transfer")
    offered = [n for n, m in methods.catalogue().items() if m.paradigm != "control" or m.needs_clone]
    paradigms = [o.rpartition(" · ")[2] for o in app.selectbox(key="t.method.name").options]
    assert len(paradigms) == len(offered) and len(set(paradigms)) == sum(
        a != b for a, b in zip(["", *paradigms], paradigms, strict=False)
    )  # methods of one paradigm stand together
    app.multiselect(key="t.baselines").set_value([]).run()
    app.multiselect(key="t.controls").set_value(["zero"]).run()  # noise has no form for logit_fusion
    for name in offered:
        app.selectbox(key="t.method.name").set_value(name).run()
        assert not app.exception, (name, [e.value for e in app.exception])
        assert methods.catalogue()[name].cost in words(app).replace("\\", "")
        made = methods.settings_of(config_of(app).method, "method").model_dump()
        assert made == {**methods.catalogue()[name].settings().model_dump(), **({"rank": 8} if "rank" in made else {})}


def test_controls_and_settings_of_every_kind(run: store.Run) -> None:  # noqa: F811
    app = show("transfer")
    named = {"The teacher's layers in another order", "The student as its own teacher", "Nothing moved"}
    assert named <= set(app.multiselect(key="t.controls").options)
    app.selectbox(key="t.method.name").set_value("laten").run()
    app.toggle(key="t.method.laten.gate").set_value(True)
    app.multiselect(key="t.method.laten.as_released").set_value(["fourth_root"])
    app.selectbox(key="t.method.laten.fit_on").set_value("train")
    app.number_input(key="t.method.laten.steps").set_value(2).run()
    made = methods.settings_of(config_of(app).method, "method")
    assert (made.gate, made.as_released, made.fit_on, made.steps) == (True, ("fourth_root",), "train", 2)
    app.selectbox(key="t.method.name").set_value("logit_fusion").run()
    assert "noise has no form" in app.error[0].value
    app.multiselect(key="t.controls").set_value(["zero"]).run()
    assert methods.settings_of(config_of(app).method, "method").weight is None
    app.number_input(key="t.method.logit_fusion.weight").set_value(0.5).run()
    assert methods.settings_of(config_of(app).method, "method").weight == 0.5 and not app.exception


def test_a_method_that_refuses_the_pair_says_why(run: store.Run) -> None:  # noqa: F811
    app = show("transfer")
    app.selectbox(key="t.method.name").set_value("oracle").run()
    assert "needs a cloned pair" in words(app).replace("\\", "") and app.button(key="t.start").disabled
    app.selectbox(key="t.method.name").set_value("transport").run()
    app.selectbox(key="t.method.transport.maps").set_value("identity").run()
    assert "identity" in app.error[0].value and app.button(key="t.start").disabled


def test_all_methods_are_listed_with_what_is_possible(run: store.Run) -> None:  # noqa: F811
    app = show("transfer")
    assert "All methods" in [e.label for e in app.expander]
    table = next(d.value for d in app.dataframe if "reference" in d.value.columns)
    assert set(table.name) == set(methods.catalogue())
    said = table.set_index("name")["this pair"]
    assert said["seeking"] == "possible" and "cloned pair" in said["oracle"]


def test_what_the_form_cannot_hold_is_said(run: store.Run) -> None:  # noqa: F811
    ridge = {"name": "transport", "label": "transport-ridge", "maps": "ridge"}
    values = {**run.config().model_dump(mode="json"), "method": {"name": "transport"}, "baselines": ["pissa", ridge]}
    other = store.create(configs.parse(values), run.folder.parent)
    app = show("transfer", run=other.id)
    app.button(key="t.preset.run").click().run()
    said = words(app).replace("\\", "")
    assert "cannot hold the baseline transport-ridge" in said and not app.exception
    assert [b.name for b in config_of(app).baselines] == ["pissa"]
    app.button(key="t.preset.quick").click().run()
    assert "cannot hold" not in words(app)


def test_rows_that_methods_keep(run: store.Run) -> None:  # noqa: F811
    files.write_table(run.path("align", "seeking", "0.sizes.parquet"), tables.fits())  # about its size: not its own
    app = show("transfer")
    box = app.selectbox(key="t.kept")
    assert len(box.options) == 2 and "chosen step" in "".join(c.proto.spec for c in app.get("plotly_chart"))
    box.set_value("seeking+noise").run()
    assert not app.exception and any("fit_out" in d.value.columns for d in app.dataframe)
    assert "chosen step" not in "".join(c.proto.spec for c in app.get("plotly_chart"))


@pytest.mark.parametrize("damage", ["garbage", "no rows"])
def test_damaged_rows_leave_the_rest(run: store.Run, damage: str) -> None:  # noqa: F811
    path = run.path("align", "seeking", "0.parquet")
    path.write_bytes(b"\x00") if damage == "garbage" else files.write_table(path, tables.steps()[:0])
    app = show("transfer")
    app.selectbox(key="t.kept").set_value("seeking").run()
    said = words(app)
    assert "hold no rows" in said and ("is damaged" in said) == (damage == "garbage")


def test_budgets_say_who_was_given_more(run: store.Run) -> None:  # noqa: F811
    app = show("benchmarks")
    said = words(app).replace("\\", "")
    assert (
        "▲ **Noise of the same size** was given more than the examined method: examples, the teacher's compute" in said
    )
    table = next(d.value for d in app.dataframe if "teacher_flops" in d.value.columns)
    assert table.teacher_flops.tolist() == [2.0, 0.0, 9.0] and table.more.isna().tolist() == [True, True, False]


def test_equal_and_missing_budgets(run: store.Run) -> None:  # noqa: F811
    path = run.path("tune", "budgets.parquet")
    table = tables.budgets()
    files.write_table(path, table.assign(more=[[], [], []]))
    assert "No model was given more" in words(show("benchmarks"))
    files.write_table(path, table.drop(columns="more"))
    assert "lacks the columns more" in words(show("benchmarks"))
    path.unlink()
    assert "before budgets were kept" in words(show("benchmarks"))


def test_only_models_that_are_tuned_are_counted(run: store.Run) -> None:  # noqa: F811
    app = show("transfer")
    app.multiselect(key="t.baselines").set_value([]).run()
    (first,) = [m for m in app.metric if m.label == "Fine-tuning"]
    assert first.value == "22 steps" and first.delta == "675 examples, for each of 2 models"  # and its noise
    app.selectbox(key="t.method.name").set_value("transport").run()
    (first,) = [m for m in app.metric if m.label == "Fine-tuning"]
    assert first.value == "none"
