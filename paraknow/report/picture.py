"""One figure of a run: what it is called, how it is read, and how it is drawn from the run's files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Picture:
    """name: how it is asked for. section: its heading in a report. title: what it shows, in a line. draw: makes the
    Plotly figure or Altair chart. alt: the figure in words. read: how to read it. front: a report shows it before all
    that are not."""

    name: str
    section: str
    title: str
    draw: Callable[[], Any]
    alt: str
    read: str
    front: bool = True


def slug(*parts: object) -> str:
    """A name to type on a command line, from names that users gave: small letters, digits, dots and dashes."""
    told = (re.sub(r"[^a-z0-9_+]+", "-", str(part).lower()).strip("-") or "x" for part in parts)
    return ".".join(part[:40] for part in told)


def apart(pictures: Iterable[Picture]) -> list[Picture]:
    """The same pictures, a number behind every name that another one has already."""
    made: dict[str, Picture] = {}
    for picture in pictures:
        name, count = picture.name, 1
        while name in made:
            count += 1
            name = f"{picture.name}-{count}"
        made[name] = replace(picture, name=name)
    return list(made.values())


def each(frame: pd.DataFrame) -> Iterator[Any]:
    """A table's rows, their values as attributes."""
    return iter(frame.itertuples())


def number(value: float | None, digits: int = 2) -> str:
    """Digits with a real minus, or the sign for missing."""
    if value is None or value != value:
        return "–"
    return f"{round(float(value), digits) + 0.0:.{digits}f}".replace("-", "−")
