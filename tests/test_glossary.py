"""The glossary: every term is found, refers to terms that exist, and stands in the docs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paraknow import cli, glossary
from paraknow.errors import InputError


def test_every_name_is_found_and_means_one_thing() -> None:
    names = [n.lower() for t in glossary.TERMS for n in (t.name, *t.also)]
    assert len(names) == len(set(names))
    for term in glossary.TERMS:
        assert all(glossary.find(f" {n.upper()} ") is term for n in (term.name, *term.also))
        assert all(glossary.find(other).name == other for other in term.see), term.name
        assert term.words.endswith(".") and len(term.words) < 300


def test_a_word_that_is_none_gets_a_hint() -> None:
    with pytest.raises(InputError, match="did you mean share"):
        glossary.find("shaer")
    with pytest.raises(InputError, match="lists all words"):
        glossary.find("zzzzz")
    assert glossary.matching("null")[0].name == "null" and not glossary.matching("zzzzz")
    assert len(glossary.matching("")) == len(glossary.TERMS)


def test_the_docs_hold_it() -> None:
    docs = Path(__file__).parents[1] / "docs" / "glossary.md"
    assert docs.read_text(encoding="utf-8") == glossary.markdown()


def test_the_command_line_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code in (
        (["glossary", "never", "shown"], 0),
        (["glossary", "--json", "share"], 0),
        (["glossary"], 0),
        (["glossary", "x"], 2),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == code
        out = capsys.readouterr().out
        if "--json" in arguments:
            assert json.loads(out)["terms"][0]["name"] == "share"
