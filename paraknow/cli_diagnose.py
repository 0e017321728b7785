"""`paraknow diagnose`: findings about a run, the gravest first. Thin, like the rest of the command line."""

from __future__ import annotations

from typing import Annotated

import typer

from paraknow.screen import emit, plain, table

MARKS = {"blocking": "■", "warning": "▲", "note": "·", "good": "✓"}


def diagnose(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or the beginning of one.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """What went well in a run, what is in the way of believing it, and what to try. Nothing is written."""
    from paraknow.diagnose import headline
    from paraknow.diagnose.finding import command
    from paraknow.runs import diagnosis, store

    run = store.find(run_id)
    found = diagnosis.diagnose(run)
    if as_json:
        emit(diagnosis.in_json(run, found))
        return
    print(plain(headline(found)) + "\n")
    for finding in found:
        if finding.severity in MARKS:
            print(plain(f"{MARKS[finding.severity]} {finding.severity.upper()}  {finding.title}"))
            print(plain(f"  {finding.says}"))
            for remedy in finding.remedies:
                print(plain(f"  try: {remedy.text}"))
                if remedy.changes:
                    print(plain(f"       {command(run.id, remedy.changes)}"))
            print()
    for severity, title in (("fine", "Checked and fine"), ("not checked", "Not checked")):
        rows = [{"question": f.title, "answer": f.says} for f in found if f.severity == severity]
        table(rows, title)
