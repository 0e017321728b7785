"""Reports as text: what is in them, how large they are, what they refuse, what they keep to themselves."""

from __future__ import annotations

import html
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from paraknow import config as configs
from paraknow import files
from paraknow.cli import main
from paraknow.errors import InputError
from paraknow.report import blocks, gallery, page, source
from paraknow.report.picture import Picture
from paraknow.runs import store
from tests.report import deep
from tests.runs import packed

RECORDED = "20261121-200354-seeking-people-6d1d"


def figures(text: str) -> list[dict]:
    """All Plotly figures of a report."""
    found = re.findall(r'class="plot"[^>]*></div>\s*<script type="application/json">(.*?)</script>', text, re.S)
    return [json.loads(one) for one in found]


def words(text: str) -> str:
    """What a report says, without its programs and its markup."""
    return html.unescape(re.sub(r"<script.*?</script>|<style.*?</style>|<[^>]+>", " ", text, flags=re.S))


@pytest.fixture(scope="module")
def recorded() -> str:
    return page.compose([RECORDED])


def test_the_recorded_run_is_whole_and_small(recorded: str) -> None:
    assert len(recorded.encode()) < page.LARGEST == 8 * 10**6
    said = words(recorded)
    for what in (
        "Does knowledge cross scales?",
        "Not in this run: no fact that nobody showed the student can be seen to have arrived.",
        "The answer so far",
        "Where the knowledge lies",
        "How alike the two models are",
        "tune.epochs",  # a setting that is not the default …
        "fcf335cbe57e28f41fe8a5135f1bcca59f6d0b34ab8daf34f126aba5f212ebb6",  # … and the student's hash
    ):
        assert what in said, what
    assert "tune.warmup" not in re.sub(r"<details>.*?</details>", "", recorded, flags=re.S)  # as by default
    pictures = gallery.pictures(source.of(RECORDED))
    assert len(figures(recorded)) + recorded.count('class="drawing"') == len(pictures) > 50
    assert all(f'id="{p.name}"' in recorded and p.read[:40] in said for p in pictures)
    assert re.search(rf'href="http://127.0.0.1:8501/\?run={RECORDED}"', recorded)


def test_it_names_no_other_address_to_load(recorded: str) -> None:
    without = re.sub(r"<script.*?</script>", "", recorded, flags=re.S)
    assert not re.search(r"(src|srcset|poster|data)=|@import|url\((?!#)", without)
    assert re.findall(r'href="(?!#)([^"]*)"', without) == [f"{page.ADDRESS}/?run={RECORDED}"]
    assert "default-src 'none'" in recorded
    for program in (page.plotly_js(), page._file("report.js")):
        assert f"'sha256-{page._hash(program)}'" in recorded and f"<script>{program}</script>" in recorded


def test_every_drawing_has_names_of_its_own(recorded: str) -> None:
    drawn = re.findall(r'class="drawing"[^>]*>(<svg.*?</svg>)', recorded, re.S)
    ids = [found for one in drawn for found in re.findall(r'\bid="([^"]+)"', one)]
    assert ids and len(ids) == len(set(ids))
    for one in drawn:
        assert set(re.findall(r"url\(#([^)]+)\)", one)) <= set(ids)


def test_deep_models_fit(tmp_path: Path) -> None:
    text = page.compose([source.Source(deep.run(tmp_path))])
    assert len(text.encode()) < page.LARGEST
    for name in ("sensitivity.teacher", "cka.residual", "cka-difference.residual", "stitching"):
        assert f'id="{name}"' in text, name
    assert "Left out" not in words(text)


def test_what_has_no_room_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "LARGEST", page.TABLES + len(page.plotly_js().encode()) + 9000)
    text = page.compose([source.Source(packed.finished(tmp_path))])
    assert re.search(
        r"figures are not in this file, which would grow too large: .*accuracy\.demo-people\.shown", words(text)
    )


def test_long_texts_and_tables_take_the_place_of_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = packed.finished(tmp_path)
    whole = len(page.compose([source.Source(run)]).encode())
    monkeypatch.setattr(page, "LARGEST", whole + 10**5)
    monkeypatch.setattr(page, "TABLES", 0)  # as if more had been written than was set aside for it
    files.write_json(run.path("diagnose.json"), {"findings": [{"title": "t", "says": "x" * 110_000}]})
    text = page.compose([source.Source(run)])
    assert len(text.encode()) <= page.LARGEST and "figures are not in this file" in words(text)


def test_the_words_of_a_figure_take_room_too() -> None:
    import plotly.graph_objects as go

    said = "<" * 1000  # four bytes each in the page
    canvas = blocks.Canvas(4000)
    assert canvas.figure(Picture("a", "", "t", go.Figure, said, "", "")) is None and canvas.left_out == ["a"]


def test_a_comparison_says_only_what_differs(tmp_path: Path) -> None:
    first = packed.finished(tmp_path)
    second = packed.finished(tmp_path, method={"name": "seeking", "rank": 4})
    packed.measured(second, packed.items(right={"seeking": "11111110"}))
    text = page.compose([source.Source(run) for run in (first, second)])
    said = words(text)
    assert "method.rank" in said and "tune.epochs" not in said
    assert "Versions, devices, models and data are the same" in said
    assert "Second − first" in said and re.search(r"\+0\.375 \[", said)  # 7 of 8 against 4 of 8, item by item
    assert len(figures(text)) == 3  # first, second, and their difference
    assert [f["data"][0]["type"] for f in figures(text)] == ["scatter"] * 3


def test_where_models_differ_no_difference_is_drawn(tmp_path: Path) -> None:
    runs = [packed.finished(tmp_path) for _ in range(2)]
    facts = files.read_json(runs[1].path("environment.json"))
    facts["models"]["student"]["sha256"] = "x" * 64
    files.write_json(runs[1].path("environment.json"), facts)
    text = page.compose([source.Source(run) for run in runs])
    assert len(figures(text)) == 2 and "No difference is drawn: The students differ" in words(text)


def test_places_of_this_machine_stay_here(tmp_path: Path) -> None:
    task = tmp_path / "secret" / "facts.jsonl"
    run = packed.finished(tmp_path, task=str(task), evaluate={"suites": [str(task)]})
    run.update(error=f"it broke at {tmp_path}/secret/weights.bin")
    text = page.compose([source.Source(run)])
    assert "secret" not in text and str(tmp_path) not in text and "facts.jsonl" in text


def test_findings_are_read_where_there_are_some(tmp_path: Path) -> None:
    run = packed.finished(tmp_path)
    assert "Findings" not in words(page.compose([source.Source(run)]))
    remedy = {"text": "Train for longer.", "changes": {"tune.epochs": 9, "pair": {"name": "it's"}, "tune.fast": None}}
    grave = {
        "rule": "a",
        "severity": "warning",
        "title": "It barely trained",
        "says": "Two steps.",
        "remedies": [remedy],
    }
    shown = {"rule": "seeds", "severity": "note", "title": "Seeds differ", "figure": "seeds", "remedies": []}
    shown["numbers"] = [
        {"on": "<b>a</b>", "seed": k, "difference (points)": k, "from": k - 1.0, "to": k + 1.0} for k in (0, 1)
    ]
    damaged = shown | {"title": "Damaged", "numbers": [{"on": "a", "difference (points)": "x", "n": "y"}]}
    looked = {"rule": "b", "severity": "fine", "title": "Controls ran", "says": "All of them."}
    files.write_json(
        run.path("diagnose.json"), {"findings": [looked, grave | {"numbers": [{"steps": 2}]}, "odd", shown, damaged]}
    )
    text = page.compose([source.Source(run)])
    said = words(text)
    assert re.findall(r'id="(finding\.[^"]*)"', text) == ["finding.seeds.3"] and "Note: Damaged" in said
    assert "Warning: It barely trained" in said and "Also looked at (1)" in said
    command = re.search(r"To try: Train for longer\. \((paraknow run --like .*?)\)\s*\n", said)
    assert command, said  # and what it says can be typed
    typed = shlex.split(command[1])
    assert typed[:4] == ["paraknow", "run", "--like", run.id]
    assert typed[4::2] == ["--set"] * 3
    assert {k: yaml.safe_load(v) for k, _, v in (pair.partition("=") for pair in typed[5::2])} == remedy["changes"]


def test_what_is_damaged_is_said(tmp_path: Path) -> None:
    run = packed.finished(tmp_path)
    run.path("locate", "layers.parquet").write_bytes(b"no table")
    run.path("evaluate", "deltas.json").write_text('{"rows": [{"model": 3}]}')
    said = words(page.compose([source.Source(run)]))
    assert "locate/layers.parquet is damaged and left out" not in said  # nothing would have been drawn from it alone
    assert "evaluate/deltas.json is damaged and left out" in said and "Nothing has been measured" in said


def test_a_queued_run_has_a_report_too(tmp_path: Path) -> None:
    run = store.create(configs.parse(packed.CONFIG), tmp_path)
    assert "Nothing has been measured in this run yet (state: queued)" in words(page.compose([source.Source(run)]))


def test_refusals(tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = packed.finished(runs)
    out = tmp_path / "a.html"

    def refused(*arguments: str) -> str:
        with pytest.raises(SystemExit) as code:
            main(["report", *arguments])
        assert code.value.code == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    assert "no run named 'nope'" in refused("nope", "-o", str(out))
    assert "must end in .html" in refused(run.id, "-o", str(tmp_path / "a.txt"))
    assert "there is no folder" in refused(run.id, "-o", str(tmp_path / "no" / "a.html"))
    assert "named twice" in refused(run.id, run.id, "-o", str(out))
    out.write_text("mine")
    assert "exists already" in refused(run.id, "-o", str(out))
    run.path("config.yaml").write_text("pair: 3\n")
    assert "pair" in refused(run.id, "-o", str(tmp_path / "b.html"))
    assert [p.name for p in tmp_path.glob("*.html")] == ["a.html"] and out.read_text() == "mine"
    with pytest.raises(InputError, match="name a run"):
        page.compose([])


def test_the_command_says_what_it_wrote(tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = packed.finished(runs)
    with pytest.raises(SystemExit) as code:
        main(["report", run.id, "-o", str(tmp_path / "a.html"), "--json"])
    told = json.loads(capsys.readouterr().out)
    file = Path(told["file"])
    assert code.value.code == 0 and told["schema_version"] == 1 and told["bytes"] == file.stat().st_size
    assert file.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_large_matrix_is_drawn_coarser_without_moving() -> None:
    import numpy as np

    from paraknow.figures import heatmaps

    values = np.full((512, 300), 1e-6, np.float32)
    values[400, 200] = 1.0
    figure = heatmaps.matrix_map(values, (1024, 600), "m")
    drawn = json.loads(blocks.plotly(figure))["data"][0]
    shape = [int(n) for n in drawn["z"]["shape"].split(",")]
    assert max(shape) <= 128
    z = np.asarray(figure.data[0].z)
    row, column = np.unravel_index(z.argmax(), z.shape)
    assert abs(drawn["y0"] + row * drawn["dy"] - 801) <= drawn["dy"] / 2
    assert abs(drawn["x0"] + column * drawn["dx"] - 401) <= drawn["dx"] / 2
    held = np.asarray(figure.data[0].customdata)  # what one reads on hovering is a value, not the number of a colour
    assert held.shape == z.shape and held[row, column] == 1.0 and held[0, 0] == np.float32(1e-6)
    assert "customdata" in drawn and "|w · ∇| = %{customdata:.3g}" in drawn["hovertemplate"]


def test_numbers_as_text() -> None:
    assert blocks.interval(-0.001, (-0.25, 0.5), True) == "0.00 [−0.25, +0.50]"
    assert blocks.interval(0.5, (float("nan"), float("nan"))) == "0.50"
    assert [blocks.said(v) for v in (None, float("nan"), -1.5, True, (), {"a": None})] == [
        "–",
        "–",
        "−1.5",
        "yes",
        "none",
        "a: –",
    ]
    assert blocks.table("t", [{"a": 1}, {"b": "x"}]).rows == [["1", "–"], ["–", "x"]]
