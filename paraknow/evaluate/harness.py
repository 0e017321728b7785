"""Evaluation through lm-eval (METHODS 4.4): our own tasks from local YAML, every item kept.

Examples with choices are ranked by candidate log-probability; the others count as correct where the whole
answer is the greedy continuation. Both include the end token.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.resources import files
from typing import Any
from weakref import WeakKeyDictionary

import pandas as pd
import yaml

from paraknow import data
from paraknow.config import CPU_BATCH
from paraknow.errors import RunError
from paraknow.models import Loaded
from paraknow.progress import Progress, silent

os.environ.setdefault("DISABLE_MULTIPROC", "1")  # lm-eval would start a process pool for its own stderr

ENCODED = 2**24  # characters of texts whose tokens are kept, per tokenizer: below 100 MB


class _Texts:
    """Tokens of texts as one tokenizer encodes them: a prompt is encoded once, not for each of its candidates and each
    of a run's models. All are forgotten where they grow beyond ENCODED."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, Any], array[int]] = {}
        self.size = 0

    def of(self, key: tuple[str, Any], encode: Callable[[str], list[int]]) -> list[int]:
        if (found := self.kept.get(key)) is None:
            if self.size > ENCODED:
                self.kept.clear()
                self.size = 0
            found = self.kept[key] = array("i", encode(key[0]))
            self.size += len(key[0])
        return found.tolist()


_encoded: WeakKeyDictionary[Any, _Texts] = WeakKeyDictionary()


def forget() -> None:
    """Forget the tokens of texts."""
    _encoded.clear()


COLUMNS = (
    "task group doc_id doc_hash model seed prompt target answer correct logprob answer_tokens "
    "candidates candidate_logprobs part subtask raw score note"
).split()


def documents(examples: Sequence[data.Example], tokenizer: Any) -> dict[str, list[dict]]:
    """lm-eval documents by task kind (choice, answer). `doc` numbers them over both kinds."""
    end = tokenizer.eos_token or ""
    kinds: dict[str, list[dict]] = {"choice": [], "answer": []}
    for number, example in enumerate(examples):
        prompt, answer = data.render(example, tokenizer)
        space = answer[: len(answer) - len(answer.lstrip())] if not example.raw else ""
        common = {
            "doc": number,
            "key": item_hash(example),
            "group": example.group,
            "prompt": prompt,
            "target": answer + end,
        }
        if example.choices:
            candidates = [space + choice + end for choice in example.choices]
            gold = example.choices.index(example.answer)
            kinds["choice"].append({**common, "candidates": candidates, "gold": gold})
        else:
            kinds["answer"].append(common)
    return {kind: docs for kind, docs in kinds.items() if docs}


def item_hash(example: data.Example) -> str:
    """Hash of what is asked, whatever a model's own template makes of it: items are paired by it."""
    return hashlib.sha256(repr((example.messages, example.answer, example.choices, example.group)).encode()).hexdigest()


def make_task(key: str, kind: str, docs: list[dict]) -> Any:
    """An lm-eval task named `key` over `docs`, configured by our YAML of that kind."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    config = yaml.safe_load((files("paraknow.evaluate") / "tasks" / f"{kind}.yaml").read_text(encoding="utf-8"))
    dataset = {"test": Dataset.from_list(docs)}
    return ConfigurableTask(config={**config, "task": key, "custom_dataset": lambda **_: dataset})


@contextmanager
def quiet() -> Iterator[None]:
    """lm-eval logs several lines per task and prints some; the run has its own log, and stdout may be JSON."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "lm-eval")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def answer_lengths(docs: list[dict], harness: Any) -> list[int]:
    """Tokens of each target as the harness splits it from its prompt."""
    return [max(1, len(harness._encode_pair(d["prompt"], d["target"])[1])) for d in docs]


def evaluate(
    loaded: Loaded,
    suites: Mapping[str, Sequence[data.Example]],
    batch_size: int | str = 128,
    model: Any = None,
    progress: Progress = silent,
) -> pd.DataFrame:
    """One row per item of every suite, without the columns `model` and `seed`.

    `model` stands in for `loaded.model` (an adapted student). `logprob` is the target's summed
    log-probability in nats over `answer_tokens` tokens; `answer` is the best candidate, or the target where
    the greedy continuation is exactly it, else missing: the harness did not ask for it.
    """
    from lm_eval import evaluator

    tokenizer = loaded.tokenizer
    jobs = {
        f"{name}|{kind}": (name, docs)
        for name, examples in suites.items()
        for kind, docs in documents(examples, tokenizer).items()
    }
    total = sum(len(doc.get("candidates", [0])) for _, docs in jobs.values() for doc in docs)
    with quiet():
        start = tokenizer.bos_token_id
        bos = start is not None and list(tokenizer("")["input_ids"])[:1] == [start]
        harness = reporting(loaded, model, batch_size, total, progress, add_bos_token=bos)
        tasks = {key: make_task(key, key.rpartition("|")[2], docs) for key, (_, docs) in jobs.items()}
        # simple_evaluate would index thousands of tasks and list installed packages first: seconds per model
        result: Any = evaluator.evaluate(
            lm=harness, task_dict={"tasks": tasks, "groups": {}, "group_map": {}}, bootstrap_iters=0, log_samples=True
        )
    progress(total, total)
    rows: list[dict] = []
    for key, (name, docs) in jobs.items():
        lengths = answer_lengths(docs, harness)
        samples = sorted(result["samples"][key], key=lambda sample: sample["doc_id"])
        rows += [_row(name, sample, tokenizer.eos_token or "", lengths[sample["doc_id"]]) for sample in samples]
    return pd.DataFrame(rows, columns=[c for c in COLUMNS if c not in ("model", "seed")])


def reporting(loaded: Loaded, model: Any, batch_size: int | str, total: int, progress: Progress, **more: Any) -> Any:
    """lm-eval's own Hugging Face model, without its bars, reporting every forward pass and every generated token.

    `more` goes to lm-eval's HFLM. Raises RunError, while text is generated, where logits hold NaN.
    """
    import torch
    from lm_eval.models.huggingface import HFLM

    from paraknow.evaluate import shared_prompts

    scored = model if model is not None else loaded.model
    window = getattr(loaded.model.config, "sliding_window", None)  # beyond it, places in a padded cache would count
    known = _encoded.setdefault(loaded.tokenizer, _Texts())
    shortest = min(loaded.architecture.context, window or loaded.architecture.context)

    class Reporting(HFLM):
        done = 0

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood(requests, disable_tqdm=True)

        def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
            groups: list[list[int]] = []
            if isinstance(self.batch_size, int) and shared_prompts.can_share(scored):
                groups = shared_prompts.shared(requests, shortest)
            found = shared_prompts.score(scored, requests, groups, int(self.batch_size), self._scored) if groups else {}
            rest = [k for k in range(len(requests)) if k not in found]
            if rest:
                answers = super()._loglikelihood_tokens([requests[k] for k in rest], *args, **kwargs)
                found.update(zip(rest, answers, strict=True))
            return [found[k] for k in range(len(requests))]

        def tok_encode(self, string: str, *args: Any, **kwargs: Any) -> list[int]:
            if args or kwargs:
                return super().tok_encode(string, *args, **kwargs)
            return known.of((string, self.add_bos_token), super().tok_encode)

        def _scored(self, count: int) -> None:
            self.done = min(total, self.done + count)
            progress(self.done, total)

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().generate_until(requests, disable_tqdm=True)

        def _model_call(self, inps: Any, *args: Any, **kwargs: Any) -> Any:
            logits = super()._model_call(inps, *args, **kwargs)
            self._scored(len(inps))
            return logits

        def _model_generate(self, context: Any, max_length: int, stop: Any, **kwargs: Any) -> Any:
            rows, begun = context.shape

            def each(ids: Any, scores: Any) -> Any:
                if bool(torch.isnan(scores).any()):
                    raise RunError("evaluate: the model gives NaN while it generates text.")
                written = rows * (ids.shape[1] - begun) // max(1, max_length - begun)
                progress(min(total, self.done + written), total)
                return scores

            made = super()._model_generate(context, max_length, stop, logits_processor=[each], **kwargs)
            self._scored(rows)
            return made

    return Reporting(
        pretrained=scored,
        tokenizer=loaded.tokenizer,
        batch_size=CPU_BATCH if batch_size == "auto" and loaded.device.type == "cpu" else batch_size,
        softmax_dtype="float32",  # half types give candidates ties that they do not have
        max_length=loaded.architecture.context,
        **more,
    )


def _row(task: str, sample: dict, end: str, tokens: int) -> dict:
    doc = sample["doc"]
    scores = [float(response[0][0]) for response in sample["resps"]]
    candidates = doc.get("candidates")
    if candidates:
        best = max(range(len(scores)), key=scores.__getitem__)
        answer, logprob = candidates[best], scores[doc["gold"]]
    else:
        answer, logprob = (doc["target"] if sample["acc"] else None), scores[0]
    return {
        "task": task,
        "group": doc["group"],
        "doc_id": doc["doc"],
        "doc_hash": doc["key"],
        "prompt": doc["prompt"],
        "target": doc["target"].removesuffix(end).strip(),
        "answer": answer.removesuffix(end).strip() if answer is not None else None,
        "correct": bool(sample["acc"]),
        "logprob": logprob,
        "answer_tokens": tokens,
        "candidates": [c.removesuffix(end).strip() for c in candidates] if candidates else None,
        "candidate_logprobs": scores if candidates else None,
    }
