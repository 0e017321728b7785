"""Answer a question about a run with its pair of models: by the worker from the mailbox, or in the foreground.

No file of the run is written and its lock is not held; the student is afterwards what it was.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from paraknow import access, data, files, limits, methods, prompts, results
from paraknow.checkpoints import Checkpoint, find, weights_hash
from paraknow.config import RunConfig
from paraknow.errors import Cancelled, InputError, ParaKnowError, ResourceError
from paraknow.fitting import Free, gib
from paraknow.locate.located import seed_examples
from paraknow.memory import Case
from paraknow.models import Loaded
from paraknow.progress import Progress, part, silent
from paraknow.runs import pairs, questions, queue, store
from paraknow.runs.asks import Ask
from paraknow.runs.pairs import Warm
from paraknow.runs.questions import Answer, Question
from paraknow.runs.store import Run

SAY_EVERY = 0.5  # seconds between two writings of how far it is
SIDES = ("teacher", "student")


def post(ask: Ask, warm: Warm) -> None:
    """Answer a question of the mailbox, under the limits of whoever asked. `warm` keeps the pair for the next one.

    Raises what `answer` raises, Cancelled where nobody waits any more.
    """
    question = ask.question()
    if question is None:
        raise InputError("the question cannot be read any more; ask again.")
    run = _run(question, ask.root)
    began = time.monotonic()
    said = [-math.inf]

    def look(message: str) -> None:
        if ask.cancelled:
            raise Cancelled("the question was cancelled.")
        limits.check_ask_time(time.monotonic() - began)
        if time.monotonic() - said[0] >= SAY_EVERY:
            said[0] = time.monotonic()
            ask.say(message)

    def progress(step: int, total: int, message: str = "", **values: float) -> None:
        look(f"{message}, {step} of {total}" if message else f"{step} of {total}")

    beside = Run(ask.root / run.id)  # locks lie beside the mailbox, also for a run recorded with the package
    with access.of_run(ask.folder, run.folder), queue.device_held(beside, run.config(), True, look):
        ask.done(*answer(question, run, warm, progress))


def answer(
    question: Question, run: Run, warm: Warm | None = None, progress: Progress = silent
) -> tuple[Answer, np.ndarray | None]:
    """What a question's answer is, and the values of one about single weights.

    Raises InputError (the models or data are not those of the run any more, the prompt does not fit …), ResourceError,
    RunError.
    """
    config = run.config()
    models = _pair(question, run, config, {} if warm is None else warm, progress)
    if isinstance(question, questions.SensitivityQuestion):
        return _sensitivity(question, models, progress), None
    if isinstance(question, questions.AnswersQuestion):
        return _answers(question, run, config, models, progress), None
    return _region(question, run, config, models, progress)


def _run(question: Question, root: Path) -> Run:
    run = store.named(question.run, root)
    if run is None:
        raise InputError(f"run {question.run} is not here any more.")
    return run


# -- the pair --------------------------------------------------------------------------------------------


def _pair(question: Question, run: Run, config: RunConfig, warm: Warm, progress: Progress) -> dict[str, Loaded]:
    """The run's two models, from memory where they are there. Raises InputError where they are not the run's own."""
    pair = find(config.pair.teacher), find(config.pair.student)
    _refuse_others(run, pair)
    free = Free.now(config.device)
    case = Case(*pair, methods.candidates(config), free.device, {})
    room = free.bytes + pairs.held(warm, config, pair, free.device)
    stage = "load" if isinstance(question, questions.AnswersQuestion) else "locate"  # what it is most like
    if isinstance(question, questions.SensitivityQuestion):  # a prompt is never cut; it has no more tokens than bytes
        most = min(len(f"{question.prompt}{question.answer}".encode()), max(c.architecture.context for c in pair))
        longest = max(config.locate.max_length, most)
        config = config.model_copy(update={"locate": config.locate.model_copy(update={"max_length": longest})})
    if (need := case.need(config).stages[stage].total) > room:
        raise ResourceError(f"memory: this needs about {gib(need)} on {free.device}, and {gib(room)} are free.")
    models = dict(warm.get("models", {}))
    pairs.load(models, config, case, lambda number, title: progress(number, 2, f"loading {title}"))
    pairs.keep(warm, config, models)
    return models


def _refuse_others(run: Run, pair: tuple[Checkpoint, Checkpoint]) -> None:
    """Models of the same names may be others by now, or others on this machine."""
    try:
        known = files.read_json(run.path("environment.json"))["models"]
    except (OSError, ValueError, KeyError):
        return  # a run that has loaded nothing has nothing to be held against
    for name, checkpoint in zip(SIDES, pair, strict=True):
        facts = known.get(name) if isinstance(known, dict) else None
        before = facts.get("sha256") if isinstance(facts, dict) else None
        if before and before != weights_hash(checkpoint):
            raise InputError(f"the {name} {checkpoint.title} is not the one of this run: its weights are others now.")


# -- the answers -----------------------------------------------------------------------------------------


def _sensitivity(
    question: questions.SensitivityQuestion, models: dict[str, Loaded], progress: Progress
) -> questions.SensitivityAnswer:
    surprises, cells, wanted = [], [], list(dict.fromkeys(question.models))
    for number, name in enumerate(wanted):
        progress(number, len(wanted), name)
        found = prompts.sensitivity_of(models[name], question.prompt, question.answer, question.raw)
        surprises.append(questions.Surprise(model=name, loss=found.loss, tokens=_tokens(found.tokens)))
        cells += [questions.Cell.model_validate({"model": name, **row}) for row in found.table.to_dict("records")]
    return questions.SensitivityAnswer(models=surprises, cells=cells)


def _tokens(found: prompts.Tokens) -> list[questions.Token]:
    return [questions.Token(text=text, logprob=value) for text, value in found]


def _answers(
    question: questions.AnswersQuestion, run: Run, config: RunConfig, models: dict[str, Loaded], progress: Progress
) -> questions.AnswersAnswer:
    """Teacher, student and every transferred student. What cannot be tried is named with its reason."""
    candidates = methods.candidates(config)
    seed = config.run_seeds[0] if question.seed is None else question.seed
    if seed not in config.run_seeds:
        raise InputError(f"seed {seed}: choose of this run's seeds, {', '.join(map(str, config.run_seeds))}.")
    whole = len(candidates) + 2

    def said(number: int, label: str, loaded: Loaded, seed: int | None = None, model: Any = None) -> questions.Said:
        report = part(progress, number * 1000, whole * 1000, label, scale=1000)
        given = (question.answer, question.max_tokens, model, question.raw)
        return _said(label, seed, prompts.answer_of(loaded, question.prompt, *given, report))

    found = [said(number, name, models[name]) for number, name in enumerate(SIDES)]
    for number, candidate in enumerate(candidates):
        folder = run.path("adapters", candidate.label, str(seed))
        if reason := _missing(run, folder):
            found.append(questions.Said(label=candidate.label, seed=seed, missing=reason))
            continue
        progress(number + 2, whole, candidate.label)
        try:
            with results.applied(models["teacher"], models["student"], candidate.method, folder) as model:
                found.append(said(number + 2, candidate.label, models["student"], seed, model))
        except (Cancelled, InputError):
            raise
        except ParaKnowError as error:  # one damaged adapter does not keep the others from answering
            found.append(questions.Said(label=candidate.label, seed=seed, missing=str(error)))
    return questions.AnswersAnswer(models=found)


def _missing(run: Run, folder: Path) -> str | None:
    """Why a transferred student cannot be tried."""
    if run.imported:
        return "this run was imported, and weights from elsewhere are not loaded."
    if not folder.is_dir():
        return "its weights are not in this run's folder."
    if results.kind(folder) == "decoder":
        return "it mixes both models' logits and has no weights that could be loaded."
    return None


def _said(label: str, seed: int | None, found: prompts.Answered) -> questions.Said:
    expected = sum(value for _, value in found.expected) if found.expected else math.nan
    return questions.Said(
        label=label,
        seed=seed,
        text=found.text,
        tokens=len(found.tokens),
        ended=found.ended,
        mean_logprob=found.mean_logprob,
        expected=expected if math.isfinite(expected) else None,  # -inf: it holds the answer impossible
        expected_tokens=len(found.expected) or None,
        rank=found.rank,
    )


def _region(
    question: questions.RegionQuestion, run: Run, config: RunConfig, models: dict[str, Loaded], progress: Progress
) -> tuple[questions.RegionAnswer, np.ndarray]:
    """As locating summed them: over the seed examples of all its tasks."""
    loaded, items = models[question.model], []
    for name in config.located_on:
        task = _same_data(run, data.load_task(name, config.seed))
        items += seed_examples(loaded, task, config.locate, config.seed, f"{name} seeds").items
    layer = loaded.architecture.layer_of(question.module, question.layer)
    report: Callable[..., None] = part(progress, 0, len(items), f"{question.module} of layer {layer}")
    values = prompts.region(loaded, items, layer, question.module, question.rows, question.cols, report)
    return questions.RegionAnswer(rows=question.rows, cols=question.cols, examples=len(items)), values.numpy()


def _same_data(run: Run, task: data.Task) -> data.Task:
    try:
        known = files.read_json(run.path("environment.json"))["data"]
    except (OSError, ValueError, KeyError):
        return task
    before = known.get(task.name) if isinstance(known, dict) else None
    if before and before != task.hash:
        raise InputError(f"task {task.name}: its data are not those of this run any more.")
    return task
