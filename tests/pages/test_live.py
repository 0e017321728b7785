"""The live part of the Transfer page: losses as they come, and the log."""

from __future__ import annotations

import json

from paraknow.runs import store
from paraknow.runs.events import Lines
from tests.pages.test_pages import NASTY, no_worker, run, show, warm_server, words  # noqa: F401 (fixtures)


def loss_points(app) -> list[float]:
    charts = [json.loads(c.proto.spec) for c in app.get("plotly_chart")]
    (chart,) = [c for c in charts if "Fine-tuning loss" in json.dumps(c["layout"]["title"])]
    return [len(line["x"]) for line in chart["data"]]


def test_a_redraw_reads_only_what_is_new(run: store.Run, monkeypatch) -> None:  # noqa: F811
    read, new = [], Lines.new
    monkeypatch.setattr(Lines, "new", lambda lines: read.append(new(lines)) or read[-1])
    app = show("transfer", run=run.id)
    assert loss_points(app) == [1]
    before = len(read)
    run.event(stage="tune", step=2, total=2, message="seeking, seed 0", loss=1.0)
    app.run()
    assert loss_points(app) == [2] and [len(lines) for lines in read[before:]] == [1]
    run.path("events.jsonl").write_text("")  # another file in its place
    run.event(stage="tune", step=1, total=2, message="seeking, seed 0", loss=3.0)
    app.run()
    assert loss_points(app) == [1]


def test_the_log_is_shown_as_text(run: store.Run) -> None:  # noqa: F811
    assert "has written no log yet" in words(show("transfer", run=run.id))
    run.path("worker.log").write_text("".join(f"{n} {NASTY}\x1b[1m\n" for n in range(300)))
    app = show("transfer", run=run.id)
    (text,) = [c.value for c in app.code if "\\u001b[1m" in c.value]
    lines = text.splitlines()
    assert len(lines) == 100 and lines[-1] == f"299 {NASTY}\\u001b[1m"
    assert "Log" in [e.label for e in app.expander]
