"""Public benchmarks on the pages: chosen in the form, shown with what models wrote."""

from __future__ import annotations

from pathlib import Path

import yaml

from paraknow import config as configs
from paraknow import files
from paraknow.report import answers
from paraknow.runs import store
from tests.evaluate.public_records import gsm8k, write
from tests.pages.test_explore import opened
from tests.pages.test_pages import NASTY, items, no_worker, rows, run, show, warm_server, words  # noqa: F401


def test_benchmarks_are_chosen_in_the_form(run: store.Run, tmp_path: Path) -> None:  # noqa: F811
    """Their records are checked while one types; what a hub would be asked for is not."""
    app = show("transfer")
    app.multiselect(key="t.evaluate.benchmarks").set_value(["gsm8k", "humaneval"]).run()
    assert "gsm8k, humaneval: from a hub" in words(app) and "running the code" in words(app)
    key = "t.evaluate.benchmark.gsm8k"
    path = write(tmp_path / "gsm.jsonl", gsm8k(3))
    app.multiselect(key="t.evaluate.benchmarks").set_value(["gsm8k"]).run()
    app.text_input(key=f"{key}.file").set_value(path).run()
    app.number_input(key=f"{key}.shots").set_value(5).run()
    assert "5 shots are more than the 3 examples" in words(app) and app.button(key="t.start").disabled
    app.number_input(key=f"{key}.shots").set_value(1).run()
    app.selectbox(key=f"{key}.chat").set_value("no").run()
    app.selectbox(key="t.evaluate.batch_size").set_value("auto").run()
    assert not app.exception and not app.error and not app.button(key="t.start").disabled
    parsed = configs.parse(yaml.safe_load(next(c.value for c in app.code if c.language == "yaml")))
    (found,) = parsed.evaluate.benchmarks
    assert (found.name, found.file, found.shots, found.chat) == ("gsm8k", path, 1, False)
    assert parsed.evaluate.batch_size == "auto"


def test_a_runs_benchmarks_come_back_into_the_form(run: store.Run, tmp_path: Path) -> None:  # noqa: F811
    named = [
        {"name": "gsm8k", "label": "few", "file": write(tmp_path / "g.jsonl", gsm8k(4)), "shots": 2, "chat": False},
        {"name": "gsm8k", "file": str(tmp_path / "g.jsonl"), "shots": 0, "limit": 2, "max_tokens": 9},
    ]
    values = run.config().model_dump(mode="json")
    values["evaluate"]["benchmarks"] = named
    files.write_text(run.path("config.yaml"), configs.dump(configs.parse(values)))
    app = show("transfer")
    app.button(key="t.preset.run").click().run()
    text = next(c.value for c in app.code if c.language == "yaml")
    assert not app.exception and configs.parse(yaml.safe_load(text)) == run.config()


def test_what_models_wrote_and_what_the_sandbox_said_is_shown(run: store.Run) -> None:  # noqa: F811
    table = items().assign(candidates=None, candidate_logprobs=None, logprob=None, score=None)
    table["raw"], table["note"] = "def f(): " + NASTY, "failed: AssertionError"
    files.write_table(run.path("evaluate", "items.parquet"), table)
    files.write_json(run.path("evaluate", "deltas.json"), {"rows": [{**r, "loss": None, "bits": None} for r in rows()]})
    app = show("benchmarks")
    first = opened(app)
    assert not app.exception and "All that" in words(app)
    told = answers.readings({"student": "", "teacher": ""})["delta"]  # as in a report
    assert told.partition("the untouched student")[2] in words(app)
    assert "def f(): " + NASTY in [t.value for t in first.text]
    assert "failed: AssertionError" in first.dataframe[0].value["note"].tolist()
    assert "look at the loss" not in words(app)
