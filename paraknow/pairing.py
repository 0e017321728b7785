"""Two models side by side before anything is loaded: facts, what differs, memory, what cannot work (no torch).

All from config.json, the tokenizer and the headers of safetensors files; of a hub's model that is not here, from the
shipped table. Used by the Models page, `paraknow models TEACHER STUDENT` and from a notebook (`look`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from paraknow import checkpoints, checks, described, limits, methods, recipes
from paraknow.architecture import Architecture, from_config
from paraknow.checkpoints import Checkpoint
from paraknow.config import MODULES, Locate, Pair, Placement, RunConfig
from paraknow.demo.rungs import RUNGS
from paraknow.errors import InputError, ParaKnowError, ResourceError
from paraknow.fitting import Free, refused
from paraknow.memory import Case, layers_size

TYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}  # safetensors' names → torch's
SIZES = ("layers", "hidden", "ffn", "heads", "kv_heads", "head_dim", "vocabulary", "context", "tied")
ANY = "any method"
EMBEDDINGS = "moving embeddings"


@dataclass(frozen=True)
class Facts:
    """One model. `source`: `files` (weights are here), `config.json` (they are not) or `models.json` (the table).

    parameters: stored ones, or worked out from config.json. dtype and bytes: of the weight files. tokens: the
    tokenizer's own. chat_template: whether there is one. None: not known without the files.
    """

    spec: str
    title: str
    source: str
    family: str
    parameters: int
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    tied: bool
    dtype: str | None
    bytes: int | None
    tokens: int | None
    chat_template: bool | None


@dataclass
class Looked:
    """A pair as far as its files tell.

    differing: names of facts that differ. tokenizer: `same` (every token has one id in both; None: unknown), `shared`
    tokens and `same_ids` of them. blocks: per module the shapes (out, in), whether the student's fits into the
    teacher's, and what share of it that is. memory: bytes at the peak of each stage of a run with default settings;
    free: what is free on `device`, None where there is no such device. refusal: why it does not fit, with the nearest
    settings that do. refused: {method, `any method` or `moving embeddings`: why}. lineage: what is known of their
    kinship, in words. notes: what to know besides.
    """

    teacher: Facts
    student: Facts
    differing: list[str]
    tokenizer: dict[str, Any]
    blocks: list[dict[str, Any]]
    memory: dict[str, int]
    device: str
    free: int | None
    refusal: str | None
    settings: dict[str, Any]
    refused: dict[str, str]
    lineage: str
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def facts(spec: str) -> Facts:
    """What is known of one model. Nothing is downloaded. Raises InputError (checkpoints.find, described.config_of)."""
    with _read(spec) as (checkpoint, source):
        return _facts(checkpoint, source)


def look(
    teacher: str, student: str, dtype: str = "float32", device: str = "auto", placement: Placement | None = None
) -> Looked:
    """Both models side by side, and what a run with default settings would need and could not do.

    Nothing is downloaded. Raises InputError where one of the two cannot be read.
    """
    with _read(teacher) as (a, first), _read(student) as (b, second):
        both = _facts(a, first), _facts(b, second)
        values = {"pair": Pair(teacher=teacher, student=student), "task": ("demo:people",), "dtype": dtype}
        config = RunConfig.model_validate({**values, "device": device, "placement": placement or Placement()})
        memory, kind, free, refusal, settings = _memory(a, b, config)
        found = Looked(
            teacher=both[0],
            student=both[1],
            differing=[n for n in asdict(both[0]) if n not in ("spec", "title", "source") and _apart(n, *both)],
            tokenizer=_tokenizers(a, b, first, second),
            blocks=blocks(a.architecture, b.architecture),
            memory=memory,
            device=kind,
            free=free,
            refusal=refusal,
            settings=settings,
            refused=refusals_of(a, b),
            lineage=lineage(teacher, student),
        )
        found.notes = _notes(found, (first, second))
        return found


def refusals(teacher: str, student: str) -> dict[str, str]:
    """Every method that cannot work on this pair, with its sentence; settings at their defaults.

    Also under `any method` and `moving embeddings`. Raises InputError where one of the two cannot be read.
    """
    with _read(teacher) as (a, _), _read(student) as (b, _):
        return refusals_of(a, b)


def refusals_of(teacher: Checkpoint, student: Checkpoint) -> dict[str, str]:
    """`refusals` of two models that have been found."""
    found: dict[str, str] = {}
    for name, origins in ((ANY, ("attention", "ffn")), (EMBEDDINGS, ("attention", "ffn", "embedding"))):
        try:
            checkpoints.check_blocks(teacher, student, Locate.model_validate({"origins": origins}))
        except InputError as error:
            found[name] = str(error)
    if found.get(EMBEDDINGS) == found.get(ANY):
        found.pop(EMBEDDINGS, None)
    for name, method in methods.catalogue().items():
        try:
            if method.needs_clone:
                checks.check_clone(teacher, student)
            if method.check:
                method.check(teacher, student, method.settings())
        except ParaKnowError as error:
            found[name] = str(error)
    return found


def blocks(teacher: Architecture, student: Architecture) -> list[dict[str, Any]]:
    """Per module: both shapes (out, in), whether the student's fits into the teacher's, its share of the teacher's."""
    rows = []
    for module in MODULES:
        full, need = teacher.shape(module), student.shape(module)
        fits = need[0] <= full[0] and need[1] <= full[1]
        share = prod(need) / prod(full) if fits else None
        rows.append({"module": module, "teacher": full, "student": need, "fits": fits, "share": share})
    return rows


def lineage(teacher: str, student: str) -> str:
    """What is known of two models' kinship: built with the package, said by a shipped recipe, or nothing."""
    for rung in RUNGS.values():
        if (teacher, student) == (f"demo:{rung.teacher}", f"demo:{rung.student}"):
            return f"Known, for they were built here: {rung.words}."
    plain = teacher.partition("@")[0], student.partition("@")[0]
    for recipe in recipes.catalogue().values():
        if (recipe.pair.teacher, recipe.pair.student) == plain:
            return f"By their model cards, to be confirmed there: {recipe.pair.about}."
    return (
        "Not known: whether one was made from the other cannot be read from the files. Their model cards may say; it "
        "decides whether knowledge can cross as weights."
    )


# -- one model ---------------------------------------------------------------------------------------------


@contextmanager
def _read(spec: str) -> Iterator[tuple[Checkpoint, str]]:
    """A model and where its facts are from; the folder of one that is not here lasts as long as the block."""
    folder = described.cached(spec) if checkpoints.is_remote(spec) else None
    if not checkpoints.is_remote(spec) or (folder and any(folder.glob("*.safetensors"))):
        yield checkpoints.find(spec), "files"
        return
    with TemporaryDirectory(prefix="paraknow-") as scratch:
        values, folder, source = described.config_of(spec, Path(scratch) / "model")
        a = from_config(values, f"model {spec!r}")
        largest = max(prod(a.shape(m)) for m in a.matrices)
        yield Checkpoint(spec, folder, a, counted(a, values), largest), source


def counted(a: Architecture, values: dict[str, Any]) -> int:
    """Parameters of a model by its config.json: matrices, norms, and the biases its family has."""
    norms = a.hidden * (2 * a.layers + 1)
    query, key = a.heads * a.head_dim, a.kv_heads * a.head_dim
    beside = 2 * a.head_dim if a.family.name == "Qwen3" else 0  # norms of queries and keys
    if a.family.name == "Qwen2":
        beside += query + 2 * key
    elif values.get("attention_bias"):
        beside += query + 2 * key + a.hidden
    if values.get("mlp_bias"):
        beside += 2 * a.ffn + a.hidden
    embeddings = a.vocabulary * a.hidden * (1 if a.tied else 2)
    return layers_size(a) + norms + a.layers * beside + embeddings


def _facts(checkpoint: Checkpoint, source: str) -> Facts:
    a, kinds, size, tokens, template = checkpoint.architecture, None, None, None, None
    if source == "files":
        headers = checkpoints.weight_headers(checkpoint.spec, checkpoint.folder)
        counts: Counter[str] = Counter()
        for header in headers.values():
            for tensor in header.values():
                counts[TYPES.get(tensor["dtype"], tensor["dtype"].lower())] += prod(tensor["shape"])
        kinds, size = ", ".join(kind for kind, _ in counts.most_common()), sum(f.stat().st_size for f in headers)
    if source != described.TABLE:
        known = checkpoints.token_ids(checkpoint.folder)
        tokens = None if known is None else len(known)
        if checkpoints.has_tokenizer(checkpoint.folder):
            template = checks.has_template(checkpoint)
    sizes = {name: getattr(a, name) for name in SIZES}
    about = (checkpoint.spec, checkpoint.title, source, a.family.name, checkpoint.parameters)
    return Facts(*about, **sizes, dtype=kinds, bytes=size, tokens=tokens, chat_template=template)


# -- both ------------------------------------------------------------------------------------------------


def _apart(name: str, first: Facts, second: Facts) -> bool:
    a, b = getattr(first, name), getattr(second, name)
    return None not in (a, b) and a != b


def _tokenizers(a: Checkpoint, b: Checkpoint, first: str, second: str) -> dict[str, Any]:
    """Whether both read text alike. The table names only whose tokenizer a model has."""
    unknown = {"same": None, "shared": None, "same_ids": None}
    if described.TABLE in (first, second):
        marks = [checkpoints.token_ids(c.folder) for c in (a, b)]
        return {**unknown, "same": marks[0] == marks[1]} if first == second else unknown
    ids = [checkpoints.token_ids(c.folder) for c in (a, b)]
    if ids[0] is None or ids[1] is None:
        return unknown
    shared = ids[0].keys() & ids[1].keys()
    alike = sum(ids[0][t] == ids[1][t] for t in shared)  # tokens with one id
    same = checkpoints.same_vocabulary(a, b)
    return {"same": same, "shared": len(shared), "same_ids": alike}


def _memory(
    a: Checkpoint, b: Checkpoint, config: RunConfig
) -> tuple[dict[str, int], str, int | None, str | None, dict[str, Any]]:
    """(bytes by stage, device, free bytes, why it does not fit, settings that would)."""
    candidates = methods.candidates(config)
    try:
        free = Free.now(config.device)
    except ResourceError as error:
        need = Case(a, b, candidates, config.device, {}).need(config)
        return need.totals, config.device, None, str(error), {}
    case = Case(a, b, candidates, free.device, {})
    refusal = refused(config, case, free)
    settings = refusal.settings if refusal else {}
    return case.need(config).totals, free.device, free.bytes, str(refusal) if refusal else None, settings


def _notes(found: Looked, sources: tuple[str, str]) -> list[str]:
    made = []
    for facts_, source in zip((found.teacher, found.student), sources, strict=True):
        if source == described.TABLE:
            made.append(f"{facts_.spec} is not here: sizes from the shipped table, to be confirmed at its model card.")
        elif source == "config.json":
            made.append(f"{facts_.spec}: its weights are not here; parameters are worked out from its config.json.")
    if found.teacher.parameters < found.student.parameters:
        made.append("The teacher is the smaller of the two; is it the other way round?")
    if found.teacher.spec == found.student.spec:
        made.append("Teacher and student are the same model: every difference between them will be chance.")
    if found.tokenizer["same"] is False:
        made.append(
            "They read text differently: what is compared token by token is compared where their tokens end together."
        )
    if limits.shared():
        made.append("This page is shared: free memory is the machine's, and others use it too.")
    return made
