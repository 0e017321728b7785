"""Small questions that a page puts to the worker: a mailbox of files beside the runs (no torch).

An ask is a folder runs/.asks/<id>/: ask.json (the question, whose it is, since when), taken.json (the supervisor that
has it, and how often it was taken), said.json (how far it is), cancel (nobody wants it any more), answer.json and
answer.safetensors. Every file is replaced as a whole. Ids are made here and say the order. Nothing of an ask goes into
a run's folder, and none holds a run's lock.

Reading never raises: a damaged ask or answer is one that failed, with a sentence.
"""

from __future__ import annotations

import math
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from paraknow import access, files, limits
from paraknow.config import EMBEDDING, MODULES, Part
from paraknow.errors import InputError
from paraknow.runs import processes, store

FOLDER = ".asks"  # of a runs folder; hidden, so that no listing of runs looks into it
ID = re.compile(r"\d{20}-[0-9a-f]{16}")
KEPT = 3600.0  # seconds after which an ask is removed, answered or not
MOST = 100  # asks in the mailbox
ATTEMPTS = 2  # times an ask is handed out: once more where a supervisor is gone with it
PROMPT, ANSWER, TOKENS, SIDE = 8000, 2000, 256, 512  # characters; tokens to be written; weights a side
MAX_ASK, MAX_ANSWER, MAX_VALUES = 256 * 2**10, 16 * 2**20, 4 * 2**20  # bytes

Model = Literal["teacher", "student"]


# -- questions -------------------------------------------------------------------------------------------


class _Question(Part):
    """A question about one run. raw: the prompt as it stands, without a chat template or "Question:" around it."""

    run: Annotated[str, Field(pattern=f"^{store.ID}$")]


class SensitivityQuestion(_Question):
    """|w · ∇| of one prompt and its answer, per matrix."""

    kind: Literal["sensitivity"] = "sensitivity"
    prompt: str = Field(max_length=PROMPT, pattern=r"\S")
    answer: str = Field(max_length=ANSWER, pattern=r"\S")
    models: tuple[Model, ...] = Field(("teacher", "student"), min_length=1, max_length=2)
    raw: bool = False


class AnswersQuestion(_Question):
    """What every model of the run answers to one prompt. answer: what is expected, if anything. seed: of the
    transferred students; the run's first by default."""

    kind: Literal["answers"] = "answers"
    prompt: str = Field(max_length=PROMPT, pattern=r"\S")
    answer: str = Field("", max_length=ANSWER)
    max_tokens: int = Field(32, ge=1, le=TOKENS)
    seed: int | None = None
    raw: bool = False


class RegionQuestion(_Question):
    """|w · ∇| of single weights over the run's seed examples; ends of rows and columns are excluded."""

    kind: Literal["region"] = "region"
    model: Model
    layer: int = Field(ge=-1, le=10_000)
    module: Literal[*MODULES, *EMBEDDING]  # type: ignore[valid-type]
    rows: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]]
    cols: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]]

    @model_validator(mode="after")
    def _size(self) -> RegionQuestion:
        for name, (low, high) in (("rows", self.rows), ("cols", self.cols)):
            if not 1 <= high - low <= SIDE:
                raise ValueError(f"{name}: {low} to {high} are {high - low}; 1 to {SIDE} are accepted")
        return self


Question = SensitivityQuestion | AnswersQuestion | RegionQuestion
_QUESTION: TypeAdapter[Question] = TypeAdapter(Annotated[Question, Field(discriminator="kind")])


def question(kind: str, **values: Any) -> Question:
    """A checked question. Raises InputError naming the field and what is accepted."""
    try:
        return _QUESTION.validate_python({"kind": kind, **values})
    except ValidationError as error:
        raise InputError(_sentence(error)) from None


def _sentence(error: ValidationError) -> str:
    """The first thing wrong with a question, as one sentence."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = [str(p) for p in first["loc"] if p not in ("sensitivity", "answers", "region")]
    name, limit = ".".join(place[:1]) or "question", (first.get("ctx") or {}).get("max_length")
    if first["type"] == "string_pattern_mismatch" and name in ("prompt", "answer"):
        return f"{name}: it is empty; at least one character is needed."
    if first["type"] == "string_too_long":
        return f"{name}: it is too long; at most {limit} characters are accepted."
    if first["type"] == "string_unicode":
        return f"{name}: it holds half a character (a lone surrogate); write it again."
    said = first["msg"].removeprefix("Value error, ")
    return f"{name}: {said[:1].lower()}{said[1:]}."


# -- answers ---------------------------------------------------------------------------------------------


class _Answer(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class Token(_Answer):
    """A token's text and its log-probability in nats."""

    text: str
    logprob: FiniteFloat


class Cell(_Answer):
    """The sensitivity of one parameter of a model; the columns of locate/sensitivity.parquet."""

    model: Model
    layer: int
    module: str
    sum: FiniteFloat
    mean: FiniteFloat
    max: FiniteFloat
    share: FiniteFloat


class Surprise(_Answer):
    """What a model makes of the answer: loss in nats per answer token, and its tokens."""

    model: Model
    loss: FiniteFloat
    tokens: list[Token]


def likelihood(surprise: Surprise) -> dict[str, float]:
    """The loss per answer token in nats, and the probability of the whole answer."""
    return {"loss": surprise.loss, "probability": math.exp(sum(token.logprob for token in surprise.tokens))}


class SensitivityAnswer(_Answer):
    kind: Literal["sensitivity"] = "sensitivity"
    models: list[Surprise]
    cells: list[Cell]


class Said(_Answer):
    """What one model answered. `missing` says why one did not; then the rest is empty. `expected` is the expected
    answer's log-probability (nats, summed over `expected_tokens`), `rank` that of its first token."""

    label: str
    seed: int | None = None
    text: str = ""
    tokens: int = 0
    ended: bool = False
    mean_logprob: FiniteFloat | None = None
    expected: FiniteFloat | None = None
    expected_tokens: int | None = None
    rank: int | None = None
    missing: str | None = None


class AnswersAnswer(_Answer):
    kind: Literal["answers"] = "answers"
    models: list[Said]


class RegionAnswer(_Answer):
    """Of single weights; their values are in answer.safetensors, (rows, cols). examples: how many were summed."""

    kind: Literal["region"] = "region"
    rows: Annotated[tuple[int, int], Field(strict=False)]  # JSON has lists
    cols: Annotated[tuple[int, int], Field(strict=False)]
    examples: int


Answer = SensitivityAnswer | AnswersAnswer | RegionAnswer
_ANSWER: TypeAdapter[Answer] = TypeAdapter(Annotated[Answer, Field(discriminator="kind")])


@dataclass(frozen=True)
class State:
    """How an ask stands: waiting, working, done, failed or gone (removed).

    message: what is being done, where it is worked on; error: why it failed. answer and values: where it is done.
    """

    name: Literal["waiting", "working", "done", "failed", "gone"]
    message: str = ""
    error: str = ""
    answer: Answer | None = None
    values: np.ndarray | None = None

    @property
    def over(self) -> bool:
        return self.name not in ("waiting", "working")


# -- the mailbox -----------------------------------------------------------------------------------------


class Ask:
    """One question in the mailbox. Reading never raises."""

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def id(self) -> str:
        return self.folder.name

    def path(self, name: str) -> Path:
        return self.folder / name

    @property
    def root(self) -> Path:
        """The runs folder."""
        return self.folder.parent.parent

    @property
    def device(self) -> str:
        """Where its run is carried out: auto, cpu or cuda."""
        return str(self._read("ask.json", MAX_ASK).get("device", "cpu"))

    def question(self) -> Question | None:
        """What is asked; None where that cannot be read."""
        try:
            return _QUESTION.validate_python(self._read("ask.json", MAX_ASK).get("question"))
        except ValidationError:
            return None

    def state(self) -> State:
        """How it stands."""
        if not self.folder.is_dir():
            return State("gone")
        if self.path("answer.json").exists():
            return self._answered()
        if self.question() is None:
            return State("failed", error="the question cannot be read any more; ask again.")
        if self._holder():
            return State("working", message=str(self._read("said.json", MAX_ASK).get("message", ""))[:200])
        return State("waiting")

    def _answered(self) -> State:
        found, damaged = (
            self._read("answer.json", MAX_ANSWER),
            State("failed", error="its answer is damaged; ask again."),
        )
        if found.get("error"):
            return State("failed", error=str(found["error"])[:2000])
        try:
            answer = _ANSWER.validate_python(found.get("answer"))
        except ValidationError:
            return damaged
        if not isinstance(answer, RegionAnswer):
            return State("done", answer=answer)
        values = self._values()
        shape = (answer.rows[1] - answer.rows[0], answer.cols[1] - answer.cols[0])
        if values is None or values.shape != shape:
            return damaged
        return State("done", answer=answer, values=values)

    def _values(self) -> np.ndarray | None:
        try:
            if self.path("answer.safetensors").stat().st_size > MAX_VALUES:
                return None
            values = load_file(self.path("answer.safetensors"))["values"]
        except (OSError, KeyError, ValueError, TypeError, SafetensorError):
            return None
        sound = values.dtype == np.float32 and values.ndim == 2 and bool(np.isfinite(values).all())
        return values if sound else None

    def _read(self, name: str, most: int) -> dict[str, Any]:
        """A JSON file of the ask; empty where there is none, it is damaged or too large."""
        try:
            if self.path(name).stat().st_size > most:
                return {}
            return files.read_json(self.path(name))
        except (OSError, ValueError):
            return {}

    def _holder(self) -> bool:
        """Whether a living supervisor has it. One of another machine is believed."""
        taken = self._read("taken.json", MAX_ASK)
        if not taken:
            return False
        if taken.get("host") != socket.gethostname():
            return True
        pid, born = taken.get("pid"), taken.get("born")
        if not isinstance(pid, int) or not isinstance(born, float) or not 0 < pid < 2**31:
            return False
        return processes.same(pid, born) is not None

    # -- whoever asked ------------------------------------------------------------------------------

    def cancel(self) -> None:
        """Nobody wants it any more: removed where it waits, else asked to stop."""
        with suppress(OSError), _locked(self.root):
            if self.state().name == "working":
                self.path("cancel").touch()
            else:
                shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def cancelled(self) -> bool:
        return self.path("cancel").exists()

    def cancelled_for(self) -> float:
        """Seconds since it was cancelled; 0 where it was not."""
        try:
            return max(0.0, time.time() - self.path("cancel").stat().st_mtime)
        except OSError:
            return 0.0

    # -- whoever answers ----------------------------------------------------------------------------

    def say(self, message: str) -> None:
        """What is being done, for whoever waits."""
        self._write("said.json", {"message": message})

    def done(self, answer: Answer, values: np.ndarray | None = None) -> None:
        """Write the answer down."""
        if values is not None and self.folder.is_dir():
            with files.replacing(self.path("answer.safetensors")) as temporary:
                save_file({"values": np.ascontiguousarray(values, np.float32)}, temporary)
        self._write("answer.json", {"answer": answer.model_dump(mode="json")})

    def fail(self, sentence: str) -> None:
        """Write down why there is no answer; nothing where there is one by now."""
        if not self.path("answer.json").exists():
            self._write("answer.json", {"error": sentence})

    def _write(self, name: str, values: dict[str, Any]) -> None:
        if self.folder.is_dir():  # else it was cancelled or removed: writing would make it anew
            files.write_json(self.path(name), values)


def put(asked: Question, root: Path, device: str) -> Ask:
    """Put a question into the mailbox. Raises InputError where too many wait."""
    sweep(root)
    waiting = len(list(_waiting(root)))
    limits.check_asks(waiting)
    if waiting >= MOST:
        raise InputError(f"asks: {waiting} questions wait already, the most there can be; try again later.")
    name = f"{time.time_ns():020d}-{secrets.token_hex(8)}"
    with files.replacing_folder(root / FOLDER / name) as folder:
        about = {"created": time.time(), "device": device, "question": asked.model_dump(mode="json")}
        files.write_json(folder / "ask.json", about)
        access.keep(folder)
    return Ask(root / FOLDER / name)


def named(id: str, root: Path) -> Ask:
    """The ask of an id; one that is gone where the id is none."""
    return Ask(root / FOLDER / (id if ID.fullmatch(id) else "none"))


def waiting(root: Path, serves: Callable[[str], bool] = lambda device: True) -> list[Ask]:
    """Asks that nobody has taken, in their order, of the devices that `serves` says."""
    return [ask for ask in _waiting(root) if serves(ask.device)]


def _all(root: Path) -> list[Ask]:
    try:
        names = sorted(name for name in os.listdir(root / FOLDER) if ID.fullmatch(name))
    except OSError:
        return []
    return [Ask(root / FOLDER / name) for name in names]


def _waiting(root: Path) -> Iterator[Ask]:
    """Those that still need somebody: their question unread, or unreadable, and no answer written."""
    for ask in _all(root):
        if not ask.path("answer.json").exists() and not ask._holder():
            yield ask


def take(root: Path, serves: Callable[[str], bool]) -> Ask | None:
    """Take the next ask for this process; None where none waits. One that was taken too often has failed."""
    if not waiting(root, serves):
        return None
    with _locked(root):
        for ask in waiting(root, serves):
            attempt = ask._read("taken.json", MAX_ASK).get("attempt", 0)
            attempt = 1 + (attempt if isinstance(attempt, int) else 0)
            if ask.cancelled or attempt > ATTEMPTS:
                ask.fail("cancelled." if ask.cancelled else "the worker ended twice while it worked on this.")
                continue
            me = {"host": socket.gethostname(), "pid": os.getpid(), "born": processes.born(), "attempt": attempt}
            ask._write("taken.json", me)
            return ask
    return None


def before(ask: Ask) -> int:
    """How many asks are answered before this one."""
    return sum(other.id < ask.id and not other.state().over for other in _all(ask.root))


def sweep(root: Path) -> None:
    """Remove what is older than an hour and what nobody can finish; of the answered ones the oldest beyond MOST."""
    found = _all(root)
    over = [ask for ask in found if ask.path("answer.json").exists()]
    spare = {ask.id for ask in over[: max(0, len(found) - MOST)]}
    for ask in found:
        old = time.time() - int(ask.id.partition("-")[0]) / 1e9 > KEPT
        if ask.id in spare or (old and not ask._holder()):
            shutil.rmtree(ask.folder, ignore_errors=True)


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    with FileLock(root / FOLDER / ".lock", timeout=10):
        yield
