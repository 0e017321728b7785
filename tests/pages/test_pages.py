"""Pages through AppTest, on a run folder written by hand: no model is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file
from streamlit.runtime.pages_manager import PagesManager
from streamlit.testing.v1 import AppTest

from paraknow import config as configs
from paraknow import files, resources
from paraknow.runs import store
from tests.pages import tables

PAGES = ("overview", "models", "sensitivity", "similarity", "transfer", "benchmarks", "ladder", "diagnose", "runs")
ROOT = Path(__file__).parents[2]
NASTY = "**bold** <b>x</b> :red[y] $z$"


@pytest.fixture(autouse=True)
def warm_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a server that has shown a page: AppTest forgets at every run that st.navigation was called."""
    make = PagesManager.__init__

    def made(self: PagesManager, *arguments: object, **more: object) -> None:
        PagesManager.uses_pages_directory = False
        make(self, *arguments, **more)

    monkeypatch.setattr(PagesManager, "__init__", made)


@pytest.fixture(autouse=True)
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queued runs stay queued: a worker would outlive the test."""
    monkeypatch.setattr("paraknow.runs.queue.ensure_workers", lambda *arguments, **more: None)


def rows() -> list[dict]:
    made = []
    for group in ("shown", "never_shown"):
        for k, model in enumerate(("teacher", "student", "seeking", "zero", "seeking+noise")):
            delta = None if model == "student" else 0.1 * k
            made.append(
                {
                    "model": model,
                    "suite": "demo:people",
                    "group": group,
                    "n": 2,
                    "accuracy": 0.0 if group == "never_shown" else 0.5,
                    "ci": [0.0, 0.6],
                    "delta": delta,
                    "delta_ci": None if delta is None else [delta - 0.3, delta + 0.3],
                    "p_mcnemar": None if delta is None else 0.5,
                    "p_holm": None if delta is None else 1.0,
                    "gained": 1,
                    "lost": 0,
                    "loss": 2.0,
                    "bits": 1.0,
                    "share": None,
                    "share_ci": None,
                    "share_missing": "too small",
                    "against": [{"control": c} for c in ("zero", "seeking+noise")] if model == "seeking" else [],
                    "claim": False if model == "seeking" else None,
                }
            )
    return made


def items() -> pd.DataFrame:
    lines = []
    for model in ("teacher", "student", "seeking", "zero", "seeking+noise"):
        for doc in range(2):
            right = model == "teacher" or (model == "seeking" and doc == 0)
            lines.append(
                {
                    "task": "demo:people",
                    "group": "shown",
                    "doc_id": doc,
                    "doc_hash": str(doc),
                    "model": model,
                    "seed": -1 if model in ("teacher", "student") else 0,
                    "prompt": f"Question {doc} {NASTY}",
                    "target": "a",
                    "answer": "a" if right else "b",
                    "correct": right,
                    "logprob": -1.0,
                    "answer_tokens": 1,
                    "candidates": ["a", "b"],
                    "candidate_logprobs": [-1.0, -2.0],
                }
            )
    return pd.DataFrame(lines)


@pytest.fixture
def run(runs: Path) -> store.Run:
    """A finished run with every artifact that pages read."""
    made = store.create(
        configs.parse(
            {
                "name": NASTY,
                "pair": {"teacher": "demo:teacher", "student": "demo:student"},
                "task": "demo:people",
                "method": {"name": "seeking", "rank": 8},
            }
        ),
        runs,
    )
    made.update(
        state="done", stages=["load", "locate", "similarity", "align", "tune", "evaluate"], started=1.0, finished=3.0
    )
    models = {m: {"title": f"demo:{m}", "layers": 2} for m in ("teacher", "student")}
    files.write_json(made.path("environment.json"), {"models": models})
    table = [
        ("demo:people", model, seed, layer, module, 1.0 + layer, 0.1 * (1 + layer), 0.5, 0.25)
        for model in ("teacher", "student")
        for seed in (-1, 0, 1)
        for layer in (0, 1)
        for module in ("q", "k")
    ]
    columns = "task model seed layer module sum mean max share".split()
    files.write_table(made.path("locate", "sensitivity.parquet"), pd.DataFrame(table, columns=columns))
    layers = pd.DataFrame(
        {
            "task": "demo:people",
            "model": "teacher",
            "layer": [0, 1],
            "by": "sensitivity",
            "score": [1.0, 2.0],
            "chosen": True,
        }
    ).assign(student_layer=pd.array([0, 1], "Int64"))
    files.write_table(made.path("locate", "layers.parquet"), layers)
    blocks = pd.DataFrame(
        {
            "module": ["q"],
            "teacher_layer": 1,
            "student_layer": 1,
            "row": 1,
            "col": 2,
            "rows": 3,
            "cols": 3,
            "share": 0.4,
        }
    )
    files.write_table(made.path("locate", "blocks.parquet"), blocks)
    keys = [f"{m}/{layer}/{module}" for m in ("teacher", "student") for layer in (0, 1) for module in ("q", "k")]
    notes = {k: {"shape": [6, 8], "max": 0.5, "pooling": "max"} for k in keys}
    arrays = {k: np.linspace(0, 1, 48, dtype=np.float16).reshape(6, 8) for k in keys}
    save_file(arrays, made.path("locate", "maps.safetensors"), metadata={"maps": json.dumps(notes)})
    tables.write(made)
    files.write_table(made.path("evaluate", "items.parquet"), items())
    files.write_json(made.path("evaluate", "deltas.json"), {"run": made.id, "rows": rows()})
    made.event(stage="tune", step=1, total=2, message="seeking, seed 0", loss=2.0)
    return made


def show(page: str, **query: str) -> AppTest:
    """A page as its link opens it."""
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
    for key, value in query.items():
        app.query_params[key] = value
    if page != "overview":
        app.switch_page(f"pages/{page}.py")
    app.run()
    assert not app.exception, [e.value for e in app.exception]
    return app


def words(app: AppTest) -> str:
    parts = [*app.markdown, *app.caption, *app.info, *app.warning, *app.error, *app.title, *app.subheader]
    return "\n".join(str(p.value) for p in parts)


@pytest.mark.parametrize("page", PAGES)
def test_every_page_shows_a_finished_run(page: str, run: store.Run) -> None:
    app = show(page)
    assert app.title[0].value
    assert "How to read this" in words(app) or page in ("runs", "ladder")


def test_differences_are_put_in_words(run: store.Run) -> None:
    """Rows of the fixture are as older runs wrote them, without a reading."""
    assert "No difference to the student that 2 items can show" in words(show("benchmarks"))


@pytest.mark.parametrize("page", PAGES)
def test_every_page_says_what_to_do_where_there_is_nothing(
    page: str, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "recorded_runs", lambda: [])
    app = show(page)
    if page not in ("transfer", "ladder"):
        assert "Transfer page" in words(app)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("damage", ["empty", "garbage", "other"])
def test_damaged_artifacts_become_sentences(page: str, damage: str, run: store.Run) -> None:
    number = ["empty", "garbage", "other"].index(damage)
    for path in run.folder.rglob("*"):
        if path.suffix in (".parquet", ".safetensors"):
            path.write_bytes((b"", b"\x00\xffnot this", path.read_bytes()[: path.stat().st_size // 2])[number])
        elif path.name in ("deltas.json", "environment.json", "events.jsonl"):
            name = path.relative_to(run.folder).as_posix()
            path.write_bytes((b"", b"\x00\xffnot this", tables.ODD[name][0].encode())[number])
    show(page)


@pytest.mark.parametrize("page", PAGES)
def test_missing_artifacts_become_sentences(page: str, run: store.Run) -> None:
    for path in [
        *run.folder.rglob("*.parquet"),
        *run.folder.rglob("*.safetensors"),
        run.path("evaluate", "deltas.json"),
    ]:
        path.unlink()
    app = show(page)
    if page in ("sensitivity", "similarity", "benchmarks", "overview"):
        assert "stage writes it" in words(app)


@pytest.mark.parametrize("page", PAGES)
def test_a_run_without_config_or_status_is_shown_somehow(page: str, run: store.Run) -> None:
    number = PAGES.index(page) % 4
    for name in ("config.yaml", "status.json"):
        run.path(name).write_text("" if page == "overview" else tables.ODD[name][number])
    show(page)


def test_a_wrong_link_is_said(run: store.Run) -> None:
    assert "nonsense" in words(show("overview", run="nonsense"))


def test_a_link_chooses_its_run(run: store.Run, runs: Path) -> None:
    store.create(run.config(), runs)
    assert show("overview", run=run.id).session_state["run"] == run.id


def test_names_are_shown_as_text(run: store.Run) -> None:
    shown = words(show("overview"))
    assert "**bold**" not in shown and r"\*\*bold\*\*" in shown and ":red[y]" not in shown


def test_the_claim_is_said_against_controls(run: store.Run) -> None:
    shown = words(show("overview"))
    assert "**not** above the student and every control" in shown and "the best control" in shown


def test_cells_can_be_picked_without_a_mouse(run: store.Run) -> None:
    app = show("sensitivity")
    app.selectbox(key="s.layer").set_value(1).run()
    app.selectbox(key="s.module").set_value("q").run()
    assert "40.0%" in words(app)
    app.selectbox(key="s.module").set_value("k").run()
    assert "No block is taken" in words(app)
    assert not app.exception


def test_where_nothing_is_right_the_loss_is_pointed_at(run: store.Run) -> None:
    values = rows()
    for row in values:
        row["accuracy"] = 0.0
    files.write_json(run.path("evaluate", "deltas.json"), {"run": run.id, "rows": values})
    assert "look at the loss per answer token" in words(show("benchmarks"))


def test_refusals_are_shown_while_typing(run: store.Run) -> None:
    app = show("transfer")
    assert not app.button(key="t.start").disabled
    app.number_input(key="t.method.rank").set_value(4096).run()
    assert "method.rank" in words(app).replace("\\", "") and app.button(key="t.start").disabled
    app.button(key="t.preset.demo").click().run()
    assert not app.button(key="t.start").disabled
    app.text_input(key="t.seeds").set_value("1, x").run()
    assert "seeds" in words(app) and app.button(key="t.start").disabled


def test_hub_models_are_not_fetched_while_typing(run: store.Run, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paraknow.checkpoints._download", lambda spec: pytest.fail("asked a hub"))
    pair = run.config().pair.model_copy(update={"teacher": "someone/model"})
    other = store.create(run.config().model_copy(update={"pair": pair}), runs)
    app = show("transfer", run=other.id)
    app.button(key="t.preset.run").click().run()
    assert "from a hub" in words(app) and not app.exception


def test_the_yaml_shown_is_the_form(run: store.Run) -> None:
    app = show("transfer")
    app.button(key="t.preset.run").click().run()
    text = next(c.value for c in app.code if c.language == "yaml")
    import yaml

    assert configs.parse(yaml.safe_load(text)) == run.config()


def test_start_queues_exactly_one_run(run: store.Run, runs: Path) -> None:
    app = show("transfer")
    app.button(key="t.start").click().run()
    assert not app.exception and not app.error
    (queued,) = [r for r in store.all_runs(runs) if r.status()["state"] == "queued"]
    assert app.session_state["run"] == queued.id and "Queued" in words(app)
    app.button(key="t.cancel").click().run()
    assert queued.status()["state"] == "cancelled" and not app.exception


def test_a_failed_run_shows_its_sentence_and_can_be_resumed(run: store.Run) -> None:
    run.update(state="failed", error="tuning: the loss is NaN at step 3 of 9.")
    app = show("transfer")
    assert "NaN at step 3" in words(app)
    app.button(key="t.resume").click().run()
    assert run.status()["state"] == "queued" and not app.exception


def test_deleting_asks_first(run: store.Run) -> None:
    app = show("runs")
    app.button(key="r.delete").click().run()
    assert run.folder.is_dir()
    assert app.button(key="r.delete.sure").label == "Delete it"  # pressing it is tried in the browser


def test_comparing_shows_only_what_differs(run: store.Run, runs: Path) -> None:
    other = store.create(run.config().model_copy(update={"seed": 7}), runs)
    other.update(state="done")
    files.write_json(other.path("evaluate", "deltas.json"), {"run": other.id, "rows": rows()})
    app = show("runs")
    shown = [d.value for d in app.dataframe]
    differing = next(t for t in shown if "setting" in t.columns)
    assert differing.setting.tolist() == ["seed"]


def test_pages_bring_no_torch_into_the_server() -> None:
    code = (
        "import sys, ast, pathlib, importlib\n"
        "files = [pathlib.Path('app.py'), *pathlib.Path('pages').rglob('*.py')]\n"
        "names = {m for f in files for n in ast.walk(ast.parse(f.read_text())) for m in (\n"
        "  [a.name for a in n.names] if isinstance(n, ast.Import) else\n"
        "  [n.module] + [f'{n.module}.{a.name}' for a in n.names] if isinstance(n, ast.ImportFrom) else [])}\n"
        "figures = pathlib.Path('paraknow/figures').glob('[a-z]*.py')\n"
        "names |= {f'paraknow.figures.{p.stem}' for p in figures}\n"
        "names |= {'paraknow.runs.queue', 'paraknow.checks'}\n"
        "for name in sorted(names):\n"
        "  try: importlib.import_module(name)\n"
        "  except ModuleNotFoundError as e:\n"
        "    if e.name != name: raise\n"
        "from paraknow import methods; methods.catalogue()\n"
        "bad = {'torch', 'transformers', 'peft', 'lm_eval'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_library_never_imports_streamlit() -> None:
    import ast

    for path in (ROOT / "paraknow").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "") or ""]
            )
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert not any(n.split(".")[0] == "streamlit" for n in names), path


def test_files_of_the_dashboard_lie_where_the_app_looks() -> None:
    assert (resources.root() / "app.py").is_file() and (resources.root() / "pages").is_dir()


def test_items_can_be_searched_and_filtered(runs: Path) -> None:
    app = show("benchmarks")
    openable = [e.label for e in app.expander if "gained" in e.label or "lost" in e.label]
    assert openable and all("▲" in e or "▽" in e for e in openable)
    app.text_input(key="b.search").set_value("no such words anywhere").run()
    assert "No item is like that" in words(app) and not app.exception
    app.text_input(key="b.search").set_value("").run()


def test_a_page_changed_by_code_keeps_the_run_of_its_address(runs: Path) -> None:
    """Streamlit drops the picker's value then; talk mode goes from page to page like that."""
    for chosen in [r.id for r in store.recorded_runs()[:2]]:
        app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
        app.query_params["run"] = app.session_state["run_in_address"] = chosen
        assert app.run().session_state["run"] == chosen
