"""Similarity against knowledge over run folders written by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from paraknow import files, resources
from paraknow.errors import InputError
from paraknow.runs import calibrate, landscape, store
from paraknow.runs.store import Run
from tests.pages import tables
from tests.runs.packed import finished


def row(model: str, share: float | None, against: list[dict] | None = None, **more: object) -> dict:
    made = {"model": model, "suite": "demo:people", "group": "never_shown", "n": 90, "seeds": 1, "accuracy": 0.5}
    made |= {"ci": [0.4, 0.6], "delta": 0.1, "delta_ci": [0.0, 0.2], "share": share, "claim": None}
    ends = None if share is None else [share - 0.1, share + 0.1]
    return {**made, "share_ci": ends, "against": against or [], **more}


def measured(root: Path, share: float | None, **changes: object) -> Run:
    """A finished run whose method moved `share`, with CKA, stitching and weights."""
    run = finished(root, **changes)
    held = [
        {"control": c, "delta": d, "delta_ci": [d - 0.1, d + 0.1]} for c, d in (("zero", 0.3), ("seeking+noise", 0.2))
    ]
    rows = [row("teacher", 1.0), row("student", None), row("seeking", share, held), row("zero", 0.0)]
    rows += [row("gaussian", 0.1), row("seeking+noise", 0.05), {**row("seeking", 0.9), "group": "shown"}]
    files.write_json(run.path("evaluate", "deltas.json"), {"run": run.id, "rows": rows})
    for name in ("cka", "stitching", "weights"):
        files.write_table(run.path("similarity", f"{name}.parquet"), getattr(tables, name)())
    return run


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Nothing came with the package."""
    monkeypatch.setattr(resources, "assets", lambda: tmp_path / "assets")
    return tmp_path / "assets"


def test_a_run_gives_a_line_for_each_of_its_models(runs: Path, alone: Path) -> None:
    run = measured(runs, 0.4)
    store.create(run.config(), runs)  # not finished
    frame = landscape.table()
    assert frame[["run", "model", "kind", "pair", "lineage"]].values.tolist() == [
        [run.id, "seeking", "examined", "demo:teacher → demo:student", "stranger"]
    ]
    own = frame.iloc[0]
    assert (own.share, own.share_lo, own.share_hi) == pytest.approx((0.4, 0.3, 0.5))
    assert (own.gain, own.gain_lo, own.gain_over) == (pytest.approx(0.2), pytest.approx(0.1), "seeking+noise")
    # paired layers are 0–0 and 1–1: CKA 0.9 there, its null 0.1; R² 0.8; the block's cosine 0.01
    assert own[["cka", "cka_above_null", "cka_up", "r2", "cos"]].tolist() == pytest.approx([0.9, 0.8, 0.9, 0.8, 0.01])
    assert pd.isna(own.kinship)
    kinds = landscape.table(landscape.KINDS)
    assert dict(zip(kinds.model, kinds.kind, strict=True)) == {
        "seeking": "examined",
        "zero": "control",
        "gaussian": "baseline",
        "seeking+noise": "control",
    }


def test_the_known_answer_is_no_baseline(runs: Path) -> None:
    config = finished(runs).config()
    kinds = {m: landscape._kind(m, config) for m in ("oracle", "zero", "seeking+noise", "pissa", config.method.title)}
    assert list(kinds.values()) == ["known answer", "control", "control", "baseline", "examined"]


def test_what_has_changed_is_read_again(runs: Path, alone: Path) -> None:
    run = measured(runs, 0.4)
    assert landscape.table().share.tolist() == [0.4]
    path = run.path("evaluate", "deltas.json")
    files.write_text(path, path.read_text().replace("0.4,", "0.3,"))
    os.utime(path, ns=(1, 1))
    assert landscape.table().share.tolist() == [0.3]


@pytest.mark.parametrize("damage", [b"", b"\x00\xffnot this", None])
def test_damage_costs_only_what_it_hits(damage: bytes | None, runs: Path, alone: Path) -> None:
    run = measured(runs, 0.4)
    for name in ("cka", "stitching", "weights"):
        path = run.path("similarity", f"{name}.parquet")
        path.write_bytes(path.read_bytes()[:100] if damage is None else damage)
    (line,) = landscape.table().itertuples()
    assert line.share == 0.4 and pd.isna(line.cka) and pd.isna(line.cos)
    files.write_table(run.path("similarity", "cka.parquet"), pd.DataFrame({"task": [1], "module": 3}))
    run.path("environment.json").write_bytes(damage or b"[")
    assert len(landscape.table()) == 1
    for text in tables.ODD["evaluate/deltas.json"]:
        run.path("evaluate", "deltas.json").write_text(text)
        assert landscape.table().empty
    assert landscape.correlations(landscape.table(), "cka", "share")["runs here"].pairs == 0


def test_runs_of_one_pair_count_once(runs: Path, alone: Path) -> None:
    shares = {"teacher": 0.1, "sibling": 0.9, "equal": 0.2, "clone-teacher": 0.5}
    for share in (0.0, 0.2):
        for name, value in shares.items():
            measured(runs, value + share, pair={"teacher": "demo:teacher", "student": f"demo:{name}"})
    frame = landscape.table()
    frame["cka"] = frame.share * 2  # the hand-made tables are all alike
    found = landscape.correlation(frame, "cka", "share")
    assert (found.pairs, found.points, found.rho) == (4, 8, 1.0)
    assert landscape.correlation(frame[frame.pair.str.contains("equal")], "cka", "share").missing
    with pytest.raises(InputError, match="choose one of cka"):
        landscape.correlation(frame, "cks", "share")
    with pytest.raises(InputError, match="choose one of share"):
        landscape.correlation(frame, "cka", "cka")
    with pytest.raises(InputError, match="choose one of examined"):
        landscape.table(["all"])


def test_other_models_are_one_pair_by_their_hashes(runs: Path, alone: Path) -> None:
    for folder in ("/a/one", "/b/one"):
        measured(runs, 0.4, pair={"teacher": f"{folder}/large", "student": "demo:student"})
    frame = landscape.table()
    assert frame.pair_key.nunique() == 1 and set(frame.pair) == {"large → demo:student"}
    assert frame.lineage.isna().all()


def test_calibrations_stand_beside_the_runs(runs: Path, alone: Path) -> None:
    run = measured(runs, 0.4)
    found = tables.calibration()
    for r in found["rows"]:
        r |= {"delta": None if r["model"] == "student" else 0.2, "delta_ci": None}
    files.write_json(alone / calibrate.FILE, found)
    files.write_json(alone / calibrate.STUDY, json.loads(json.dumps(found).replace('"run": "r"', f'"run": "{run.id}"')))
    frame = landscape.table()
    assert set(frame.source) == {"run", "ladder"}  # the study's rows are of a run that is here
    ladder = frame[frame.source == "ladder"]
    assert set(ladder.model) == {"transport", "seeking"}  # those with controls
    assert ladder[ladder.lineage == "stranger"].pair_key.unique().tolist() == ["demo:teacher → demo:student"]
    assert ladder.gain.tolist() == pytest.approx([0.0] * len(ladder)) and ladder.gain_lo.isna().all()
    assert set(landscape.correlations(frame, "cka", "share")) == {"runs here", "all pairs"}
    assert set(landscape.table(shipped=False).source) == {"run"}
    (alone / calibrate.FILE).write_text('{"rows": [3]}')
    assert set(landscape.table().source) == {"run"}


def test_the_shipped_pairs_can_be_read(runs: Path) -> None:
    frame = landscape.table()
    assert frame.source.value_counts().to_dict() == {"study": 45, "ladder": 12, "run": 1}
    found = landscape.correlation(frame[frame.model == "transport-kin"], "kinship", "share")
    assert found.pairs == 49 and found.lo > 0.5


def test_the_command_line_prints_it(runs: Path, alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from paraknow import cli

    run = measured(runs, 0.4)

    def called(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["runs", "landscape", *arguments])
        return (ended.value.code, *capsys.readouterr())

    code, out, _ = called("--json", "--kind", "control")
    printed = json.loads(out)
    assert code == 0 and [r["run"] for r in printed["rows"]] == [run.id] * 3
    assert printed["correlations"]["runs here"]["missing"].startswith("too few")
    code, out, _ = called("--method", "seeking")
    assert code == 0 and run.id in out and "Similarity is not transfer" in out
    code, _, said = called("--method", "nope")
    assert code == 2 and "there are seeking" in said
