"""`paraknow glossary`: what the words mean. Thin, like the rest of the command line."""

from __future__ import annotations

from typing import Annotated

import typer

from paraknow import glossary as words
from paraknow.screen import emit, say


def glossary(
    term: Annotated[list[str] | None, typer.Argument(help="A word, such as share; all by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """What the words on the pages and in the tables mean."""
    found = [words.find(" ".join(term))] if term else list(words.TERMS)
    if as_json:
        emit({"terms": [vars(t) for t in found]})
        return
    for one in found:
        say(f"{one.name}: {one.words}" + (f" See {', '.join(one.see)}." if term and one.see else ""))
