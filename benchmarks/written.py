"""docs/performance.md: every part of it is written by the command that measured it, with that command and the machine.

A part lies between two comments, so that one can be measured again without the others. Imports no torch: some parts
measure what starts without it.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paraknow import files

PAGE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"
PARTS = ("ratios", "growth", "profiles", "pages", "start", "memory", "groups", "gpu")  # in the page's order
NO_GPU = "no GPU"
HEAD = """# Performance

Every part below was written by the command that stands in it. On shared machines only ratios measured side by side in
one process are claimed; seconds are given where a GPU did the work, and where a person waits for them.
"""


def options(about: str | None, module: str) -> argparse.ArgumentParser:
    """What every part's command takes."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{module}", description=about)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--write", action="store_true", help="put all of it into docs/, where none is left out")
    return parser


def machine() -> str:
    """The machine in one line: cores, GPU, versions, and how busy it was in the last minute."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else NO_GPU
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), {gpu}, Python {platform.python_version()}, "
        f"torch {torch.__version__.split('+')[0]}, load {os.getloadavg()[0]:.1f} at the end."
    )


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of the same columns as a table."""
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([str(row[n]) for n in names] for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def put(part: str, title: str, body: str, page: Path = PAGE) -> None:
    """Write one part of the page, in place of what it held; the others stay as they are."""
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    parts = {name: found for name in PARTS if (found := _between(text, name))}
    parts[part] = f"## {title}\n\n    python -m benchmarks {part}\n\nMachine: {machine()}\n\n{body.strip()}\n"
    whole = [HEAD, *(f"<!-- {name} -->\n{parts[name]}<!-- /{name} -->\n" for name in PARTS if name in parts)]
    with files.replacing(page) as temporary:
        Path(temporary).write_text("\n".join(whole), encoding="utf-8")


def held(part: str, page: Path = PAGE) -> str:
    """What the page holds of one part; empty where it holds none."""
    return _between(page.read_text(encoding="utf-8"), part) if page.is_file() else ""


def _between(text: str, name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", text, re.DOTALL)
    return found[1] if found else ""
