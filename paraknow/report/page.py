"""One run, or runs side by side, as one HTML file that works offline and asks no address for anything."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from paraknow import __version__, files
from paraknow.errors import InputError
from paraknow.figures import images, theme
from paraknow.report import one, two
from paraknow.report.blocks import Canvas, Section, Text, as_json
from paraknow.report.source import Source, of
from paraknow.runs.store import Run

LARGEST = 8 * 10**6  # bytes of the whole file
ADDRESS = "http://127.0.0.1:8501"  # where `paraknow app` opens the dashboard
TABLES = 10**6  # bytes kept for text and tables
GRID = {"light": "#D5DCE4", "dark": "#364350"}
INK = {"light": images.INK, "dark": "#E6EAF0"}
ENDINGS = (".html", ".htm")


def write(runs: Sequence[Run | Source | str], path: Path | str, address: str = ADDRESS, force: bool = False) -> Path:
    """Write a report on one run, or on several side by side, and return its path.

    runs: ids, runs or sources. address: of the dashboard, for links.
    Raises InputError: no such run, one named twice, damaged settings; a name that is not an HTML file's, or of a file
    that is there already (unless `force`).
    """
    path = Path(path)
    if path.suffix.lower() not in ENDINGS:
        raise InputError(f"{path}: a report is an HTML file, so its name must end in .html.")
    if path.is_dir() or (path.exists() and not force):
        raise InputError(f"{path} exists already; name another file, or say --force.")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}.")
    files.write_text(path, compose(runs, address))
    return path


def compose(runs: Sequence[Run | Source | str], address: str = ADDRESS) -> str:
    """The report as text, with as many figures as LARGEST has room for. Raises InputError as `write` does."""
    sources = [of(run) for run in runs]
    ids = [source.run.id for source in sources]
    if not sources:
        raise InputError("name a run, or several to hold side by side; `paraknow runs list` shows them.")
    if twice := next((i for i in ids if ids.count(i) > 1), None):
        raise InputError(f"run {twice} is named twice; a comparison needs two runs.")
    room = LARGEST - TABLES - len(plotly_js().encode())
    while True:
        text = _composed(sources, address, Canvas(room))
        over = len(text.encode()) - LARGEST
        if over <= 0 or room <= 0:  # text and tables are never left out
            return text
        room -= over


def _composed(sources: list[Source], address: str, canvas: Canvas) -> str:
    """The report with the figures that the canvas has room for."""
    program, first = plotly_js(), sources[0]
    parts: list[tuple[str, list[Section]]] = []
    if len(sources) == 1:
        title, intro = first.settings.get("name") or first.run.id, one.line(first)
        parts.append(("", one.sections(first, canvas)))
    else:
        title, intro = "Runs side by side", f"The first: {first.run.id}"
        for second in sources[1:]:
            headline = f"{first.run.id} and {second.run.id}" if len(sources) > 2 else ""
            parts.append((headline, two.sections(first, second, canvas)))
    if canvas.left_out:
        command = f"paraknow figure {first.run.id} NAME -o FILE.svg"
        names = ", ".join(dict.fromkeys(canvas.left_out))
        said = f"{len(canvas.left_out)} figures are not in this file, which would grow too large: {names}."
        parts[-1][1].append(Section("Left out", [Text(f"{said} To draw one: {command}")]))
    script = _file("report.js")
    return _template().render(
        title=title,
        intro=intro,
        question=one.QUESTION,
        parts=parts,
        links=[(source.run.id, f"{address.rstrip('/')}/?run={source.run.id}") for source in sources],
        version=__version__,
        written=time.strftime("%d %b %Y, %H:%M UTC", time.gmtime()),
        style=_file("report.css"),
        plotly=program,
        script=script,
        themes=as_json({name: images.template(INK[name], GRID[name]) for name in INK}),
        hashes=" ".join(f"'sha256-{_hash(text)}'" for text in (program, script)),
        paper={"light": theme.LIGHT, "dark": theme.DARK},
    )


@cache
def plotly_js() -> str:
    """Plotly's program, as it comes with the package."""
    import plotly.offline

    return plotly.offline.get_plotlyjs()


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


@cache
def _template() -> Any:
    """The page's template; everything that is put into it is escaped, but for what is marked `safe` there."""
    from jinja2 import DictLoader, Environment, StrictUndefined

    loader = DictLoader({"report.html": _file("report.html")})
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return made.get_template("report.html")
