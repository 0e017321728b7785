"""What readers of the repository meet first: the notebook, the citation, the pictures."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
from pathlib import Path

import pytest
import yaml

from paraknow import __version__

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "story.ipynb"


def cells() -> list[str]:
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in content), "outputs are kept out of the repository"
    return ["".join(cell["source"]) for cell in content if cell["cell_type"] == "code"]


def test_the_notebook_uses_public_names_that_exist() -> None:
    modules = 0
    for node in ast.walk(ast.parse("\n".join(cells()))):
        if isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_"), node.attr
        if not isinstance(node, ast.ImportFrom) or not str(node.module).startswith("paraknow"):
            continue
        modules += 1
        for alias in node.names:
            assert not alias.name.startswith("_"), alias.name
            try:
                importlib.import_module(f"{node.module}.{alias.name}")
            except ModuleNotFoundError:
                assert hasattr(importlib.import_module(str(node.module)), alias.name), alias.name
    assert modules > 5


@pytest.mark.skipif(not os.environ.get("PARAKNOW_TEST_NOTEBOOK"), reason="set PARAKNOW_TEST_NOTEBOOK to execute it")
def test_the_notebook_runs(runs: Path) -> None:
    names: dict[str, object] = {}
    for number, cell in enumerate(cells()):
        exec(compile(cell, f"cell {number}", "exec"), names)
    groups = {(row["model"], row["group"]) for row in names["rows"]}
    assert ("seeking", "never_shown") in groups and ("seeking+noise", "shown") in groups


def test_the_citation_names_this_version_and_both_papers() -> None:
    about = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert about["version"] == __version__ and about["license"] == "Apache-2.0" and about["cff-version"] == "1.2.0"
    assert {i["value"] for r in about["references"] for i in r["identifiers"]} == {
        "arXiv:2310.11451",
        "arXiv:2505.14436",
    }


def test_pictures_in_the_docs_are_there_and_small() -> None:
    from PIL import Image

    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for alt, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            picture = (page.parent / target).resolve()
            assert alt and picture.is_file(), (page.name, target)
            assert picture.stat().st_size < 300_000 and Image.open(picture).width <= 1700, target
