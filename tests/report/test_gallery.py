"""The catalogue of a run's figures: all are drawn, by names that can be typed; two runs' difference."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paraknow.cli import main
from paraknow.errors import InputError
from paraknow.figures import differences
from paraknow.report import gallery, sides
from paraknow.report.picture import Picture, apart, slug
from paraknow.report.source import Source
from paraknow.runs import compare, store
from tests.pages import hostile
from tests.pages.test_pages import run  # noqa: F401 (fixture)
from tests.runs import packed


def markup(text: str) -> bool:
    return bool(re.search(r"<img|<a |<script|%\{evil|\$x", text))


def test_every_figure_is_drawn_whatever_is_written_in_the_run(run: store.Run, runs: Path) -> None:  # noqa: F811
    source = Source(hostile.whole(runs))
    found = gallery.pictures(source)
    names = [picture.name for picture in found]
    assert len(set(names)) == len(names) and all(re.fullmatch(r"[a-z0-9_+.-]+", name) for name in names)
    kinds = {name.split(".")[0] for name in names}
    assert kinds >= {"delta", "sensitivity", "matrix", "layers", "halves", "neurons", "cka", "stitching", "losses"}
    assert kinds >= {"cka-difference", "cka-modules", "weights", "spectra", "steps", "stitching-pairs"}
    assert kinds >= {"cka-multiples", "nearest"}
    assert not source.notes
    for picture in found:
        assert picture.alt and picture.read and picture.title
        figure = picture.draw()
        if hasattr(figure, "to_plotly_json"):  # Altair's text is text: it is drawn letter by letter
            assert not markup(figure.to_json()), picture.name


def test_two_tasks_are_held_against_each_other_in_one_range(run: store.Run) -> None:  # noqa: F811
    path = run.path("locate", "sensitivity.parquet")
    table = pd.read_parquet(path)
    other = table.assign(task="b:c", share=table.share.where(table.model == "teacher", table.share + 0.25))
    pd.concat([table.assign(task="a:b"), other]).to_parquet(path)
    found = {p.name: p for p in gallery.pictures(Source(run)) if p.name.startswith("tasks-difference.")}
    assert list(found) == ["tasks-difference.teacher.a-b.b-c", "tasks-difference.student.a-b.b-c"]
    for picture in found.values():
        scale = picture.draw().to_dict()["layer"][0]["encoding"]["color"]["scale"]
        assert scale["domain"] == [-0.25, 0, 0.25] and "a:b" in picture.alt


def test_a_name_that_is_not_there_is_answered_with_near_ones(tmp_path: Path) -> None:
    source = Source(packed.finished(tmp_path))
    assert gallery.find(source, "losses").section == "How the models were made"
    with pytest.raises(InputError, match=r"no figure 'loses'; it has \d+, such as losses.*--list"):
        gallery.find(source, "loses")


def test_the_command_lists_and_refuses(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = packed.finished(runs)
    for arguments, code, said in (
        (["--list", "--json"], 0, None),
        (["losses"], 2, "say where to: -o FILE.png"),
        (["losses", "-o", str(tmp_path / "a.gif")], 2, "must end in .png, .svg, .pdf"),
        (["losses", "-o", str(tmp_path / "no" / "a.svg")], 2, "there is no folder"),
        (["nothing", "-o", str(tmp_path / "a.svg")], 2, "no figure 'nothing'"),
        (["-o", str(tmp_path / "a.svg")], 2, "name a figure to draw"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["figure", made.id, *arguments])
        told = capsys.readouterr()
        assert ended.value.code == code
        if said is None:
            assert "losses" in [row["figure"] for row in json.loads(told.out)["figures"]]
        else:
            assert said in told.err and len(told.err.strip().splitlines()) == 1
    assert not list(tmp_path.glob("*.svg"))


def test_a_chart_is_written_without_a_browser(runs: Path, run: store.Run, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(SystemExit) as ended:
        main(["figure", run.id, "cka.residual", "-o", str(tmp_path / "a.svg"), "--talk"])
    text = (tmp_path / "a.svg").read_text()
    sizes = [float(s) for s in re.findall(r'font-size="([\d.]+)px"', text)]
    assert ended.value.code == 0 and text.startswith("<svg") and sizes and min(sizes) >= 18


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(), min_size=1, max_size=4))
def test_names_can_be_typed(parts: list[str]) -> None:
    assert re.fullmatch(r"[a-z0-9_+.-]+", slug(*parts))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "a-2"]), max_size=6))
def test_no_two_figures_have_one_name(names: list[str]) -> None:
    found = [p.name for p in apart(Picture(n, "", "", lambda: None, "", "") for n in names)]
    assert len(set(found)) == len(names)


# -- two runs ---------------------------------------------------------------------------------------

CELLS = st.dictionaries(
    st.tuples(st.integers(0, 3), st.sampled_from("qk")), st.floats(-1e6, 1e6, allow_subnormal=False), max_size=8
)


def cells(values: dict) -> pd.DataFrame:
    return pd.DataFrame([(*k, v) for k, v in values.items()], columns=["layer", "module", "share"]).astype(
        {"share": float}
    )


@settings(max_examples=25, deadline=None)
@given(CELLS, CELLS)
def test_a_difference_is_the_second_minus_the_first_where_both_are(first: dict, second: dict) -> None:
    found = differences.minus(cells(first), cells(second), ["layer", "module"], "share")
    got = {(r.layer, r.module): r.difference for r in found.itertuples()}
    assert set(got) == set(first) | set(second)
    for key, value in got.items():
        both = key in first and key in second
        assert (value == second[key] - first[key]) if both else np.isnan(value)
    back = differences.minus(cells(second), cells(first), ["layer", "module"], "share")
    assert {(r.layer, r.module): -r.difference for r in back.itertuples() if r.difference == r.difference} == {
        k: v for k, v in got.items() if v == v
    }


def test_two_runs_side_by_side_share_their_range(run: store.Run, runs: Path) -> None:  # noqa: F811
    import shutil

    other = store.Run(runs / f"{run.id}-b")
    shutil.copytree(run.folder, other.folder)
    table = pd.read_parquet(other.path("locate", "sensitivity.parquet"))
    table.loc[(table.model == "teacher") & (table.layer == 1) & (table.module == "q"), "share"] = 0.75
    table.to_parquet(other.path("locate", "sensitivity.parquet"))
    pair = Source(run), Source(other)
    found = {s.name: s for s in sides.sides(*pair, compare.across(run, other))}
    assert {"sensitivity.teacher", "sensitivity.student", "cka.residual", "stitching"} <= set(found)
    assert {"delta.demo-people.shown", "delta.demo-people.never_shown"} <= set(found)
    chosen = found["sensitivity.teacher"]
    ranges = [p.draw().to_dict()["encoding"]["color"]["scale"]["domain"] for p in (chosen.first, chosen.second)]
    assert ranges[0] == ranges[1]
    assert "largest difference +0.5 in layer 1, q" in chosen.difference.alt
    difference = chosen.difference.draw().to_dict()["layer"][0]["encoding"]["color"]
    assert json.dumps(difference).count("[-0.5, 0, 0.5]") == 1
    panel = found["delta.demo-people.shown"]
    spans = [tuple(p.draw().layout.xaxis.range) for p in (panel.first, panel.second)]
    assert spans[0] == spans[1] and all(trace.x == (0.0,) for trace in panel.difference.draw().data)
    for side in found.values():
        for picture in (side.first, side.second, side.difference):
            if picture is not None:
                picture.draw()
