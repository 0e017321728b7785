"""The findings about a run: in words, in numbers, and the figures of what they rest on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from paraknow.diagnose.finding import command
from paraknow.figures import diagnose
from paraknow.report.blocks import Figure, More, Text, table
from paraknow.report.picture import Picture, slug
from paraknow.report.source import Source

SECTION = "Findings"
GRAVE = ("blocking", "warning", "note", "good")


def pictures(source: Source) -> Iterator[Picture]:
    """The evidence of each finding that has a figure of its own."""
    for place, finding in enumerate(_told(source)):
        name, numbers = str(finding.get("figure")), _numbers(finding)
        if finding.get("severity") in GRAVE and diagnose.drawable(name, numbers):
            drawing = diagnose.DRAWINGS[name]
            draw, alt = partial(diagnose.draw, name, numbers), diagnose.describe(name, numbers)
            yield Picture(_name(place, finding), SECTION, drawing.title, draw, alt, drawing.reading)


def blocks(source: Source, drawn: Callable[[str], Figure | None]) -> Iterator[Any]:
    """What diagnose.json says, the gravest first; nothing where there is none. drawn: the figure of a name."""
    told = _told(source)
    for place, finding in enumerate(told):
        if finding.get("severity") not in GRAVE:
            continue
        yield Text(f"{str(finding['severity']).capitalize()}: {finding['title']}", True)
        if finding.get("says"):
            yield Text(str(finding["says"]))
        if figure := drawn(_name(place, finding)):
            yield figure
        if numbers := _numbers(finding):
            yield table("What it rests on", numbers)
        for remedy in finding.get("remedies") or ():
            if isinstance(remedy, dict) and remedy.get("text"):
                changes = remedy.get("changes")
                how = f" ({command(source.run.id, changes)})" if isinstance(changes, dict) and changes else ""
                yield Text(f"To try: {remedy['text']}{how}")
    rest = [f"{f['title']}: {f.get('says', '')}" for f in told if f.get("severity") not in GRAVE]
    if rest:
        yield More(f"Also looked at ({len(rest)})", [Text(text) for text in rest])


def _told(source: Source) -> list[dict[str, Any]]:
    found = (source.json("diagnose.json") or {}).get("findings")
    return [f for f in found if isinstance(f, dict) and f.get("title")] if isinstance(found, list) else []


def _numbers(finding: dict[str, Any]) -> list[dict[str, Any]]:
    numbers = finding.get("numbers")
    return numbers if isinstance(numbers, list) and all(isinstance(row, dict) for row in numbers) else []


def _name(place: int, finding: dict[str, Any]) -> str:
    return slug("finding", finding.get("rule") or "finding", place + 1)
