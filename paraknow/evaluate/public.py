"""Public benchmarks through lm-eval: its tasks on a plan's records, every item kept (METHODS 4.4).

An item counts as correct by its task's first metric that is 0 or 1 for every item and better where higher, under its
task's first filter (acc; gsm8k: exact_match after strict-match). Other filters are rows of their own, named
<benchmark>/<filter>.
"""

from __future__ import annotations

import functools
import importlib
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from paraknow import chance
from paraknow.errors import InputError, RunError
from paraknow.evaluate import catalogue, harness, own
from paraknow.evaluate.benchmarks import Plan, no_template, unreachable
from paraknow.models import Loaded
from paraknow.progress import Progress, part, silent

FEWSHOT_SEED = 1234  # lm-eval's own defaults: this one draws worked examples
RANDOM_SEED, OTHER_SEED = 0, 1234  # of Python's random; of numpy and torch
Tasks = Mapping[str, Any]


def tasks(plan: Plan, chat: bool = False) -> Tasks:
    """The plan's lm-eval tasks by name, with the same documents at every call.

    Raises InputError: a hub cannot be reached, records that do not make a table, or a task whose every metric is
    better where lower, so that none says what is right.
    """
    with harness.quiet(), seeded():
        if plan.from_hub:
            made = _from_hub(plan)
        else:
            made = {piece.leaf.name: _local(plan, number, chat) for number, piece in enumerate(plan.pieces)}
            _settle(made)
    for task in made.values():
        if (metrics := task.higher_is_better()) and len(_lower(task)) == len(metrics):
            raise InputError(
                f"evaluate.benchmarks.{plan.benchmark.title}: it is measured by {', '.join(metrics)}, where lower is "
                "better, so no answer is right or wrong; choose another."
            )
    return made


@contextmanager
def seeded() -> Iterator[None]:
    """Chance as lm-eval's command line begins with it; afterwards it goes on as if nothing had been drawn."""
    states = random.getstate(), np.random.get_state()
    try:
        with chance.drawn_from(OTHER_SEED):
            random.seed(RANDOM_SEED)
            np.random.seed(OTHER_SEED)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _settle(made: Tasks) -> None:
    """Have each task make its documents once, in lm-eval's order and from its seed.

    lm-eval makes them anew at every access: a task that shuffles (gpqa's choices) would be asked by one draw and scored
    by another. Its command line is spared by the cache that `datasets` keeps of files, which records in memory lack.
    """
    random.seed(RANDOM_SEED)
    np.random.seed(OTHER_SEED)
    for task in made.values():
        make = task.get_config("process_docs")
        shown = getattr(getattr(task, "fewshot_cfg", None), "process_docs", None)
        once = {f: _once(f) for f in (make, shown) if f is not None}
        if not once:
            continue
        task.set_config(key="process_docs", value=once.get(make))
        if shown is not None:
            task.fewshot_cfg.process_docs = once[shown]
        if hasattr(task, "sampler"):
            task.sampler.df = list(task.fewshot_docs())
        task.task_docs = task.eval_docs


def _once(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same function, which gives what it made before of the same split."""
    made: dict[int, tuple[Any, Any]] = {}

    @functools.wraps(make)
    def kept(split: Any) -> Any:
        if id(split) not in made:
            made[id(split)] = split, make(split)  # the split is held, so that no other gets its id
        return made[id(split)][1]

    return kept


def _lower(task: Any) -> set[str]:
    """Metrics of a task of which a lower value is better."""
    return {name for name, better in (task.higher_is_better() or {}).items() if better is False}


def _from_hub(plan: Plan) -> Tasks:
    try:
        made = _loaded(plan.benchmark.name, (plan.benchmark.shots, plan.benchmark.max_tokens))
    except Exception as error:  # the hub client and lm-eval raise many kinds; all mean the same to the user
        raise unreachable(f"evaluate.benchmarks.{plan.benchmark.title}", plan.benchmark.name, error) from error
    for piece in plan.pieces:
        for key, value in piece.overrides.items():
            made[piece.leaf.name].set_config(key=key, value=value)
    return made


@lru_cache(maxsize=8)
def _loaded(name: str, _settings: tuple[int | None, ...]) -> dict[str, Any]:
    """lm-eval's tasks of a name, their datasets fetched; objects of their own for each way to set them."""
    made = dict(_manager(name).load([name])["tasks"])
    _settle(made)
    return made


@lru_cache(maxsize=8)
def _manager(name: str) -> Any:
    """lm-eval's index of the folders a name needs; of all of them it would take a quarter of a minute."""
    from lm_eval.tasks import TaskManager

    entry = catalogue.find(name)
    found = [leaf.path for leaf in catalogue.leaves(name)] + [entry.path]
    folders: set[Path] = {path.parent for path in found if path is not None}
    top = catalogue.tasks_folder()
    # groups between a name and its tasks lie in their folders or above them
    folders |= {p for f in folders for p in f.parents if top in p.parents}
    kept = [f for f in sorted(folders) if not any(p in folders for p in f.parents)]
    return TaskManager(include_path=[str(f) for f in kept], include_defaults=False)


def _local(plan: Plan, number: int, chat: bool) -> Any:
    """One task on its piece's records."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    piece = plan.pieces[number]
    try:
        dataset = {name: Dataset.from_list(docs) for name, docs in piece.splits.items()}
    except (ValueError, TypeError) as error:  # pyarrow's errors are ValueErrors
        raise InputError(
            f"evaluate.benchmarks.{plan.benchmark.title}: a field has different types in its records ({error})."
        ) from None
    settings = {**piece.overrides, "custom_dataset": lambda **_: dataset}
    name = plan.benchmark.name
    if name not in catalogue.OURS:
        wanted = {"task": piece.leaf.name, **piece.leaf.overrides, **settings}
        manager = _manager(name)
        return manager.load([{"group": "paraknow", "task": [wanted]}])["tasks"][piece.leaf.name]
    if name == "humaneval" and chat:  # an answer in a chat begins with words and holds the whole function
        given = {**piece.leaf.settings["generation_kwargs"], **settings.get("generation_kwargs", {}), "until": []}
        settings |= {"doc_to_text": own.CHAT_HUMANEVAL, "generation_kwargs": given}
    return ConfigurableTask(config={**piece.leaf.settings, "task": name, **settings})


def uses_chat(plan: Plan, loaded: Loaded) -> bool:
    """Whether a model is asked through its chat template. Raises InputError where it is asked for and has none."""
    has = bool(getattr(loaded.tokenizer, "chat_template", None))
    if plan.benchmark.chat and not has:
        raise no_template(plan, loaded.checkpoint.spec)
    return has if plan.benchmark.chat is None else plan.benchmark.chat


def evaluate(
    loaded: Loaded,
    plans: Sequence[Plan],
    batch_size: int | str = 128,
    model: Any = None,
    progress: Progress = silent,
) -> pd.DataFrame:
    """One row per item and filter of every plan, without the columns `model` and `seed`.

    `model` stands in for `loaded.model`. Ranked candidates are kept with their summed log-probabilities in nats; text
    that was generated is kept whole (`raw`) and as the filter left it (`answer`), its log-probability missing.
    `score`: ROUGE-L in [0, 1] for super_ni. `note`: what the sandbox said of code. What is drawn at random is drawn
    from lm-eval's own seeds, set anew for each benchmark. Raises RunError: no metric of a task says item by item what
    is right, or lm-eval refuses it.
    """
    frames = []
    for number, plan in enumerate(plans):
        report = part(progress, number * 1000, len(plans) * 1000, plan.benchmark.title, scale=1000)
        with seeded():
            frames.append(_evaluate(loaded, plan, batch_size, model, report))
    columns = [c for c in harness.COLUMNS if c not in ("model", "seed")]
    return pd.DataFrame([row for frame in frames for row in frame], columns=columns)


def _evaluate(loaded: Loaded, plan: Plan, batch_size: int | str, model: Any, progress: Progress) -> list[dict]:
    from lm_eval import evaluator

    chat = uses_chat(plan, loaded)
    made = tasks(plan, chat)
    for task in made.values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    total = plan.requests or sum(_count(len(task.eval_docs), plan.limit) for task in made.values())
    code = plan.benchmark.name in catalogue.RUN_CODE
    asking = part(progress, 0, 1000, scale=900 if code else 1000)
    with harness.quiet():
        lm = harness.reporting(loaded, model, batch_size, total, asking)
        try:
            result: Any = evaluator.evaluate(
                lm=lm,
                task_dict={"tasks": dict(made), "groups": {}, "group_map": {}},
                limit=plan.limit,
                bootstrap_iters=0,
                log_samples=True,
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,  # as lm-eval's command line does
            )
        except (AssertionError, KeyError, ValueError) as error:
            raise RunError(f"evaluate: lm-eval cannot ask {plan.benchmark.title} ({error}).") from error
    asking(total, total)
    if plan.benchmark.name in catalogue.OURS:
        return _scored(plan, result["samples"][plan.benchmark.name], part(progress, 900, 1000, scale=100))
    rows: list[dict] = []
    first = 0
    parts = {p.leaf.name: p.leaf.part for p in plan.pieces}
    for name, task in made.items():
        samples = sorted(result["samples"][name], key=lambda s: s["doc_id"])
        metric = headline(samples, plan, _lower(task))
        rows += [_row(plan, task, s, metric, lm, first) | {"part": parts.get(name), "subtask": name} for s in samples]
        first += len(task.eval_docs)
    filters = list(dict.fromkeys(row.pop("filter") for row in rows if "filter" in row))
    return rows if len(filters) < 2 else sorted(rows, key=lambda row: row["task"] != plan.benchmark.title)


def _count(size: int, limit: int | None) -> int:
    return size if limit is None else min(size, limit)


def headline(samples: Sequence[Mapping[str, Any]], plan: Plan, lower: Collection[str] = ()) -> str:
    """The first metric whose value is 0 or 1 for every item, but for those where lower is better.

    Raises RunError where there is none.
    """
    for metric in samples[0]["metrics"]:
        if metric not in lower and all(isinstance(s[metric], int | float) and s[metric] in (0, 1) for s in samples):
            return metric
    raise RunError(
        f"evaluate: {plan.benchmark.title} is measured by {', '.join(samples[0]['metrics'])}, which is not right or "
        "wrong item by item, so models cannot be compared on the same items."
    )


def _row(plan: Plan, task: Any, sample: dict, metric: str, lm: Any, first: int) -> dict[str, Any]:
    """One item under one filter. `first`: items of the benchmark's tasks before this one."""
    filters = [f.name for f in task._filters]
    other = sample["filter"] != filters[0]
    row: dict[str, Any] = {
        "task": f"{plan.benchmark.title}/{sample['filter']}" if other else plan.benchmark.title,
        "group": "all",
        "doc_id": first + sample["doc_id"],
        "doc_hash": sample["doc_hash"],
        "prompt": sample["arguments"][0][0],
        "correct": bool(sample[metric]),
        "filter": sample["filter"],
    }
    kind = task.OUTPUT_TYPE
    if kind == "generate_until":
        answer = sample["filtered_resps"][0]
        target = sample["target"]
        return row | {
            "target": str(target[0] if isinstance(target, list) and target else target).strip(),
            "answer": str(answer[0] if isinstance(answer, list) and answer else answer).strip(),
            "raw": sample["resps"][0][0],
        }
    scores = [float(r[0][0]) for r in sample["resps"]]
    if kind == "loglikelihood":
        context, target = sample["arguments"][0][:2]
        greedy = bool(sample["resps"][0][0][1])
        return row | {
            "target": target.strip(),
            "answer": target.strip() if greedy else None,
            "logprob": scores[0],
            "answer_tokens": _tokens(lm, context, target),
        }
    return row | _ranked(task, sample, scores, lm)


def _ranked(task: Any, sample: dict, scores: list[float], lm: Any) -> dict[str, Any]:
    """What is kept of an item whose candidates were ranked by summed log-probability."""
    doc = sample["doc"]
    candidates = [str(c) for c in task.doc_to_choice(doc)]
    scores = scores[: len(candidates)]  # acc_mutual_info asks for each once more without the question
    best = max(range(len(scores)), key=scores.__getitem__)
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    given = [candidates.index(g) if g in candidates else g for g in (gold if isinstance(gold, list) else [gold])]
    known = [g for g in given if isinstance(g, int) and 0 <= g < len(candidates)]
    found: dict[str, Any] = {"answer": candidates[best].strip(), "raw": None}
    if not known:
        return found | {"target": str(gold), "note": "the right answer is not among the candidates"}
    right = max(known, key=scores.__getitem__)
    context, continuation = sample["arguments"][right][:2]
    return found | {
        "target": candidates[right].strip(),
        "logprob": scores[right],
        "answer_tokens": _tokens(lm, context, continuation),
        "candidates": [c.strip() for c in candidates],
        "candidate_logprobs": scores,
    }


def _tokens(lm: Any, context: str, continuation: str) -> int:
    """Tokens of a continuation as lm-eval splits it from its context."""
    return max(1, len(lm._encode_pair(context, continuation)[1])) if context else 1


# -- our own -------------------------------------------------------------------------------------------------


def _scored(plan: Plan, samples: Sequence[dict], progress: Progress) -> list[dict]:
    """Items of humaneval, mbpp and super_ni."""
    samples = sorted(samples, key=lambda s: s["doc_id"])
    name = plan.benchmark.name
    rows = [
        {
            "task": plan.benchmark.title,
            "group": "all",
            "doc_id": s["doc_id"],
            "doc_hash": s["doc_hash"],
            "prompt": s["arguments"][0][0],
            "target": str(s["target"]).removesuffix("\n# End").strip(),
            "raw": s["resps"][0][0],
            "subtask": name,
        }
        for s in samples
    ]
    if name in catalogue.RUN_CODE:
        _run_code(name, samples, rows, progress)
        return rows
    for row, sample in zip(rows, samples, strict=True):
        answer, references = row["raw"].strip(), sample["doc"]["references"]
        row |= {
            "answer": answer,
            "correct": own.exact_match(answer, references),
            "score": own.rouge_l(answer, references),
        }
    return rows


def sandbox() -> Any:
    """The module that runs code models wrote; imported only where that was asked for."""
    return importlib.import_module("paraknow.evaluate.sandbox")


def _run_code(name: str, samples: Sequence[dict], rows: list[dict], progress: Progress) -> None:
    """Put each item's code, verdict and what the sandbox said into its row."""
    runner = sandbox()
    trial: Callable[[dict, str], Any] = getattr(runner, name)
    codes = [own.written(row["raw"], sample["doc"]) for row, sample in zip(rows, samples, strict=True)]
    trials = [trial(sample["doc"], code) for sample, code in zip(samples, codes, strict=True)]
    outcomes = runner.run(trials, progress=progress)
    for row, code, outcome in zip(rows, codes, outcomes, strict=True):
        said = f"{outcome.status}: {outcome.said}" if outcome.said else str(outcome.status)
        row |= {"answer": code, "correct": bool(outcome.passed), "note": said}
