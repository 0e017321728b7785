"""The Benchmarks page: bits of every model, and the cross matrix, on results written by hand."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from paraknow import files
from paraknow.runs import cross, store
from tests.pages import tables
from tests.pages.test_pages import no_worker, rows, run, show, warm_server, words  # noqa: F401 (fixtures)

TITLE = "Located on one task, measured on another"


def titles(app) -> list[str]:
    return [s.value for s in app.subheader]


def test_without_a_matrix_there_is_no_section(run: store.Run) -> None:  # noqa: F811
    app = show("benchmarks")
    assert TITLE not in titles(app) and "What each model knows, in bits" in titles(app)


def test_the_matrix_is_shown_with_its_words(run: store.Run, runs: Path) -> None:  # noqa: F811
    files.write_json(runs / cross.FILE, tables.crossed())
    app = show("benchmarks")
    said = words(app).replace("\\", "")
    assert TITLE in titles(app) and "locating on it brings more than" in said and "−0.10 to +0.50" in said
    assert "paraknow cross x.yaml" in [c.value for c in app.code] and not app.warning
    before = len(app.get("plotly_chart"))
    app.selectbox(key="x.held").select("noise").run()
    app.selectbox(key="x.scope").select("never_shown").run()
    assert not app.exception and len(app.get("plotly_chart")) == before
    assert "The last row is noise" not in words(app)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"cells": [], "tasks": []}', '{"cells": [{"located": 3}], "tasks": ["a"]}']
)
def test_a_damaged_matrix_is_said(run: store.Run, runs: Path, content: str) -> None:  # noqa: F811
    (runs / cross.FILE).write_text(content)
    app = show("benchmarks")
    assert "cross.json in the runs folder is damaged" in words(app).replace("\\", "") and not app.exception


def test_the_matrix_is_shown_where_the_run_has_no_results(run: store.Run, runs: Path) -> None:  # noqa: F811
    files.write_json(runs / cross.FILE, tables.crossed())
    run.path("evaluate", "deltas.json").unlink()
    assert TITLE in titles(show("benchmarks"))


def test_bits_stand_with_their_intervals(run: store.Run) -> None:  # noqa: F811
    made = [{**r, "bits_ci": [0.25, 1.75]} for r in rows()]
    files.write_json(run.path("evaluate", "deltas.json"), {"run": run.id, "rows": made})
    app = show("benchmarks")
    specs = [c.proto.spec for c in app.get("plotly_chart")]
    assert sum("1.00 [0.25, 1.75]" in s and "bits of knowledge beyond guessing" in s for s in specs) == 2
    (numbers, *_) = [d.value for d in app.dataframe if isinstance(d.value, pd.DataFrame) and "bits_lo" in d.value]
    assert set(numbers.bits_hi) == {1.75}


def test_items_without_candidates_have_no_bits_and_that_is_said(run: store.Run) -> None:  # noqa: F811
    made = [{**r, "bits": None, "bits_ci": None} for r in rows()]
    files.write_json(run.path("evaluate", "deltas.json"), {"run": run.id, "rows": made})
    assert "cannot be given in bits" in words(show("benchmarks"))
