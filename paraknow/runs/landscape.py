"""Similarity against transferred knowledge, over all finished runs (no torch).

One row per run and model, with how alike the pair is and how much of the teacher's knowledge arrived. The pairs of the
calibrations that come with the package stand beside the runs, marked by their `source`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from paraknow import files, resources
from paraknow.config import RunConfig
from paraknow.demo.rungs import RUNGS, rung_of
from paraknow.errors import InputError
from paraknow.evaluate.correlation import Correlation, over_pairs
from paraknow.runs import artifacts, calibrate, store
from paraknow.runs.store import Run

SIMILARITY = {  # what may stand on the x axis
    "cka": "CKA of the residual streams",
    "cka_above_null": "CKA of the residual streams − its null (rows permuted, positions kept)",
    "r2": "stitching R² of the residual streams",
    "kinship": "kinship of paired layers (weights alone)",
    "fit_turned": "variance of the student's streams that the teacher's, turned, explain",
    "cos": "cosine of the moved block with the student's weights",
    **{f"cka_{m}": f"CKA of {m} outputs" for m in "attention ffn q k v o gate up down".split()},
}
KNOWLEDGE = {  # and on the y axis
    "share": "share of never-shown knowledge that arrived",
    "gain": "gain over the best control, never-shown facts",
    "delta": "difference to the student, never-shown facts",
}
KINDS = ("examined", "baseline", "control", "known answer")
SOURCES = {
    "run": "runs here",
    "study": "study of nine kinds of pairs (came with the package)",
    "ladder": "calibration on the demo's own pairs (came with the package)",
}
COLUMNS = (
    "source run pair pair_key lineage model kind suite n seeds share share_lo share_hi share_missing "
    "gain gain_lo gain_hi gain_over delta delta_lo delta_hi claim"
).split()
_READ = (  # a run's rows hold as long as these are as they were
    "config.yaml status.json environment.json evaluate/deltas.json similarity/cka.parquet similarity/stitching.parquet "
    "similarity/weights.parquet locate/layers.parquet"
).split()


def table(kinds: Sequence[str] = ("examined",), shipped: bool = True) -> pd.DataFrame:
    """One row per finished run, model and suite that has never-shown facts; the shipped calibrations' rows after them.

    Columns: COLUMNS and those of SIMILARITY; what was not measured is missing. `pair_key` is one for all runs of the
    same two models. kinds: of KINDS. Damaged or unfinished runs, and runs without never-shown facts, have no row.
    Raises InputError for a kind that is none.
    """
    if wrong := [k for k in kinds if k not in KINDS]:
        raise InputError(f"kind {wrong[0]!r}: choose one of {', '.join(KINDS)}.")
    done = [Run(store.runs_folder() / line["id"]) for line in store.listing() if line["state"] == "done"]
    rungs = _rungs_of_runs()
    rows = [
        row | {"lineage": row["lineage"] or rungs.get(run.id)}
        for run in [*done, *store.recorded_runs()]
        for row in _rows(str(run.folder), _signature(run.folder))
    ]
    if shipped:
        here = {row["run"] for row in rows}
        for source, name in (("study", calibrate.STUDY), ("ladder", calibrate.FILE)):
            rows += [row for row in _calibrated(resources.assets() / name, source) if row["run"] not in here]
    frame = pd.DataFrame([r for r in rows if r["kind"] in kinds], columns=[*COLUMNS, *SIMILARITY])
    numbers = [*SIMILARITY, *KNOWLEDGE, *(f"{name}_{end}" for name in KNOWLEDGE for end in ("lo", "hi")), "n", "seeds"]
    frame[numbers] = frame[numbers].apply(pd.to_numeric, errors="coerce")
    return frame


def correlation(frame: pd.DataFrame, x: str, y: str, seed: int = 0) -> Correlation:
    """Rank correlation of two columns over pairs of models: a pair counts once, however many rows it has.

    The known answer is not counted: it is moved by construction. Raises InputError for a column that is none.
    """
    for axis, name, known in (("x", x, SIMILARITY), ("y", y, KNOWLEDGE)):
        if name not in known:
            raise InputError(f"{axis} {name!r}: choose one of {', '.join(known)}.")
    own = frame[frame.kind != "known answer"]
    return over_pairs(own[x].tolist(), own[y].tolist(), own.pair_key.tolist(), seed)


def correlations(frame: pd.DataFrame, x: str, y: str) -> dict[str, Correlation]:
    """The correlation over the runs here alone, and over all pairs where some of the rows came with the package."""
    found = {"runs here": correlation(frame[frame.source == "run"], x, y)}
    return found if (frame.source == "run").all() else {**found, "all pairs": correlation(frame, x, y)}


# -- one run ----------------------------------------------------------------------------------------


def _signature(folder: Path) -> tuple[tuple[int, int] | None, ...]:
    made: list[tuple[int, int] | None] = []
    for name in _READ:
        try:
            stat = os.stat(folder / name)
            made.append((stat.st_size, stat.st_mtime_ns))
        except OSError:
            made.append(None)
    return tuple(made)


@lru_cache(maxsize=4096)
def _rows(folder: str, signature: tuple[tuple[int, int] | None, ...]) -> list[dict[str, Any]]:
    """Rows of a run's never-shown groups. `signature` is that of its files. None where it cannot be read."""
    run = Run(Path(folder))
    try:
        config = run.config()
        deltas = artifacts.json_file(run.folder, "evaluate/deltas.json")["rows"]
        found = [row for row in deltas if row["group"] == "never_shown" and row["model"] not in ("teacher", "student")]
    except InputError:
        return []
    alike = _alike(run, config) if found else {}
    return [_row(run, config, row) | alike for row in found]


def _row(run: Run, config: RunConfig, row: dict[str, Any]) -> dict[str, Any]:
    teacher, student = config.pair.teacher, config.pair.student
    made: dict[str, Any] = {
        "source": "run",
        "run": run.id,
        "pair": f"{_short(teacher)} → {_short(student)}",
        "pair_key": _key(run, config),
        "lineage": rung_of(teacher, student),
        "model": row["model"],
        "kind": _kind(row["model"], config),
        "suite": row["suite"],
        **{k: row.get(k) for k in ("n", "seeds", "share", "share_missing", "delta", "claim")},
    }
    for name in ("share", "delta"):
        made |= _ends(name, row.get(f"{name}_ci"))
    held = [a for a in row.get("against") or [] if a.get("delta") is not None]
    if held:
        best = min(held, key=lambda a: a["delta"])  # what the method gains least over
        made |= {"gain": best["delta"], "gain_over": best["control"], **_ends("gain", best.get("delta_ci"))}
    return made


def _ends(name: str, interval: Sequence[float] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {f"{name}_lo": low, f"{name}_hi": high}


def _kind(model: str, config: RunConfig) -> str:
    if "+" in model or model == "zero":
        return "control"
    if model == "oracle" or (model == config.method.title and config.method.name == "oracle"):
        return "known answer"
    return "examined" if model == config.method.title else "baseline"


def _short(spec: str) -> str:
    """A model by the last part of its name or path."""
    return spec.rstrip("/\\").replace("\\", "/").rpartition("/")[2] or spec


def _key(run: Run, config: RunConfig) -> str:
    """One for all runs of a pair, wherever its folders lie: the demo models by name, others by their hashes."""
    try:
        models = artifacts.json_file(run.folder, "environment.json").get("models", {})
    except InputError:
        models = {}
    parts = []
    for name in ("teacher", "student"):
        spec = getattr(config.pair, name)
        parts.append(spec if spec.startswith("demo:") else models.get(name, {}).get("sha256") or spec)
    return " → ".join(parts)


def _alike(run: Run, config: RunConfig) -> dict[str, float]:
    """Measures of SIMILARITY that the run's tables hold; a damaged table gives none."""
    made: dict[str, float] = {}
    for read in (lambda: calibrate.likeness(run, config), lambda: _outputs(run), lambda: _cosine(run)):
        try:
            made |= {name: value for name, value in read().items() if math.isfinite(value)}
        except (InputError, AttributeError, TypeError, ValueError):  # a table whose columns are of other kinds
            continue
    return made


def _paired(run: Run) -> pd.DataFrame:
    """teacher_layer and student_layer of paired layers: those that predict each other best, else those located."""
    if run.path("similarity", "stitching.parquet").is_file():
        found = artifacts.table(
            run.folder, "similarity/stitching.parquet", ["teacher_layer", "student_layer", "paired"]
        )
        return found[found.paired]
    found = artifacts.table(run.folder, "locate/layers.parquet", ["layer", "student_layer", "chosen", "model"])
    found = found[found.chosen & (found.model == "teacher")].rename(columns={"layer": "teacher_layer"})
    return found.drop_duplicates(["teacher_layer", "student_layer"])


def _outputs(run: Run) -> dict[str, float]:
    """Mean CKA over paired layers for every module; of the residual streams also above the null."""
    if not run.path("similarity", "cka.parquet").is_file():
        return {}
    columns = ["task", "module", "teacher_layer", "student_layer", "cka", "null_position"]
    cka = artifacts.table(run.folder, "similarity/cka.parquet", columns)
    layers = ["teacher_layer", "student_layer"]
    own = cka[cka.task == cka.task.iloc[0]] if len(cka) else cka
    own = own.merge(_paired(run)[layers].astype("int64"), on=layers)
    own = own.assign(above=own.cka - own.null_position)
    made = {f"cka_{module}": float(part.cka.mean()) for module, part in own.groupby("module") if module != "residual"}
    streams = own[own.module == "residual"]
    made |= {"cka": float(streams.cka.mean()), "cka_above_null": float(streams.above.mean())}
    return {name: value for name, value in made.items() if name in SIMILARITY}


def _cosine(run: Run) -> dict[str, float]:
    """Mean cosine of the blocks that are moved with the student's own weights."""
    if not run.path("similarity", "weights.parquet").is_file():
        return {}
    weights = artifacts.table(run.folder, "similarity/weights.parquet", ["source", "cos"])
    return {"cos": float(weights[weights.source == "block"].cos.mean())}


# -- calibrations -----------------------------------------------------------------------------------


def _worlds(path: Path) -> list[dict[str, Any]]:
    """The rows of a calibration's file; none where there is no file or it cannot be read."""
    needed = {"world", "rung", "model", "run", "share", "share_ci", "delta", "delta_ci", "n", "claim"}
    try:
        rows = files.read_json(path)["rows"]
    except (OSError, ValueError, KeyError):
        return []
    sound = isinstance(rows, list) and all(isinstance(r, dict) and needed <= set(r) for r in rows)
    return rows if sound else []


def _rungs_of_runs() -> dict[str, str]:
    """Which rung of the ladder a run was made for, as the runs folder's own calibration says."""
    return {str(row["run"]): str(row["rung"]) for row in _worlds(store.runs_folder() / calibrate.FILE)}


def _calibrated(path: Path, source: str) -> list[dict[str, Any]]:
    try:
        stat = path.stat()
    except OSError:
        return []
    return _shipped(str(path), (stat.st_size, stat.st_mtime_ns), source)


@lru_cache(maxsize=8)
def _shipped(path: str, signature: tuple[int, int], source: str) -> list[dict[str, Any]]:
    rows = _worlds(Path(path))
    models: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        models.setdefault((str(row["world"]), str(row["rung"])), {})[str(row["model"])] = row
    return [
        _of_calibration(source, world, rung, name, beside)
        for (world, rung), beside in models.items()
        for name in beside
        if name not in ("teacher", "student")
    ]


def _of_calibration(source: str, world: str, rung: str, name: str, beside: dict[str, Any]) -> dict[str, Any]:
    row = beside[name]
    if "+" in name or name == "zero":
        kind = "control"
    elif name == "oracle":
        kind = "known answer"
    else:
        kind = "examined" if any(m.startswith(f"{name}+") for m in beside) else "baseline"
    about = RUNGS.get(rung)
    pair, key = f"{rung}, world {world}", f"{source}, {rung}, {world}"
    if source == "ladder" and about:  # these are the demo models: runs of them are of the same pairs
        pair, key = f"demo:{about.teacher} → demo:{about.student}", f"demo:{about.teacher} → demo:{about.student}"
    made: dict[str, Any] = {
        "source": source,
        "run": row["run"],
        "pair": pair,
        "pair_key": key,
        "lineage": rung,
        "model": name,
        "kind": kind,
        "suite": "demo:people",
        "n": row["n"],
        "seeds": 1,
        "share": row["share"],
        "share_missing": row.get("missing"),
        "delta": row["delta"],
        "claim": row["claim"],
        **{k: row.get(k) for k in calibrate.PREDICTORS},
        **_ends("share", row["share_ci"]),
        **_ends("delta", row["delta_ci"]),
    }
    controls = {m: r["delta"] for m, r in beside.items() if m.startswith(f"{name}+") or m == "zero"}
    controls = {m: d for m, d in controls.items() if d is not None}
    if kind == "examined" and controls and row["delta"] is not None:
        best = max(controls, key=lambda m: controls[m])
        # The same items, so the difference of the differences is the gain; its interval was not kept.
        made |= {"gain": row["delta"] - controls[best], "gain_over": best}
    return made
