"""The one configuration object: one RunConfig = one run = one YAML file (no torch).

Field descriptions are the help texts of the Transfer page and the command line; where a paper gives a
value, the description says which.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from paraknow import yamls
from paraknow.errors import InputError
from paraknow.wrong import explain

ATTENTION = ("q", "k", "v", "o")
FFN = ("gate", "up", "down")
CPU_BATCH = 16  # evaluate.batch_size auto on a CPU, where more rows save no time; lm-eval's search is for GPU memory
STITCHED_ROWS = 2048  # tokens kept for stitching, over all tasks together
EMBEDDING = ("embed", "lm_head")
MODULES = (*ATTENTION, *FFN)
Module = Literal["q", "k", "v", "o", "gate", "up", "down", "embed", "lm_head"]
Origin = Literal["attention", "ffn", "embedding", "all"]
TaskName = Annotated[str, Field(min_length=1, max_length=1000)]
Length = Annotated[int, Field(ge=8, le=131072, description="Longest example in tokens; prompts are cut from the left.")]


class Part(BaseModel):
    """Base of every config part: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Pair(Part):
    """The two models: demo:NAME, a local folder, or a hub id org/name[@revision]."""

    teacher: str = Field(min_length=1, max_length=500, description="The larger model, whose knowledge is to move.")
    student: str = Field(min_length=1, max_length=500, description="The smaller model that is to receive it.")


class Locate(Part):
    """Where in the teacher the knowledge is looked for (METHODS part 1)."""

    seeds: int = Field(32, ge=1, le=4096, description="Task examples used to locate. Seeking Neural Nuggets: 32.")
    layers: Literal["sensitivity", "first", "last", "even", "random", "matched"] = Field(
        "sensitivity",
        description="Which teacher layers feed the student's. Seeking: the most sensitive, in order. "
        "'matched': the ones whose residual streams predict the student's best (stitching).",
    )
    structure: Literal["window", "rows_columns", "random_window", "random_entries"] = Field(
        "window",
        description="How a student-sized block is cut from a teacher matrix. Seeking: one contiguous window, which its "
        "ablation puts above rows and columns, and those above random ones.",
    )
    origins: tuple[Origin, ...] = Field(
        ("attention", "ffn"),
        min_length=1,
        description="Which parts take part. 'embedding' (with lm_head) needs one vocabulary and untied weights. "
        "Seeking's ablation: all above FFN above attention above embeddings.",
    )
    modules: tuple[Module, ...] | None = Field(
        None,
        description="Leave matrices out by naming the ones to keep. By default all seven projections, as Seeking has "
        "it; LaTen's own are up, down, v and o.",
    )
    neurons: Literal["exact", "first_order", "none"] = Field(
        "exact",
        description="Score neurons by what they add to the log-probability of the answer's last word: exactly, "
        "or to first order (much less work on large models). LaTen ranks neurons by this.",
    )
    max_length: Length = 512
    task: tuple[TaskName, ...] | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="Tasks whose training examples locate; the run's own by default. Tuning and evaluation stay.",
    )
    groups: int = Field(
        1,
        ge=1,
        le=1024,
        description="Groups of layers whose sensitivities are taken one after the other. More groups: "
        "less memory, more passes over the seeds, the same numbers.",
    )
    accumulators: Literal["device", "host", "disk"] = Field(
        "device", description="Where sensitivities are summed: where the weights are, in host memory, or in a file."
    )
    checkpointing: bool = Field(
        False, description="Compute layers a second time for gradients, so that one layer's activations are kept."
    )

    _one_task = field_validator("task", mode="before")(lambda value: (value,) if isinstance(value, str) else value)

    def selected(self) -> tuple[str, ...]:
        """The module names that origins and modules leave in."""
        parts = {"attention": ATTENTION, "ffn": FFN, "embedding": EMBEDDING, "all": (*MODULES, *EMBEDDING)}
        allowed = {name for origin in self.origins for name in parts[origin]}
        return tuple(m for m in (*MODULES, *EMBEDDING) if m in allowed and (self.modules is None or m in self.modules))

    @model_validator(mode="after")
    def _something_is_left(self) -> Locate:
        if not self.selected():
            raise ValueError("origins and modules leave no matrix to move")
        return self


class Similarity(Part):
    """How alike the two models are (METHODS part 3). Measured before anything is moved."""

    parts: tuple[Literal["cka", "stitching", "weights", "interference"], ...] = Field(
        ("cka", "stitching", "weights", "interference"),
        description="What is compared: outputs (CKA), residual streams (stitching), the block to be moved with the "
        "student's weights, and with what the student already knows (interference). None: the stage is passed over.",
    )
    split: Literal["train", "align", "test"] = Field("train", description="Whose examples are read, of every task.")
    examples: int = Field(512, ge=4, le=65536, description="At most so many examples of every task.")
    tokens: int = Field(4, ge=1, le=64, description="Positions drawn from each example; a batch holds one of each.")
    positions: Literal["answer", "all"] = Field(
        "answer", description="Draw positions from answers, or from the prompt too (needs one rendering of both)."
    )
    batch_rows: int = Field(512, ge=4, le=4096, description="Rows of a CKA batch; the estimator is unbiased at any.")
    permutations: int = Field(20, ge=2, le=1000, description="Row permutations behind the null.")
    resamples: int = Field(400, ge=100, le=10000, description="Resamples of examples behind the intervals.")
    untrained: bool = Field(True, description="Also compare an untrained pair of the same shapes.")
    forward_batch: int = Field(16, ge=1, le=4096, description="Examples per forward pass; less needs less memory.")
    max_length: Length = 512


class Named(Part):
    """What can be given by its name alone, and be called something else in tables."""

    name: str
    label: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def title(self) -> str:
        """Its name in every table."""
        return self.label or self.name


class MethodChoice(Named):
    """A method by name with its own settings, which its own file in paraknow/methods/ defines."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = Field(min_length=1, max_length=100, description="One of `paraknow methods`.")
    label: str | None = Field(
        None,
        pattern=r"^[a-z0-9][a-z0-9_.-]{0,39}$",
        description="What it is called in tables, where one method takes part with several settings.",
    )

    def settings(self) -> dict[str, Any]:
        """What was set beside the name and the label."""
        return dict(self.model_extra or {})


class Tune(Part):
    """Fine-tuning of the student's adapters; the same for every method of a run (METHODS 2.1)."""

    epochs: int = Field(3, ge=1, le=10000, description="Passes over the training split. Seeking: 3.")
    batch_size: int = Field(64, ge=1, le=65536, description="Examples per optimiser step. Seeking: 64.")
    micro_batch: int = Field(64, ge=1, le=65536, description="Examples per forward pass; less needs less memory.")
    learning_rate: float = Field(3e-4, gt=0, le=1, description="AdamW's peak rate. Seeking: 3e-4.")
    warmup: float = Field(0.03, ge=0, lt=1, description="Share of steps with a rising rate. Seeking: 3 %.")
    weight_decay: float = Field(
        0.0, ge=0, le=1, description="AdamW's weight decay. LaTen's own training has 0.05, whatever stands here."
    )
    max_length: Length = 512


class Benchmark(Named):
    """A public benchmark by its name, from a hub or from records of one's own in its publishers' fields."""

    name: str = Field(
        min_length=1,
        max_length=200,
        description="A task or group of lm-eval (gsm8k, mmlu, …), or humaneval, mbpp, super_ni; `paraknow benchmarks`.",
    )
    file: str | None = Field(
        None,
        min_length=1,
        max_length=1000,
        description="Test records: .jsonl, .jsonl.gz, .json, .parquet or a folder of them. None: from a hub.",
    )
    shots: int | None = Field(
        None, ge=0, le=100, description="Worked examples before each question. None: the benchmark's own number."
    )
    shots_file: str | None = Field(
        None,
        min_length=1,
        max_length=1000,
        description="Records the worked examples come from. None: a train or dev file in the folder, else the test "
        "records without the item itself.",
    )
    chat: bool | None = Field(None, description="Use the chat template. None: where the model's tokenizer has one.")
    limit: int | None = Field(
        None, ge=1, description="At most so many items of each of its tasks (subjects). None: evaluate.limit."
    )
    max_tokens: int | None = Field(
        None, ge=1, le=131072, description="Longest generated answer in tokens. None: the benchmark's own."
    )
    label: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.,-]{0,39}$", description="What it is called in tables; else its name."
    )


class Evaluate(Part):
    """What every model of the run is measured on."""

    suites: tuple[TaskName, ...] | None = Field(
        None,
        max_length=200,
        description="Tasks whose test split is used; the run's own by default, none where it is empty and benchmarks "
        "are named.",
    )
    benchmarks: tuple[Benchmark, ...] = Field(
        (),
        max_length=200,
        description="Public benchmarks, by name or as {name, file, shots, shots_file, chat, limit, …}.",
    )
    limit: int | None = Field(None, ge=1, description="At most so many test items per suite and group.")
    batch_size: Annotated[int, Field(ge=1, le=65536)] | Literal["auto"] = Field(
        128, description=f"Requests per forward pass. auto: as many as fit on a GPU; {CPU_BATCH} on a CPU."
    )
    run_code: bool = Field(
        False, description="Let humaneval and mbpp run the code that models write, in a sandbox on this machine."
    )
    reuse: bool = Field(
        True, description="Take over what is known of an unchanged teacher or student on the same items."
    )
    resamples: int = Field(2000, ge=200, le=100000, description="Bootstrap resamples for paired intervals.")

    @model_validator(mode="after")
    def _benchmarks_have_names(self) -> Evaluate:
        titles = [b.title for b in self.benchmarks]
        if twice := next((t for t in titles if titles.count(t) > 1), None):
            raise ValueError(f"benchmarks name {twice!r} twice; give one of them a label")
        return self


Waiting = Literal["device", "auto", "offload"]


class Placement(Part):
    """Where the layers of a model that does not fit wait (docs/memory.md). All work is done on one device."""

    teacher: Waiting = Field(
        "device",
        description="device: on the device itself. auto: there while it has room, then on other GPUs, in host memory, "
        "on disk. offload: none of them there, but in host memory, or on disk where the device is a CPU.",
    )
    student: Waiting = Field("device", description="The same for the student.")


class RunConfig(Part):
    """Everything a run depends on."""

    name: str = Field("", max_length=200, description="A title for the run.")
    pair: Pair
    task: tuple[TaskName, ...] = Field(
        min_length=1,
        max_length=200,
        description="demo:people, a .jsonl file, a .csv fact table, a folder, or hub:org/name.",
    )
    locate: Locate = Locate()
    similarity: Similarity = Similarity()
    method: MethodChoice = MethodChoice(name="seeking")
    baselines: tuple[MethodChoice, ...] = Field(
        (), max_length=200, description="Other methods, run with the same data and steps."
    )
    controls: tuple[Annotated[str, Field(max_length=100)], ...] = Field(
        ("zero", "noise", "random_window"),
        max_length=200,
        description="Controls of the method; a gain counts only above all of them.",
    )
    tune: Tune = Tune()
    evaluate: Evaluate = Evaluate()
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Draws seeds, splits, random starts and the order of batches.")
    seeds: tuple[Annotated[int, Field(ge=0, le=2**31 - 1)], ...] | None = Field(
        None,
        min_length=1,
        max_length=1000,
        description="Repeat every method with each of these; locating uses `seed` for all.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU where there is one.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Type the weights are loaded in.")
    placement: Placement = Placement()

    _one_task = field_validator("task", mode="before")(lambda value: (value,) if isinstance(value, str) else value)

    @property
    def run_seeds(self) -> tuple[int, ...]:
        """The seeds methods are repeated with."""
        return self.seeds if self.seeds else (self.seed,)

    @property
    def suites(self) -> tuple[str, ...]:
        """The tasks that are evaluated: none only where benchmarks are measured instead."""
        if self.evaluate.suites == () and self.evaluate.benchmarks:
            return ()
        return self.evaluate.suites or self.task

    @property
    def located_on(self) -> tuple[str, ...]:
        """The tasks whose seeds locate."""
        return self.locate.task or self.task

    @property
    def all_tasks(self) -> tuple[str, ...]:
        """Every task the run reads, each once."""
        return tuple(dict.fromkeys((*self.task, *self.suites, *self.located_on)))

    @model_validator(mode="after")
    def _no_repeats(self) -> RunConfig:
        lists = {"seeds": self.seeds, "task": self.task, "locate.task": self.locate.task, "controls": self.controls}
        for field, given in lists.items():
            values = given or ()
            if len(set(values)) != len(values):
                raise ValueError(f"{field} names something twice")
        return self


def parse(values: Any, where: str = "config") -> RunConfig:
    """A RunConfig from plain values. Raises InputError: one sentence naming the first wrong field."""
    if not isinstance(values, dict):
        raise InputError(f"{where}: expected a mapping of settings such as 'pair:' and 'task:'.")
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{where}: {explain(error, RunConfig)}") from None


def load(path: Path, overrides: list[str] | None = None) -> RunConfig:
    """A RunConfig from a YAML file, with `a.b=value` overrides (values are YAML).

    Raises InputError: the file cannot be read, is not YAML (yamls.py), or a field is wrong.
    """
    return parse(overridden(yamls.read(path), overrides), str(path))


def overridden(values: Any, overrides: list[str] | None) -> Any:
    """Plain values of a config with `a.b=value` put in (values are YAML). Raises InputError for one that is no such."""
    values = copy.deepcopy(values)
    for override in overrides or []:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise InputError(f"--set {override!r}: expected key=value, such as locate.seeds=16.")
        _assign(values, key.split("."), yamls.parse(text, f"--set {override!r}: the value"), override)
    return values


def changed(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """The config with other values at some dotted paths. Raises InputError for a value that is none."""
    values = config.model_dump(mode="json")
    for path, value in changes.items():
        _assign(values, path.split("."), value, path)
    return parse(values, "settings")


def _assign(values: Any, keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        if not isinstance(values, dict):
            break
        inner = values.setdefault(key, {})
        if isinstance(inner, str) and key == "method":  # `method: seeking` is short for its name
            inner = values[key] = {"name": inner}
        values = inner
    if not isinstance(values, dict):
        raise InputError(f"--set {override!r}: {'.'.join(keys[:-1]) or 'the config'} holds no settings.")
    values[keys[-1]] = value


def dump(config: RunConfig) -> str:
    """The config as YAML, every default written out.

    But not `locate.task` where it is the run's own, nor `placement` and settings of memory where they are the defaults:
    texts of runs are compared (calibrate.existing), and those from before there were such settings must stay equal.
    """
    values = config.model_dump(mode="json")
    for name in ("task", "groups", "accumulators", "checkpointing"):
        if values["locate"][name] == Locate.model_fields[name].default:
            del values["locate"][name]
    if config.placement == Placement():
        del values["placement"]
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
