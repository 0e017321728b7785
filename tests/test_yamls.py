"""YAML that is small and stands for much, and YAML that no config needs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from paraknow import config, yamls
from paraknow.errors import InputError
from paraknow.runs import sweepfile

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGED = "a: &a {x: 1}\n" + "".join(
    f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 10)}]}}\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
REFUSED = {
    "a billion laughs": (LAUGHS, "more than 20000 values"),
    "merged keys": (MERGED, "more than 20000 values"),
    "itself": ("&a [*a]", "contains itself"),
    "itself, merged": ("&a {<<: *a}", "contains itself"),
    "deep": ("[" * 20000, "deeper than 40"),
    "deep and closed": ("[" * 60 + "]" * 60, "deeper than 40"),
    "deep by names": ("k0: &k0 1\n" + "".join(f"k{i}: &k{i} [*k{i - 1}]\n" for i in range(1, 99)), "deeper than 40"),
    "many": ("- " + ("[" * 38 + "]" * 38 + "\n- ") * 600, "more than 20000 values"),
    "large": ("#" * (300 * 1024), "larger than 128 KiB"),
    "python": ("!!python/object/apply:os.system [ls]", "tag .* is not accepted"),
    "binary": ("!!binary x", "tag .* is not accepted"),
    "not its tag": ("!!int x", "not what its tag 'int' says"),
    "no date": ("2001-99-99", "not valid YAML"),
    "digits": ("x: 0x" + "f" * 5000, "a number of 5002 characters"),
    "sixties": ("x: 1" + ":59" * 5000, "a number of"),
    "nothing": ("\0", "not valid YAML"),
    "two": ("a: 1\n---\nb: 2\n", "not valid YAML"),
    "keys": ("{[a]: 1}", "not valid YAML"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_sentence_and_soon(case: str, tmp_path: Path) -> None:
    text, sentence = REFUSED[case]
    path = tmp_path / "c.yaml"
    path.write_text(text)
    began = time.perf_counter()
    with pytest.raises(InputError, match=sentence) as stop:
        config.load(path)
    assert "\n" not in str(stop.value) and str(stop.value).startswith(str(path))
    assert time.perf_counter() - began < 20


def test_sweeps_are_read_so_too(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(LAUGHS)
    with pytest.raises(InputError, match="more than 20000 values"):
        sweepfile.read(path)


def test_what_yaml_is_for() -> None:
    text = "base: &b {rank: 4, on: yes}\nall: [*b, {<<: *b, rank: 8}]\nwhen: 2026-01-01\nrate: 1e-3\n'5': five\n"
    values = yamls.parse(text, "here")
    assert values["all"] == [{"rank": 4, True: True}, {"rank": 8, True: True}] and values["5"] == "five"
    assert yamls.parse("", "here") is None and yamls.parse("# only words", "here") is None
