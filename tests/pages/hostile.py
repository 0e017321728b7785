"""A run in which everything that users or models make is hostile: HTML, Markdown, formulas, shortcodes, terminal codes.

What the library writes by itself (kinds of modules, stages, groups) stays: pages find their way by it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from paraknow import config as configs
from paraknow import files
from paraknow.runs import calibrate, cross, store
from paraknow.runs.store import Run
from tests.pages import tables

OUTSIDE = "evil.invalid"
HTML = f'<img src=x onerror="alert(1)"> <b>bold</b> <a href="https://{OUTSIDE}/a">a</a> <script>alert(2)</script>'
MARKDOWN = f"[x](javascript:alert(3)) ![i](http://{OUTSIDE}/i.png) https://{OUTSIDE}/u www.{OUTSIDE} `c` **b** # h"
SIGNS = "$$x$$ :material/home: :smile: :red[r] :streamlit: %{evil} \x1b[31mred\x1b]8;;http://a\x07 \u202eback"
TEXT = f"{HTML} {MARKDOWN} {SIGNS}"
SHORT = "<b>T</b> ![i](//evil.invalid/i) :material/home: $x$ <img src=x>"  # names are cut, so the worst comes first
RAW = ("<img", "<b>", "<a ", "<script", "](javascript", "![i](", "$x", ":material/home", ":red[", ":streamlit:", "`c`")
TASKS = {name: f"{SHORT} {name}" for name in tables.TASKS}
FREE = ("prompt", "target", "answer", "raw", "note")


def in_table(frame: pd.DataFrame) -> pd.DataFrame:
    """A table with hostile tasks, texts, tokens and candidates."""
    for column in frame.columns:
        if column in ("task", "other"):
            frame[column] = frame[column].map(lambda v: TASKS.get(v, v))
        elif column in FREE:
            frame[column] = [f"{TEXT} {k % 2}" for k in range(len(frame))]
        elif column in ("candidates", "tokens"):
            frame[column] = [[TEXT] * len(v) for v in frame[column]]
        elif column == "more":
            frame[column] = [[TEXT] for _ in frame[column]]
    return frame


def in_json(value: Any) -> Any:
    """A result with hostile names of models, tasks, worlds and sentences."""
    if isinstance(value, dict):
        made = {k: in_json(v) for k, v in value.items()}
        if isinstance(made.get("words"), list):
            made["words"] = [f"{SHORT}: {TEXT}" for _ in made["words"]]
        for key in ("command", "title", "error", "missing", "world", "teacher", "student", "name", "reading"):
            if isinstance(made.get(key), str):
                made[key] = f"{made[key]} {TEXT}"
        return made
    if isinstance(value, list):
        return [in_json(v) for v in value]
    return TASKS.get(value, value) if isinstance(value, str) else value


def make(run: Run) -> None:
    """Turn a run of the pages' tests into a hostile one, and put hostile results beside it."""
    values = run.config().model_dump(mode="json")
    pair = {"teacher": f"{SHORT} t", "student": f"{SHORT} s"}
    config = configs.parse({**values, "name": TEXT[:200], "pair": pair, "task": [f"{TEXT} {t}" for t in tables.TASKS]})
    files.write_text(run.path("config.yaml"), configs.dump(config))
    for file in run.folder.rglob("*.parquet"):
        frame = in_table(pd.read_parquet(file))
        if file.name == "items.parquet":
            frame = frame.assign(note=TEXT, raw=TEXT, score=0.5)
        files.write_table(file, frame)
    models = {m: {"title": f"{SHORT} {m}", "layers": 2} for m in ("teacher", "student")}
    files.write_json(run.path("environment.json"), {"models": models})
    rows = json.loads(run.path("evaluate", "deltas.json").read_text())["rows"]
    rows += [{**r, "model": f"{SHORT} model", "against": [], "claim": None} for r in rows if r["model"] == "zero"]
    rows = [{**r, "suite": TASKS.get(r["suite"], r["suite"]), "reading": TEXT, "share_missing": TEXT} for r in rows]
    files.write_json(run.path("evaluate", "deltas.json"), {"run": run.id, "rows": rows})
    run.event(stage="tune", step=2, total=2, message=f"{SHORT}, seed 0", loss=1.0, label=TEXT)
    run.event(warning=TEXT)
    run.update(state="failed", error=TEXT, message=TEXT, stage=TEXT)


def beside(root: Path) -> None:
    """A hostile calibration and cross matrix in the runs folder."""
    files.write_json(root / calibrate.FILE, in_json(tables.calibration()))
    files.write_json(root / cross.FILE, in_json(tables.crossed()))


def whole(root: Path) -> Run:
    """The only run of a folder, made hostile."""
    (run,) = (r for r in store.all_runs(root) if not r.recorded)
    make(run)
    beside(root)
    return run
