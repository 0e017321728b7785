"""Rules of the house that a machine can hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TORCH_FREE = (
    "paraknow.cli paraknow.config paraknow.architecture paraknow.checkpoints paraknow.checks paraknow.data "
    "paraknow.files paraknow.yamls paraknow.access paraknow.limits paraknow.serving "
    "paraknow.memory paraknow.fitting paraknow.runs.failures "
    "paraknow.methods paraknow.runs.store paraknow.runs.queue paraknow.runs.compare paraknow.runs.worker "
    "paraknow.runs.artifacts paraknow.runs.bundle paraknow.runs.zips paraknow.runs.private paraknow.runs.upgrades "
    "paraknow.facts paraknow.cli_audit paraknow.cli_cross paraknow.runs.cross "
    "paraknow.recipes paraknow.passes paraknow.dryrun paraknow.cli_sweep paraknow.cli_calibrate paraknow.demo.rungs "
    "paraknow.devices paraknow.runs.index paraknow.runs.processes paraknow.runs.supervisor "
    "paraknow.runs.cluster paraknow.runs.order paraknow.runs.threads "
    "paraknow.runs.sweep paraknow.runs.sweepfile paraknow.runs.reuse paraknow.runs.calibrate "
    "paraknow.pairing paraknow.described paraknow.cli_models paraknow.runs.timing "
    "paraknow.runs.diagnosis paraknow.diagnose "
    "paraknow.runs.events paraknow.runs.asks paraknow.runs.questions paraknow.runs.pairs paraknow.cli_ask "
    "paraknow.runs.landscape paraknow.evaluate.correlation paraknow.glossary "
    "paraknow.cli_report paraknow.report.page paraknow.report.sides paraknow.figures.images "
    "paraknow.evaluate.sandbox "
    "paraknow.evaluate.deltas paraknow.demo.story paraknow.demo.world paraknow.doctor paraknow.screen paraknow.figures"
    " paraknow.figures.enlarged"
).split()


def sources() -> list[Path]:
    return [p for folder in ("paraknow", "pages", "tests", "benchmarks") for p in (ROOT / folder).rglob("*.py")]


def test_files_stay_short():
    long = {str(p.relative_to(ROOT)): n for p in sources() if (n := len(p.read_text().splitlines())) > 400}
    assert not long


IMPORTS = """
import importlib, json, os, sys
import pandas, plotly.graph_objects, pyarrow.parquet, pydantic, rich.table, scipy.stats, typer, yaml  # all may
for name in sys.argv[1:]:
    if not os.fork():
        importlib.import_module(name)
        from paraknow import methods; methods.catalogue()
        heavy = {'torch', 'transformers', 'streamlit', 'lm_eval', 'peft'} & set(sys.modules)
        print(json.dumps([name, sorted(heavy)]), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def brought() -> dict[str, list[str]]:
    """By module: the heavy packages its import brings, each in a fork that has imported nothing of ours before."""
    done = subprocess.run([sys.executable, "-c", IMPORTS, *TORCH_FREE], capture_output=True, text=True, check=True)
    print(done.stderr)
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize("module", TORCH_FREE)
def test_imports_without_torch(module, brought):
    assert brought.get(module) == []


def test_the_library_does_not_know_streamlit():
    for path in (ROOT / "paraknow").rglob("*.py"):
        assert "import streamlit" not in path.read_text(), path.name


def test_every_method_file_has_one_method():
    import importlib
    import pkgutil

    from paraknow import methods

    names = [m.name for m in pkgutil.iter_modules(methods.__path__) if m.name != "base" and m.name[0] != "_"]
    assert all(importlib.import_module(f"paraknow.methods.{n}").METHOD.name == n for n in names)


def test_the_wheel_runs_outside_the_clone(tmp_path):
    """assets, pages and app.py travel as package data."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    wheel = next(wheels.glob("*.whl"))
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True, capture_output=True)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import paraknow; from paraknow import resources, checkpoints\n"
        f"assert paraknow.__file__.startswith({str(site)!r})\n"
        "assert (resources.root() / 'app.py').is_file() and list((resources.root() / 'pages').glob('*.py'))\n"
        "assert (resources.root() / '.streamlit' / 'config.toml').is_file()\n"
        "print(checkpoints.find('demo:teacher').parameters)\n"
        "from paraknow import recipes; assert len(recipes.catalogue()) > 30\n"
        "from paraknow import checks\n"
        "from paraknow.demo.story import demo_config\n"
        "print(len(checks.check(demo_config()).candidates))\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "6"
