"""The package of docs/adding-a-method.md, taken out of the page, installed and run in a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.conftest import SMALL

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "adding-a-method.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    """The page's one block of code in a language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    return found


def install(site: Path, project: str, module: str, code: str) -> Path:
    """What `pip install --target` leaves of a package of one file: the file, and its metadata."""
    about = tomllib.loads(project)["project"]
    info = site / f"{about['name'].replace('-', '_')}-{about['version']}.dist-info"
    info.mkdir(parents=True)
    lines = [f"{k} = {v}" for k, v in about["entry-points"]["paraknow.methods"].items()]
    (info / "entry_points.txt").write_text("\n".join(["[paraknow.methods]", *lines]) + "\n")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n")
    (site / f"{module}.py").write_text(code)
    return site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return install(tmp_path_factory.mktemp("site"), block("toml"), "paraknow_pooled", block("python"))


def paraknow(site: Path, *arguments: str, runs: Path) -> subprocess.CompletedProcess:
    paths = os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "paraknow.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=runs.parent,
        env={**os.environ, "PYTHONPATH": paths, "PARAKNOW_RUNS": str(runs)},
    )


@pytest.fixture
def config_file(tmp_path, checkpoint):
    """The page's run, on a tiny random pair."""
    pair = {"teacher": checkpoint("llama"), "student": checkpoint("llama", seed=1, **SMALL, num_key_value_heads=2)}
    values = yaml.safe_load(block("yaml")) | {
        "pair": {n: str(p) for n, p in pair.items()},
        "baselines": [],
        "controls": ["noise", "shuffled_teacher"],
        "locate": {"seeds": 2, "max_length": 64, "neurons": "none"},
        "similarity": {"parts": []},
        "tune": {"epochs": 1, "max_length": 64},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_the_page_shows_a_whole_package():
    assert len(block("python").splitlines()) <= 40
    about = tomllib.loads(block("toml"))
    assert about["project"]["entry-points"]["paraknow.methods"] == {"pooled": "paraknow_pooled:METHOD"}
    assert about["tool"]["hatch"]["build"]["targets"]["wheel"]["include"] == ["paraknow_pooled.py"]
    assert yaml.safe_load(block("yaml"))["method"]["name"] == "pooled"


def test_an_installed_method_is_in_the_catalogue_and_runs(site, config_file, tmp_path):
    runs = tmp_path / "runs"
    listed = paraknow(site, "methods", "--json", runs=runs)
    assert listed.returncode == 0, listed.stderr
    rows = {m["name"]: m for m in json.loads(listed.stdout)["methods"]}
    assert rows["pooled"]["paradigm"] == "post-align"
    assert rows["pooled"]["needs"] == ["a teacher wider than the student"]
    assert len(rows) > 10, "ours are still there"
    done = paraknow(site, "run", str(config_file), "--until", "align", "--json", runs=runs)
    assert done.returncode == 0, done.stderr
    folder = Path(json.loads(done.stdout)["folder"])
    starts = pd.read_parquet(folder / "align" / "starts.parquet")
    assert set(starts.model) == {"pooled", "pooled+noise", "pooled+shuffled_teacher"}
    assert set(starts["rank"]) == {8} and (starts.norm > 0).all()


def test_its_settings_and_its_refusals_are_explained_like_our_own(site, config_file, tmp_path):
    def refused(*arguments: str) -> str:
        done = paraknow(site, "run", str(config_file), *arguments, runs=tmp_path / "runs")
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    values = yaml.safe_load(config_file.read_text())
    assert "method.unknown key 'ranck'; did you mean 'rank'?" in refused("--set", "method.ranck=2")
    student = values["pair"]["student"]
    assert "averages a wider teacher" in refused("--set", f"pair.teacher={student}")
    assert "did you mean 'pooled'?" in refused("--set", "method.name=pooledd")


def test_it_computes_what_the_page_says(site, tiny_pair, monkeypatch):
    """An entry is the mean of the teacher entries in its place, scaled to the block's norm."""
    import torch

    from paraknow import config
    from paraknow.locate.blocks import Block
    from paraknow.methods.base import Align

    monkeypatch.syspath_prepend(str(site))
    from paraknow_pooled import METHOD

    teacher, student = tiny_pair
    shape = student.architecture.shape("up")
    blocks = [Block("up", 1, 0, "window", shape, 3, 5)]
    align = Align(teacher, student, blocks, config.Locate(), 0, METHOD.settings(rank=16), METHOD)
    ((b, a),) = METHOD.start(align).factors.values()
    full = teacher.weight("up", 1)
    mean = torch.stack([full[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean() for i in range(24) for j in range(16)])
    expected = mean.reshape(24, 16) * full[3:27, 5:21].norm() / mean.norm()
    torch.testing.assert_close(b @ a, expected, atol=1e-5, rtol=1e-4)


BROKEN = {
    "fails when imported": "raise RuntimeError('no such library')\n",
    "holds something else": "METHOD = 'pooled'\n",
    "has another name": block("python").replace('name="pooled"', 'name="other"'),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_package_is_named_in_one_sentence(tmp_path, fault):
    site = install(tmp_path / "site", block("toml"), "paraknow_pooled", BROKEN[fault])
    done = paraknow(site, "methods", "--json", runs=tmp_path / "runs")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.startswith("paraknow: ") and "pooled" in done.stderr


def test_a_package_cannot_take_the_place_of_a_method_of_ours(tmp_path):
    project = block("toml").replace("pooled = ", "seeking = ")
    site = install(tmp_path / "site", project, "paraknow_pooled", block("python").replace('"pooled"', '"seeking"'))
    done = paraknow(site, "methods", "--json", runs=tmp_path / "runs")
    titles = {m["name"]: m["title"] for m in json.loads(done.stdout)["methods"]}
    assert titles["seeking"] == "Seeking Neural Nuggets"
