"""What the files of a run folder hold, as others may rely on it: columns of tables, fields of JSON files (no torch).

Pages read by it, and a bundle from elsewhere is checked by it before it becomes a run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from paraknow import config as configs
from paraknow import files, yamls
from paraknow.errors import InputError

COLUMNS = {
    "locate/sensitivity.parquet": "task model seed layer module sum mean max share",
    "locate/layers.parquet": "task model layer by score chosen student_layer",
    "locate/blocks.parquet": "module teacher_layer student_layer row col rows cols share",
    "locate/agreement.parquet": "about model task other what module layer value chance lo hi n",
    "locate/attribution.parquet": "task model seed layer kind score summed",
    "locate/neurons.parquet": "task model layer kind neuron score",
    "locate/promoted.parquet": "task model layer kind neuron place score tokens logits",
    "similarity/cka.parquet": "task module teacher_layer student_layer cka lo hi null null_lo null_hi null_position "
    "untrained n examples",
    "similarity/stitching.parquet": "teacher_layer student_layer r2 lo hi null n paired",
    "similarity/weights.parquet": "module teacher_layer student_layer source rank norm_ratio cos cos_rest "
    "cos_rest_expected left_overlap left_expected right_overlap right_expected interference interference_expected n",
    "similarity/spectra.parquet": "model layer module index size effective_rank shape0 shape1",
    "similarity/tasks.parquet": "module task other rank_correlation n",
    "tune/budgets.parquet": "model seed examples steps trainable added teacher_flops student_flops more",
    "tune/changes.parquet": "model seed layer module rank norm weight_norm",
    "tune/checks.parquet": "model seed same tuned start_difference tolerance moved steps kept_step",
    "evaluate/items.parquet": "task group doc_id model seed prompt target answer correct logprob",
}
_LABEL, _SEED, _NAME = r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}", r"-?\d{1,10}", r"[a-z0-9_]{1,60}"
_ADAPTER = rf"adapters/{_LABEL}/{_SEED}/{_LABEL}"
KINDS = {  # the files that pages, reports and adapters' users read; a bundle holds no others
    "config": re.compile(r"config\.yaml"),
    "events": re.compile(r"events\.jsonl"),
    "json": re.compile(
        rf"(?:status|environment|diagnose)\.json|(?:locate|similarity|tune|evaluate)/{_NAME}\.json"
        rf"|adapters/reload\.json|{_ADAPTER}\.json"
    ),
    "table": re.compile(
        rf"(?:locate|similarity|tune|evaluate)/{_NAME}\.parquet|align/starts\.parquet"
        rf"|(?:align|tune)/{_LABEL}/{_SEED}\.parquet"
    ),
    "tensors": re.compile(rf"locate/maps\.safetensors|{_ADAPTER}\.safetensors"),
    "text": re.compile(rf"{_ADAPTER}\.(?:jinja|txt)"),
}
TEXTS = frozenset("task model module by about other what kind source group prompt target answer doc_hash part".split())
LISTS = frozenset("tokens logits more candidates candidate_logprobs".split())
FLAGS = frozenset("chosen paired correct same tuned".split())
MAX_JSON = 64 * 2**20  # bytes: read into memory at once
MAX_LINE = 2**20  # bytes of one event
MAX_CELLS = 200_000_000  # of one table, as its footer counts them
MAX_DECODED = 512 * 2**20  # bytes of one table in memory
MAX_EVENTS = 32 * 2**20  # bytes of events.jsonl: pages read it whole
BATCH_BYTES = 256 * 2**20  # of one table decoded at a time
Time = Annotated[float, Field(ge=0, le=9e9)]  # Unix seconds that every calendar in use can show


State = Literal["queued", "running", "done", "failed", "cancelled", "lost"]


class _Facts(BaseModel):
    """What is read of a JSON file; more may stand there."""

    model_config = ConfigDict(extra="allow", strict=True)


class Status(_Facts):
    """status.json; see store.py."""

    state: State
    stages: list[str] = []
    stage: str | None = None
    step: int | None = None
    total: int | None = None
    eta: FiniteFloat | None = None
    message: str | None = None
    error: str | None = None
    created: Time = 0.0
    started: Time | None = None
    finished: Time | None = None
    heartbeat: Time | None = None
    number: int = 0
    priority: int = 0
    device: str = "auto"
    host: str | None = None
    pid: int | None = None
    born: FiniteFloat | None = None


class Event(_Facts):
    """One line of events.jsonl."""

    time: Time
    stage: str | None = None
    stages: list[str] = []
    step: int | None = None
    total: int | None = None
    message: str | None = None
    loss: float | None = None  # NaN where that stopped the run
    warning: str | None = None
    seconds: FiniteFloat | None = None


class Model(_Facts):
    """A model in environment.json."""

    title: str | None = None
    spec: str | None = None
    sha256: str | None = None
    layers: int | None = None


class Environment(_Facts):
    """environment.json."""

    models: dict[str, Model] = {}
    versions: dict[str, str] = {}
    data: dict[str, str] = {}
    seeds: list[int] = []
    device: str | None = None


Interval = Annotated[list[FiniteFloat], Field(min_length=2, max_length=2)]


class Against(_Facts):
    """A control that a model was held against."""

    control: str
    delta: FiniteFloat | None = None
    delta_ci: Interval | None = None


class Row(_Facts):
    """One row of evaluate/deltas.json."""

    model: str
    suite: str
    group: str
    n: int | None = None
    seeds: int | None = None
    accuracy: FiniteFloat | None = None
    ci: Interval | None = None
    delta: FiniteFloat | None = None
    delta_ci: Interval | None = None
    p_mcnemar: FiniteFloat | None = None
    p_holm: FiniteFloat | None = None
    gained: int | None = None
    lost: int | None = None
    detectable: FiniteFloat | None = None
    loss: FiniteFloat | None = None
    bits: FiniteFloat | None = None
    bits_ci: Interval | None = None
    share: FiniteFloat | None = None
    share_ci: Interval | None = None
    share_missing: str | None = None
    claim: bool | None = None
    reading: str | None = None
    against: list[Against] = []


class Deltas(_Facts):
    """evaluate/deltas.json."""

    rows: list[Row]


class Map(_Facts):
    """What is noted about one pooled map in locate/maps.safetensors."""

    shape: Annotated[list[int], Field(min_length=2, max_length=2)]
    max: FiniteFloat
    pooling: str


JSON: dict[str, type[BaseModel]] = {
    "status.json": Status,
    "environment.json": Environment,
    "evaluate/deltas.json": Deltas,
}


def kind_of(name: str) -> str | None:
    """What a file of a run folder is, by its path in it; None for what only carrying on with the run needs."""
    return next((kind for kind, pattern in KINDS.items() if pattern.fullmatch(name)), None)


def is_adapter(name: str) -> bool:
    """Whether a file belongs to an adapter or checkpoint that the run made."""
    return re.match(rf"adapters/{_LABEL}/{_SEED}/", name) is not None


def check(path: Path, name: str) -> None:
    """Raises ValueError, its text in a few words, where the file `name` of a run is not what others rely on."""
    kind = kind_of(name)
    try:
        if kind == "config":
            configs.parse(yamls.parse(path.read_text(encoding="utf-8"), "it"), "it")
        elif kind == "events":
            check_events(path)
        elif kind == "json":
            check_json(path, name)
        elif kind == "table":
            check_table(path, name)
        elif kind == "tensors":
            check_tensors(path, name)
        elif kind == "text":
            _check_text(path)
        else:
            raise ValueError("no file of a run is called so")
    except (InputError, OSError, ValueError, RecursionError) as error:  # pyarrow's errors are OSError and ValueError
        raise ValueError(" ".join(str(error).split()).rstrip(" .")[:500]) from None


def table(folder: Path, name: str, columns: Sequence[str] | None = None) -> Any:
    """A parquet table of a run folder as a frame. Raises InputError where it is missing or damaged."""
    import pandas as pd

    try:
        return pd.read_parquet(folder / name, columns=None if columns is None else list(columns))
    except FileNotFoundError:
        raise InputError(f"run {folder.name} has no {name}.") from None
    except (OSError, ValueError) as error:  # pyarrow's errors are OSError and ValueError
        raise InputError(f"{name} of run {folder.name} is damaged ({type(error).__name__}).") from None


def json_file(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of a run folder, its fields checked. Raises InputError where it is missing or damaged."""
    try:
        values = files.read_json(folder / name)
    except FileNotFoundError:
        raise InputError(f"run {folder.name} has no {name}.") from None
    except (OSError, ValueError):
        raise InputError(f"{name} of run {folder.name} is damaged: it is no JSON object.") from None
    if bad := unsound(JSON.get(name, _Facts), values):
        raise InputError(f"{name} of run {folder.name} is damaged ({bad}).")
    return values


def unsound(kind: type[BaseModel], values: Any) -> str | None:
    """The first field that is not of its kind, with what it should be; None where all are sound."""
    try:
        kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(p)[:80] for p in first["loc"]) or "the whole"
        return f"{place}: {first['msg'][:1].lower()}{first['msg'][1:]}"
    return None


def check_json(path: Path, name: str) -> None:
    """Raises ValueError, its text in a few words, where a JSON file is none or its fields are not of their kinds."""
    if path.stat().st_size > MAX_JSON:
        raise ValueError(f"is larger than {MAX_JSON // 2**20} MiB")
    values = files.read_json(path)
    if bad := unsound(JSON.get(name, _Facts), values):
        raise ValueError(bad)


def check_events(path: Path) -> None:
    """Raises ValueError where events.jsonl is too long to be read at once, or a line of it is no event."""
    if path.stat().st_size > MAX_EVENTS:
        raise ValueError(f"is longer than {MAX_EVENTS // 2**20} MiB")
    for number, line in enumerate(_lines(path), 1):
        try:
            bad = unsound(Event, json.loads(line))
        except RecursionError:
            bad = "it is nested too deeply"
        except ValueError:
            bad = "it is not valid JSON"
        if bad:
            raise ValueError(f"line {number}: {bad}")


def _lines(path: Path) -> Iterator[str]:
    with path.open("rb") as stream:
        while line := stream.readline(MAX_LINE + 1):
            if len(line) > MAX_LINE:
                raise ValueError(f"a line is longer than {MAX_LINE // 1024} KiB")
            yield line.decode("utf-8")


def check_table(path: Path, name: str) -> None:
    """Raises ValueError or OSError where a parquet table cannot be read to its end, or lacks a column of its kind."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as table:
        facts, schema = table.metadata, table.schema_arrow
        if facts.num_rows * max(1, facts.num_columns) > MAX_CELLS:
            raise ValueError(f"holds more than {MAX_CELLS} values")
        if lacking := [c for c in COLUMNS.get(name, "").split() if c not in schema.names]:
            raise ValueError(f"lacks the columns {', '.join(lacking)}")
        for column in COLUMNS.get(name, "").split():
            if not _fits(column, schema.field(column).type):
                raise ValueError(f"column {column!r} cannot be {schema.field(column).type}")
        # A value is at most as long as its column's pages: so many rows at a time keep memory in bounds.
        groups = [facts.row_group(k) for k in range(facts.num_row_groups)]
        longest = max((g.column(c).total_uncompressed_size for g in groups for c in range(g.num_columns)), default=0)
        decoded = 0
        for batch in table.iter_batches(max(1, min(65536, BATCH_BYTES // max(1, longest)))):
            decoded += batch.nbytes
            if decoded > MAX_DECODED:  # pages read tables whole
                raise ValueError(f"decodes to more than {MAX_DECODED // 2**20} MiB")


def _fits(column: str, kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_null(kind):
        return True  # a column without a value
    if column in TEXTS:
        return types.is_string(kind) or types.is_large_string(kind)
    if column in LISTS:
        return types.is_list(kind) or types.is_large_list(kind)
    if column in FLAGS:
        return types.is_boolean(kind)
    return types.is_integer(kind) or types.is_floating(kind)


def check_tensors(path: Path, name: str) -> None:
    """Raises ValueError where a safetensors file's header is unsound, or its pooled maps are not described."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as stream:
            keys, metadata = set(stream.keys()), stream.metadata() or {}
            shapes = {k: stream.get_slice(k).get_shape() for k in keys}
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    if name != "locate/maps.safetensors":
        return
    notes = json.loads(metadata.get("maps", "{}"))
    for key in keys:
        if not isinstance(notes, dict) or unsound(Map, notes.get(key)) or len(shapes[key]) != 2:
            raise ValueError(f"the map {key[:80]!r} is not described")


def _check_text(path: Path) -> None:
    if path.stat().st_size > MAX_JSON:
        raise ValueError(f"is larger than {MAX_JSON // 2**20} MiB")
    path.read_text(encoding="utf-8")
