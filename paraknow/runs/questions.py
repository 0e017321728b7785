"""What can be asked about a run, and the answers: checked on the way in, and read back as what they were (no torch)."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError, model_validator

from paraknow.config import EMBEDDING, MODULES, Part
from paraknow.errors import InputError
from paraknow.runs import store

PROMPT, ANSWER, TOKENS, SIDE = 8000, 2000, 256, 512  # characters; tokens to be written; weights a side

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


def make(kind: str, **values: Any) -> Question:
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


def read(found: Any) -> Question | None:
    """A question from what JSON holds; None where it is none."""
    try:
        return _QUESTION.validate_python(found)
    except ValidationError:
        return None


def read_answer(found: Any) -> Answer | None:
    """An answer from what JSON holds; None where it is none."""
    try:
        return _ANSWER.validate_python(found)
    except ValidationError:
        return None
