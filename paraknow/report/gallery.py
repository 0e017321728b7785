"""The main figures of a run by name: for reports, for `paraknow figure`, for notebooks (no torch)."""

from __future__ import annotations

from difflib import get_close_matches

from paraknow.errors import InputError
from paraknow.report import alike, answers, findings, located
from paraknow.report.picture import Picture, apart
from paraknow.report.source import Source


def pictures(source: Source) -> list[Picture]:
    """The main figures that a run's files allow, in the order of the pages. Nothing is drawn yet."""
    measured = [*answers.pictures(source), *located.pictures(source), *alike.pictures(source), *answers.made(source)]
    return apart([*measured, *findings.pictures(source)])


def find(source: Source, name: str) -> Picture:
    """The figure of a name. Raises InputError, with the nearest names, where the run has none of it."""
    known = {picture.name: picture for picture in pictures(source)}
    if name in known:
        return known[name]
    if not known:
        raise InputError(f"run {source.run.id} has no figures yet: none of its stages has left a table.")
    near = get_close_matches(name, known, 3, 0.3) or list(known)[:3]
    raise InputError(
        f"run {source.run.id} has no figure {name!r}; it has {len(known)}, such as {', '.join(near)} "
        f"(paraknow figure {source.run.id} --list)."
    )
