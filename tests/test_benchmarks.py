"""The benchmarks' dispatcher, how ratios are taken and judged, and how they are written down."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as dispatcher
from benchmarks import measure, ratios, written
from paraknow.errors import RunError

ROOT = Path(__file__).parent.parent


def test_an_unknown_part_is_refused_in_one_sentence():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "nonsense"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("benchmarks: there is no part 'nonsense'; the parts are ratios, ")
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def codes(monkeypatch):
    """Exit codes of parts that are only said to run, and the parts that did."""
    given: dict[str, int] = {}
    asked: list[str] = []

    def run(part, as_json):
        asked.append(part)
        return given.get(part, 0), {"rows": [part]} if as_json else None

    monkeypatch.setattr(dispatcher, "run", run)
    return given, asked


def test_parts_run_in_order(codes, capsys):
    given, asked = codes
    given["gpu"] = dispatcher.NOTHING_TO_MEASURE
    assert dispatcher.main([]) == 0
    assert asked == list(dispatcher.PARTS)
    assert "nothing to measure" in capsys.readouterr().out


def test_names_choose_parts_and_all_is_one_object(codes, capsys):
    given, asked = codes
    given["memory"] = 1
    assert dispatcher.main(["memory", "ratios", "--json"]) == 1
    assert asked == ["memory", "ratios"]
    found = json.loads(capsys.readouterr().out)
    assert [row["code"] for row in found["parts"]] == [1, 0]
    assert found["printed"]["ratios"] == {"rows": ["ratios"]}


@pytest.mark.parametrize(
    ("code", "expected"),
    [("print('{\"a\": 1}')", (0, {"a": 1})), ("print('no')", (4, None)), ("raise SystemExit(2)", (2, None))],
)
def test_what_a_part_prints_is_read(monkeypatch, tmp_path, code, expected):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").touch()
    (tmp_path / "benchmarks" / "made.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    assert dispatcher.run("made", True) == expected


def test_sides_are_warmed_up_and_begin_in_turn(monkeypatch):
    calls: list[str] = []
    monkeypatch.setattr(measure, "timed", lambda work: (work(), (2.0, 3.0) if calls[-1] == "ours" else (1.0, 1.0))[1])
    made = measure.slow_down("a", "b", lambda: calls.append("ours"), lambda: calls.append("its"), 1.5, 3)
    assert calls == ["its", "ours", "its", "ours", "ours", "its", "its", "ours"]
    assert (made.value, made.cpu, made.rounds, made.held, made.loses) == (2.0, 3.0, [2.0] * 3, False, True)
    fast = measure.speed_up("a", "b", lambda: calls.append("ours"), lambda: calls.append("its"), 0.4, 1)
    assert (fast.value, fast.held, fast.loses) == (0.5, True, True)


def test_ratios_of_different_results_are_refused():
    measure.require_same("both", 0.5, 0.5)
    for gap in (0.6, float("nan")):
        with pytest.raises(RunError, match="both: the two sides' results differ"):
            measure.require_same("both", gap, 0.5)


MADE = [
    measure.Ratio("laten", "bare", 6.5, None, False, [6.0, 7.0], 6.25, "five passes"),
    measure.Ratio("choice", "a loop", 945.7, 1000, True, [945.7]),
    measure.Ratio("angle", "the best", 1.01, 1.02, False, [1.01], error=True),
]


def test_the_page_says_what_is_compared_and_where_ours_loses(monkeypatch, capsys):
    def made(device):
        """What is
        compared."""
        return MADE

    pages: list[str] = []
    monkeypatch.setattr(ratios, "BENCHMARKS", {"made": ("Made", made)})
    monkeypatch.setattr(written, "put", lambda part, title, body: pages.append(body))
    assert ratios.main(["--json", "--write"]) == 1
    found = json.loads(capsys.readouterr().out)["ratios"]
    assert [(row["held"], row["loses"]) for row in found] == [(True, True), (False, False), (True, False)]
    assert "### Made (`made`)\n\nWhat is compared.\n" in pages[0]
    assert "| laten | bare | 6.5 | ours / rival | 6 to 7 | 2 | 6.25 | – | – |" in pages[0]
    assert "| choice | a loop | 946 | rival / ours | – | 1 | – | ≥ 1000 | NO |" in pages[0]
    assert "- laten: ours takes 6.5 times as much as bare. What it does beside: five passes." in pages[0]
    monkeypatch.setattr(ratios, "BENCHMARKS", {"first": ("First", made), "made": ("Made", made)})
    monkeypatch.setattr(
        written, "held", lambda part: "## Part\n\n### First (`first`)\n\nas it was\n\n### Made (`made`)\n\nold"
    )
    assert ratios.main(["made", "--write"]) == 1  # a single one leaves the others as they are
    assert pages[1].index("as it was") < pages[1].index("What is compared.") and "old" not in pages[1]


def test_an_unknown_ratio_and_unequal_results(monkeypatch, capsys):
    assert ratios.main(["nonsense"]) == 2
    assert "no such ratio: nonsense; there are sensitivity, " in capsys.readouterr().err

    def unequal(device):
        measure.require_same("made", 1.0, 0.0)

    monkeypatch.setattr(ratios, "BENCHMARKS", {"made": ("Made", unequal)})
    assert ratios.main([]) == 4
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_every_benchmark_says_what_it_compares():
    assert all(len(benchmark.__doc__ or "") > 80 for _, benchmark in ratios.BENCHMARKS.values())


def test_a_part_is_written_beside_the_others(tmp_path):
    page = tmp_path / "performance.md"
    for part, body in (("growth", "old"), ("ratios", "first"), ("growth", "new")):
        written.put(part, part.title(), body, page)
    text = page.read_text()
    assert text.startswith("# Performance") and "old" not in text
    assert text.index("first") < text.index("## Growth") < text.index("new")
