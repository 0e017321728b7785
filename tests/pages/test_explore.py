"""What people explore: two tasks, one matrix pooled, one pair of layers, differences sorted and filtered."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from paraknow import files
from paraknow.runs import store
from tests.pages import tables
from tests.pages.test_pages import NASTY, no_worker, run, show, warm_server, words  # noqa: F401 (fixtures)


def two_tasks(run: store.Run) -> None:  # noqa: F811
    table = pd.read_parquet(run.path("locate", "sensitivity.parquet"))
    other = table.assign(task=tables.TASKS[1], share=table.share * np.where(table.module == "q", 1.5, 0.5))
    files.write_table(run.path("locate", "sensitivity.parquet"), pd.concat([table, other]))
    rows = [
        (task, model, 0, "ffn", neuron, float(neuron))
        for task in tables.TASKS
        for model in ("teacher", "student")
        for neuron in range(20)
    ]
    neurons = pd.DataFrame(rows, columns="task model layer kind neuron score".split())
    files.write_table(run.path("locate", "neurons.parquet"), neurons)


def test_two_tasks_stand_beside_each_other(run: store.Run) -> None:  # noqa: F811
    two_tasks(run)
    app = show("sensitivity")
    said = words(app)
    assert "Task against task" in [s.value for s in app.subheader]
    assert "share minus share" in said and "no more in common than random" in said
    specs = [json.loads(c.proto.spec) for c in app.get("plotly_chart")]
    overlap = next(s for s in specs if "same places" in s["layout"]["title"]["text"])
    assert "2 of 2" in overlap["data"][1]["text"]
    run.path("locate", "neurons.parquet").write_bytes(b"not this")
    assert "neurons.parquet of run" in words(show("sensitivity")).replace("\\", "")


def test_one_matrix_is_pooled_as_asked(run: store.Run) -> None:  # noqa: F811
    keys = [f"{m}/{layer}/{module}" for m in ("teacher", "student") for layer in (0, 1) for module in ("q", "k")]
    arrays = {k: np.linspace(0, 1, 40 * 40, dtype=np.float16).reshape(40, 40) for k in keys}
    notes = {k: {"shape": [40, 40], "max": 0.5, "pooling": "max"} for k in keys}
    notes["student/0/q"]["shape"] = [400, 400]
    save_file(arrays, run.path("locate", "maps.safetensors"), metadata={"maps": json.dumps(notes)})
    app = show("sensitivity")
    assert "Each pixel is one weight" in words(app)
    app.selectbox(key="s.cells.40").set_value(16).run()
    app.segmented_control(key="s.pooling.True").set_value("p99").run()
    assert "Each pixel is the 99th percentile of 2\\.5 × 2\\.5 weights" in words(app)
    app.selectbox(key="s.model").set_value("student").run()
    app.selectbox(key="s.layer").set_value(0).run()
    app.selectbox(key="s.module").set_value("q").run()
    assert "other poolings would need the model" in words(app) and not app.exception


def test_a_region_is_chosen_without_a_mouse(run: store.Run) -> None:  # noqa: F811
    app = show("sensitivity")
    rows = next(s for s in app.slider if s.label == "Rows")
    rows.set_value((1, 4)).run()
    assert not app.exception and any(b.label == "Show the whole matrix" for b in app.button)
    assert next(s for s in app.slider if s.label == "Rows").value == (1, 4)


def test_one_pair_is_seen_whole(run: store.Run) -> None:  # noqa: F811
    app = show("similarity")
    app.selectbox(key="c.student").set_value(1).run()
    app.selectbox(key="c.teacher").set_value(0).run()
    said = words(app)
    assert "R² 0.60 (0.50 to 0.85); shuffled rows −0.01" in said and "Effective rank of q" in said
    assert "Layer 1 was located for this layer, not layer 0" in said


def test_differences_are_sorted_and_filtered(run: store.Run) -> None:  # noqa: F811
    app = show("benchmarks")
    app.selectbox(key="b.order").set_value("value").run()
    app.multiselect(key="b.models").set_value(["seeking"]).run()
    app.segmented_control(key="b.layout").set_value("in one list").run()
    specs = [json.loads(c.proto.spec) for c in app.get("plotly_chart")]
    listed = next(s for s in specs if "sorted by value" in s["layout"]["title"]["text"])
    assert len(listed["data"]) == 1 and listed["layout"]["title"]["text"].startswith("1 comparison")
    app.toggle(key="b.apart").set_value(True).run()
    assert "No line of this run is like that" in words(app) and not app.exception


def opened(app):
    """The one item of this run that is gained, opened as by a click."""
    app.session_state["b.item.seeking.student.demo:people.shown.0"] = True
    app.run()
    return app.expander[0]


def test_gained_items_can_be_opened(run: store.Run) -> None:  # noqa: F811
    app = show("benchmarks")
    assert [e.label.split(" ")[1] for e in app.expander] == ["gained"]
    assert not app.expander[0].text, "nobody has opened it"
    assert NASTY in opened(app).text[0].value
    app.selectbox(key="b.reference").set_value("zero").run()
    assert not app.exception and len(app.expander) == 1


def test_an_items_answers_stand_side_by_side(run: store.Run) -> None:  # noqa: F811
    first = opened(show("benchmarks"))
    said = "\n".join(str(m.value) for m in [*first.markdown, *first.caption])
    assert said.index("teacher") < said.index("student") and "right" in said and "wrong" in said
    assert "rank 1 of 2" in said and "log p of the right answer −1.00 nats" in said


def test_the_overview_opens_with_the_claim(run: store.Run) -> None:  # noqa: F811
    app = show("overview")
    assert app.header[0].value.startswith("Not in this run")
    assert "**Pair** demo\\:teacher (2 layers) → demo\\:student (2 layers)" in words(app)
    specs = [json.loads(c.proto.spec) for c in app.get("plotly_chart")]
    assert len(specs) == 2 and "nobody showed" in specs[0]["layout"]["title"]["text"]
