"""The Similarity page, and what the Sensitivity page says of seeds, tasks and neurons."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from paraknow import files
from paraknow.report import alike
from paraknow.runs import store
from tests.pages import tables
from tests.pages.test_pages import NASTY, no_worker, run, show, warm_server, words  # noqa: F401 (fixtures)


def test_all_sections_are_there(run: store.Run) -> None:  # noqa: F811
    app = show("similarity")
    titles = [s.value for s in app.subheader]
    assert len(titles) == 8 and titles[0].startswith("Outputs") and titles[-1] == "Task against task"
    assert words(app).count("How to read this") == 9
    assert "It does not say that knowledge crosses" in words(app)


def test_a_pair_can_be_picked_without_a_mouse(run: store.Run) -> None:  # noqa: F811
    app = show("similarity")
    app.selectbox(key="c.teacher").set_value(0).run()
    app.selectbox(key="c.student").set_value(1).run()
    assert "CKA 0.60 (0.55 to 0.65); permuted 0.00; positions kept 0.10; untrained 0.30" in words(app)
    app.selectbox(key="c.module").set_value("up").run()
    app.selectbox(key="c.task").set_value("demo:sum").run()
    app.selectbox(key="c.null").set_value("untrained").run()
    for quantity in ("cos_rest", "norm_ratio", "left_overlap", "right_overlap", "interference"):
        app.selectbox(key="c.quantity").set_value(quantity).run()
        assert not app.exception and alike.TOLD[quantity] in words(app)  # as in a report
    assert "Above the line it disturbs them" in words(app)


def test_undefined_cka_is_said_and_not_drawn_as_zero(run: store.Run) -> None:  # noqa: F811
    table = tables.cka()
    hollow = (table.module == "k") & (table.student_layer == 1)
    table.loc[hollow, ["cka", "lo", "hi", "null", "null_lo", "null_hi", "null_position"]] = np.nan
    files.write_table(run.path("similarity", "cka.parquet"), table)
    app = show("similarity")
    app.selectbox(key="c.module").set_value("k").run()
    app.selectbox(key="c.student").set_value(1).run()
    assert "2 cells are missing" in words(app) and "CKA is undefined for this pair" in words(app)
    table[["cka", "lo", "hi", "null", "null_position", "untrained"]] = np.nan
    files.write_table(run.path("similarity", "cka.parquet"), table)
    show("similarity")


@pytest.mark.parametrize("left_out", list(tables.TABLES))
def test_what_was_not_asked_for_is_passed_over(run: store.Run, left_out: str) -> None:  # noqa: F811
    run.path(*f"{left_out}.parquet".split("/")).unlink()
    for page in ("similarity", "sensitivity"):
        assert f"{left_out}.parquet" not in words(show(page))


def test_a_run_without_the_stage_says_so_once(run: store.Run) -> None:  # noqa: F811
    for path in run.path("similarity").glob("*.parquet"):
        path.unlink()
    shown = words(show("similarity")).replace("\\", "")
    assert shown.count("its similarity stage writes it") == 1


def test_untrained_and_intervals_may_be_missing(run: store.Run) -> None:  # noqa: F811
    table = tables.cka()
    table[["untrained", "lo", "hi"]] = np.nan
    files.write_table(run.path("similarity", "cka.parquet"), table)
    app = show("similarity")
    assert "untrained –" in words(app)
    assert len(app.selectbox(key="c.null").options) == 2


def test_seeds_tasks_and_neurons(run: store.Run) -> None:  # noqa: F811
    app = show("sensitivity")
    titles = [s.value for s in app.subheader]
    assert titles[-4:] == ["Do the seeds agree?", "Task against task", "Neurons", "A prompt of your own"]
    assert "Exact and first-order scores rank neurons alike" in words(app)
    shown = [d.value for d in app.dataframe]
    assert any("tokens it promotes" in t.columns and "␣a · \\n · <b>" in set(t["tokens it promotes"]) for t in shown)
    assert any("by chance" in t.columns for t in shown)


def test_one_seed_cannot_agree_with_itself(run: store.Run) -> None:  # noqa: F811
    table = tables.agreement()
    table = table[table.what == "layer_scores"].assign(value=np.nan)
    files.write_table(run.path("locate", "agreement.parquet"), table)
    assert "Two seed examples at least" in words(show("sensitivity"))


@pytest.mark.parametrize("name", list(tables.TABLES))
@pytest.mark.parametrize("damage", ["garbage", "columns", "no rows"])
def test_one_damaged_table_leaves_the_rest(run: store.Run, name: str, damage: str) -> None:  # noqa: F811
    path = run.path(*f"{name}.parquet".split("/"))
    table = pd.read_parquet(path)
    if damage == "garbage":
        path.write_bytes(b"\x00\xffnot this")
    else:
        files.write_table(path, table[:0] if damage == "no rows" else table.iloc[:, :1])
    page = "similarity" if name.startswith("similarity") else "sensitivity"
    shown = words(show(page)).replace("\\", "")
    assert shown.count("How to read this") >= 3
    assert {"garbage": "is damaged", "columns": "lacks the columns", "no rows": ""}[damage] in shown
    if damage == "no rows" and page == "similarity":
        assert f"{name}.parquet of this run holds no rows" in shown


def test_two_models_may_share_a_name_full_of_markup(run: store.Run) -> None:  # noqa: F811
    files.write_json(run.path("environment.json"), {"models": {m: {"title": NASTY} for m in ("teacher", "student")}})
    for page in ("similarity", "sensitivity"):
        app = show(page)
        shown = words(app) + "".join(box.label for box in app.selectbox)
        assert "**bold**" not in shown and ":red[y]" not in shown
        specs = "".join(chart.proto.spec for chart in app.get("plotly_chart"))
        assert "<b>x" not in specs and "$z$" not in specs


def test_without_a_pairing_the_page_says_why(run: store.Run) -> None:  # noqa: F811
    table = tables.stitching().assign(r2=np.nan, lo=np.nan, hi=np.nan, null=np.nan, paired=False)
    files.write_table(run.path("similarity", "stitching.parquet"), table)
    shown = words(show("similarity"))
    assert "No pairing" in shown and "Rings: the layer pairing found" not in shown


def test_the_form_holds_the_comparison(run: store.Run) -> None:  # noqa: F811
    app = show("transfer")
    assert any(box.label.startswith("Similarity") for box in app.expander)
    assert app.number_input(key="t.similarity.examples").value == 64  # the quick preset
    app.number_input(key="t.similarity.tokens").set_value(5).run()
    text = next(c.value for c in app.code if c.language == "yaml")
    assert "tokens: 5" in text and not app.button(key="t.start").disabled
