"""A report on runs side by side: what differs, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from paraknow.figures import tables
from paraknow.report import one, words
from paraknow.report.blocks import Canvas, More, Row, Section, Table, Text, interval, said, table
from paraknow.report.picture import number
from paraknow.report.sides import Sides, sides
from paraknow.report.source import Source
from paraknow.runs import compare

SHOWN = ("delta", "sensitivity", "cka", "stitching")  # the first of each is shown, the others on demand


def sections(first: Source, second: Source, canvas: Canvas) -> list[Section]:
    """The sections of a comparison. Raises InputError where the settings of one cannot be read."""
    found = compare.across(first.run, second.run)
    made = [
        Section("The runs", list(_runs(first, second))),
        Section("What differs", list(_differing(first, second, found))),
        Section("What each measured", list(_results(first, second))),
        Section("On the same items", list(_paired(first, found))),
        Section("Figures side by side, and their difference", list(_figures(sides(first, second, found), canvas))),
    ]
    if notes := [*first.notes, *second.notes]:
        made.append(Section("What could not be read", [Text(note) for note in notes]))
    return [section for section in made if section.blocks]


def _runs(first: Source, second: Source) -> Iterator[Any]:
    for name, source in (("First", first), ("Second", second)):
        yield Text(f"{name}: {source.run.id} ({one.line(source)})")
        if source.rows:
            yield Text(words.headline(source.frame), True)


def _differing(first: Source, second: Source, found: compare.Across) -> Iterator[Any]:
    rows = [
        {k: said(first.said(second.said(v))) if k != "setting" else v for k, v in row.items()}
        for row in compare.differences(first.config, second.config)
    ]
    yield table("Settings that differ", rows) if rows else Text("Their settings are the same.")
    if found.environment:
        yield table("Versions, devices, models and data that differ", first.said(second.said(found.environment)))
    else:
        yield Text("Versions, devices, models and data are the same, as far as the runs say.")
    for note in found.notes:
        yield Text(first.said(second.said(note)), True)


def _results(first: Source, second: Source) -> Iterator[Table]:
    if not first.rows or not second.rows:
        return
    titles = second.model_titles(list(second.kinds)) | first.model_titles(list(first.kinds))
    rows = []
    for r in compare.results(first.rows, second.rows):
        row = {"suite": r["suite"], "items": tables.GROUPS.get(r["group"], r["group"]), "model": titles[r["model"]]}
        for side in ("first", "second"):
            row[f"{side}: accuracy"] = number(r[f"{side}_accuracy"])
            row[f"{side}: difference to its student"] = interval(r[f"{side}_delta"], r[f"{side}_delta_ci"], True)
        rows.append(row)
    yield table("Accuracy, and difference to the student with its 95 % interval", rows)


def _paired(first: Source, found: compare.Across) -> Iterator[Table]:
    titles = first.model_titles(list(dict.fromkeys(r["model"] for r in found.rows)))
    rows = [
        {
            "suite": first.said(r["suite"]),
            "items": tables.GROUPS.get(r["group"], r["group"]),
            "model": titles[r["model"]],
            "n": r["n"],
            "first": number(r["accuracy_first"], 3),
            "second": number(r["accuracy_second"], 3),
            "second − first": interval(r["delta"], r["delta_ci"], True, 3),
            "gained / lost": f"{r['gained']} / {r['lost']}",
            "corrected p": said(r["p_holm"]),
        }
        for r in found.rows
    ]
    if rows:
        yield table(
            "The second run against the first, item by item",
            rows,
            "Every row holds one model of both runs on the n items that both were asked, with a 95 % interval; p is "
            "corrected over all rows. Teacher and student were not changed: what they differ by is the machines', not "
            "a method's.",
        )


def _figures(found: list[Sides], canvas: Canvas) -> Iterator[Any]:
    """The first of each kind is drawn first; where there is no room for all, it is the others that are left out."""
    shown = {next((s.name for s in found if s.name.startswith(kind)), "") for kind in SHOWN}
    shown |= {s.name for s in found if s.name.startswith("sensitivity") and s.name.count(".") == 1}
    order = sorted(found, key=lambda s: s.name not in shown)  # stable
    drawn = {s.name: row for s in order if (row := _row(s, canvas))}
    yield from (drawn[s.name] for s in found if s.name in shown and s.name in drawn)
    more = [drawn[s.name] for s in found if s.name not in shown and s.name in drawn]
    if more:
        yield More(f"More figures ({len(more)})", more)


def _row(beside: Sides, canvas: Canvas) -> Row | None:
    figures: list[Any] = []
    for picture in (beside.first, beside.second, beside.difference):
        if picture is None:
            figures.append(Text(f"No difference is drawn: {beside.lacking}"))
        elif figure := canvas.figure(picture):
            figures.append(figure)
        else:
            return None
    return Row(beside.title, figures, beside.read)
