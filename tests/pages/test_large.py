"""Every page on a run of a large pair: forty layers against thirty-two, and eighty against eighty."""

from __future__ import annotations

from pathlib import Path

import pytest

from pages.parts import shell
from tests.pages import large
from tests.pages.test_pages import no_worker, show, warm_server, words  # noqa: F401 (fixtures)

NAMES = [name for name, *_ in shell.PAGES[1:]]


@pytest.mark.parametrize("layers, pages", [((40, 32), NAMES), ((80, 80), ["sensitivity", "similarity"])])
def test_pages_show_a_large_pair(layers: tuple[int, int], pages: list[str], runs: Path) -> None:
    run = large.write(runs, *layers)
    app = show("overview", run=run.id)
    for name in pages:
        app.switch_page(f"pages/{name}.py").run()
        assert not app.exception, (name, [e.value for e in app.exception])
        assert "damaged" not in words(app)
        if name == "sensitivity":
            app.selectbox(key="s.layer").set_value(layers[0] - 1).run()
            app.selectbox(key="s.module").set_value("down").run()
            assert not app.exception and "s.matrix" in str(app.get("plotly_chart"))  # its key
