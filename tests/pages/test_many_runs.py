"""The pages in a folder of two hundred runs."""

from __future__ import annotations

import shutil
import time

from streamlit.testing.v1 import AppTest

from paraknow.runs import store
from tests.faults.test_index import many
from tests.pages.test_pages import ROOT, no_worker, warm_server  # noqa: F401 (fixtures)


def test_two_hundred_finished_runs_are_listed_within_a_second(runs):
    many(runs, 200)
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
    app.switch_page("pages/runs.py").run()
    assert not app.exception
    times = []
    for text in ("000001", "000002", "000003"):
        began = time.perf_counter()
        app.text_input(key="r.text").set_value(text).run()
        times.append(time.perf_counter() - began)
        assert not app.exception
    print(f"the list page with 200 runs: {min(times):.2f} s")
    assert min(times) < 1.0

    first = store.all_runs()[0]
    shutil.rmtree(first.folder)  # while it is shown
    for page in ("runs", "transfer", "overview"):
        app.switch_page(f"pages/{page}.py").run()
        assert not app.exception
    assert app.session_state["run"] != first.id
