"""Every page on a hostile run: what users and models wrote is text, in Markdown, in figures and in widgets."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pages.parts import shell
from paraknow.figures.theme import plain
from paraknow.runs import store
from tests.pages import hostile
from tests.pages.test_pages import ROOT, no_worker, run, show, warm_server  # noqa: F401 (fixtures)

PAGES = ("overview", "models", "sensitivity", "similarity", "transfer", "benchmarks", "ladder", "diagnose", "runs")
MARKDOWN = "markdown caption info warning error success title header subheader metric expander button tab".split()


@pytest.fixture
def bad(run: store.Run, runs: Path) -> store.Run:  # noqa: F811
    return hostile.whole(runs)


def elements(block: Any) -> Iterator[Any]:
    for child in getattr(block, "children", {}).values():
        yield child
        yield from elements(child)


def read_as_markdown(app: Any) -> Iterator[str]:
    """All texts of a page that Streamlit reads as Markdown: bodies of texts, labels and helps of everything."""
    for element in elements(app._tree):
        parts = [getattr(element, name, None) for name in ("label", "help")]
        if getattr(element, "type", "") in MARKDOWN:
            parts += [getattr(element, name, None) for name in ("value", "body", "delta")]
        if getattr(element, "type", "") == "button_group":
            parts += [option.content for option in element.proto.options]
        yield from (p for p in parts if isinstance(p, str))


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings(inner)


@pytest.mark.parametrize("page", PAGES)
def test_it_is_text_on_every_page(page: str, bad: store.Run) -> None:
    app = show(page, run=bad.id)
    assert not app.exception
    found = list(read_as_markdown(app))
    for text in found:
        for raw in hostile.RAW:
            assert not re.search(rf"(?<!\\){re.escape(raw)}", text), (raw, text)
    if page not in ("transfer", "runs"):
        assert any("\\<b\\>" in text or "\\<img" in text for text in found)
    for figure in app.get("plotly_chart"):
        for text in strings(json.loads(figure.proto.spec)):
            assert not re.search(r"<img|<a |<script|%\{evil|\$x|<b>(T|bold)<", text), text


def test_html_is_switched_on_nowhere() -> None:
    for path in [ROOT / "app.py", *(ROOT / "pages").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                assert not any(k.arg in ("unsafe_allow_html", "unsafe_allow_javascript") for k in node.keywords), path
                name = getattr(node.func, "attr", "")
                if name == "html" and [ast.unparse(a) for a in node.args] == ["STYLE"] and not node.keywords:
                    continue  # a file of style rules that comes with the page
                assert name not in ("html", "iframe", "pdf", "image", "video", "audio", "components"), (path, name)


def test_pages_open_files_only_through_the_library() -> None:
    """A page that read a file by itself would go past paraknow.access: it may only read what lies in a run's folder,
    the runs folder or the package, by names of the page's own."""
    reading = "open stat is_file is_dir exists glob rglob iterdir read_text read_bytes resolve expanduser read_parquet "
    writing = "write_text write_bytes mkdir unlink rmtree read_csv safe_open listdir scandir isdir isfile load_dataset"
    allowed = {
        "artifacts.py": "open stat is_file read_parquet safe_open",
        "bundles.py": "read_bytes write_bytes stat",  # in a temporary folder of its own
        "cross.py": "is_file stat read_text read_bytes",
        "ladder.py": "is_file stat read_text read_bytes",
        "methods.py": "glob",
        "runs.py": "glob resolve",
        "transfer.py": "glob is_dir",
    }
    for path in [ROOT / "app.py", *(ROOT / "pages").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""
            doing = name in f"{reading} {writing} create".split()  # store.create: queue.submit is what checks first
            assert not doing or name in allowed.get(path.name, "").split(), f"{path.name}:{node.lineno} calls {name}"


@given(st.text())
def test_escaped_text_keeps_its_characters(text: str) -> None:
    shown = re.sub(r"\\(.)", r"\1", shell.escape(text)).replace(shell.JOINER, "")
    kept = re.sub(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "\ufffd", " ".join(text.split()))
    assert shown == kept.replace(shell.JOINER, "")


@given(st.text(alphabet='<>&$%{}ab\x1b"'))
def test_labels_of_figures_hold_no_markup(text: str) -> None:
    import html

    made = plain(text)
    assert not set("<>$\x1b") & set(made) and "%{" not in made
    assert html.unescape(made) == re.sub(r"[\x00-\x1f]", " ", text)
