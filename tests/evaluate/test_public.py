"""Benchmarks measured: our own three, whole runs with every kind of result, and what the tables make of them."""

from __future__ import annotations

import json
import random
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from paraknow import config, data, files, models, results
from paraknow.checks import check
from paraknow.config import Benchmark
from paraknow.errors import InputError, RunError
from paraknow.evaluate import benchmarks, deltas, harness, public
from paraknow.methods import logit_fusion
from paraknow.runs import store, worker
from tests.evaluate import public_records as made


@pytest.fixture(scope="module")
def pair(checkpoint):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    folders = [checkpoint("llama", max_position_embeddings=1024)]
    folders.append(checkpoint("llama", seed=1, max_position_embeddings=1024, **sizes))
    return [models.load(str(f), device="cpu") for f in folders]


@pytest.fixture
def stub(monkeypatch) -> list[Any]:
    """A sandbox that runs nothing: a trial passes where its record's number is even. Returns what it was given."""
    given: list[Any] = []
    module = ModuleType("paraknow.evaluate.sandbox")

    def trial(record: dict, completion: str) -> SimpleNamespace:
        given.append((record, completion))
        return SimpleNamespace(even=int(str(record["task_id"]).rpartition("/")[2]) % 2 == 0)

    def run(trials: list, progress: Any = None, **_: Any) -> list[SimpleNamespace]:
        progress(len(trials), len(trials))
        names = {True: ("passed", ""), False: ("failed", "AssertionError")}
        return [SimpleNamespace(passed=t.even, status=names[t.even][0], said=names[t.even][1]) for t in trials]

    for name, value in {"humaneval": trial, "mbpp": trial, "run": run, "available": lambda: None}.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "paraknow.evaluate.sandbox", module)
    return given


def measured(loaded, *named: dict, model: Any = None, batch: Any = 4, progress: Any = None) -> pd.DataFrame:
    asked = [benchmarks.plan(Benchmark(**values), None, True) for values in named]
    more = {"progress": progress} if progress else {}
    return public.evaluate(loaded, asked, batch, model, **more)


def test_code_goes_through_the_sandbox(pair, stub, tmp_path):
    human = made.write(tmp_path / "h.jsonl", made.humaneval(2))
    mbpp = made.write(tmp_path / "m.jsonl", made.mbpp([2, 3, 4, 12, 13]))
    seen: list[tuple[int, int]] = []
    frame = measured(
        pair[0],
        {"name": "humaneval", "file": human, "max_tokens": 8},
        {"name": "mbpp", "file": mbpp, "max_tokens": 8},
        progress=lambda step, total, *_, **__: seen.append((step, total)),
    )
    assert list(frame.columns) == [c for c in harness.COLUMNS if c not in ("model", "seed")]
    assert list(frame.correct) == [True, False, True, False]
    assert list(frame.note) == ["passed", "failed: AssertionError"] * 2
    assert frame.logprob.isna().all() and frame.raw.map(len).gt(0).all() and list(frame.answer) == list(frame.raw)
    assert frame.prompt[0] == made.humaneval(1)[0]["prompt"]
    assert "# Task: Write a function that adds 2." in frame.prompt[2] and frame.prompt[2].count("# End") == 3
    assert frame.prompt[2].endswith("assert add(0) == 12\n# Solution:\n")
    assert stub[2][0]["test_list"] == made.mbpp([12])[0]["test_list"] and "def add" in stub[2][0]["code"]
    assert seen[-1][0] == seen[-1][1] and seen == sorted(seen)


def test_super_ni_is_scored_both_ways(pair, tmp_path, monkeypatch):
    path = tmp_path / "task.json"
    path.write_text(json.dumps(made.super_ni(2)))
    frame = measured(pair[0], {"name": "super_ni", "file": str(path), "max_tokens": 8})
    assert not frame.correct.any() and frame.score.between(0, 1).all() and frame.note.isna().all()
    plan = benchmarks.plan(Benchmark(name="super_ni", file=str(path)))
    doc = plan.pieces[0].splits["test"][0]
    sample = {"doc_id": 0, "doc": doc, "doc_hash": "x", "arguments": [("p",)], "target": "Blue."}
    rows = public._scored(plan, [{**sample, "resps": [[" blue"]]}], lambda *_, **__: None)
    assert rows[0]["correct"] and rows[0]["score"] == 1.0 and rows[0]["answer"] == "blue"


def test_batches_do_not_matter_and_items_repeat(pair, tmp_path):
    gsm = {"name": "gsm8k", "file": made.write(tmp_path / "g.jsonl", made.gsm8k(6)), "shots": 2, "max_tokens": 8}
    mmlu = {"name": "mmlu", "file": made.write(tmp_path / "m.jsonl", made.mmlu(3))}
    one, two = measured(pair[0], gsm, mmlu, batch=1), measured(pair[0], gsm, mmlu, batch="auto")
    assert list(one.prompt) == list(two.prompt) and list(one.doc_hash) == list(two.doc_hash)
    assert list(one.raw.dropna()) == list(two.raw.dropna())
    ranked = one.candidates.notna()
    np.testing.assert_allclose(one.logprob[ranked].astype(float), two.logprob[ranked].astype(float), atol=1e-4)
    for row in one[one.task == "gsm8k"].itertuples():
        question = row.prompt.rpartition("Question: ")[2]
        assert question not in row.prompt.removesuffix(f"Question: {question}")  # it is no example of its own


def test_a_hub_gives_the_same_items_as_files(pair, tmp_path, monkeypatch):
    """With what a hub would send in its place: the same prompts and answers, for a task, a group and one of ours."""
    import datasets

    sent = {
        "openai/gsm8k": {"train": made.gsm8k(6, 50), "test": made.gsm8k(3)},
        "cais/mmlu": {"dev": made.mmlu(3, 50)[::2], "test": made.mmlu(2)[::2]},
        "google-research-datasets/mbpp": {"prompt": made.mbpp([2, 3, 4]), "test": made.mbpp([12, 13])},
    }

    def fake(path: str, name: str | None = None, **_: Any) -> Any:
        return datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in sent[path].items()})

    monkeypatch.setattr(datasets, "load_dataset", fake)
    public._loaded.cache_clear()
    hub = measured(pair[0], {"name": "gsm8k", "shots": 2, "max_tokens": 6}, {"name": "mmlu_stem", "limit": 1})
    test, train = (made.write(tmp_path / f"{k}.jsonl", v) for k, v in reversed(sent["openai/gsm8k"].items()))
    file = measured(pair[0], {"name": "gsm8k", "file": test, "shots": 2, "shots_file": train, "max_tokens": 6})
    for column in ("task", "doc_id", "doc_hash", "prompt", "answer", "raw", "correct"):
        assert list(hub[hub.task.str.startswith("gsm8k")][column]) == list(file[column])
    default = measured(pair[0], {"name": "gsm8k", "max_tokens": 6})  # not what was set before
    assert default.prompt[0].count("Question: ") == 6
    ranked = hub[hub.task == "mmlu_stem"]
    assert len(ranked) == ranked.doc_id.nunique() == 19 == ranked.subtask.nunique()
    plan = benchmarks.plan(Benchmark(name="mbpp"), None, True)
    assert plan.items == 2 and [d["task_id"] for d in plan.pieces[0].splits["prompt"]] == [2, 3, 4]
    public._loaded.cache_clear()


def test_a_template_that_is_missing_is_said(pair, tmp_path):
    file = made.write(tmp_path / "g.jsonl", made.gsm8k(2))
    with pytest.raises(InputError, match="chat is asked for, and the tokenizer of"):
        measured(pair[0], {"name": "gsm8k", "file": file, "shots": 0, "chat": True})


def test_a_metric_that_is_not_right_or_wrong_is_refused():
    plan = benchmarks.plan(Benchmark(name="arc_easy"))
    samples = [{"metrics": ["f1", "acc"], "f1": (0, 1), "acc": 1.0}, {"metrics": ["f1", "acc"], "f1": (1, 1), "acc": 0}]
    assert public.headline(samples, plan) == "acc"
    with pytest.raises(RunError, match="arc_easy is measured by bleu, which is not right or wrong"):
        public.headline([{"metrics": ["bleu"], "bleu": 0.3}], plan)


def test_metrics_where_lower_is_better_are_not_right_or_wrong(tmp_path):
    plan = benchmarks.plan(Benchmark(name="arc_easy"))
    samples = [{"metrics": ["bias", "acc"], "bias": 1.0, "acc": 0.0}]
    assert public.headline(samples, plan, {"bias"}) == "acc"
    with pytest.raises(RunError, match="arc_easy is measured by bias, acc, which is not right or wrong"):
        public.headline(samples, plan, {"bias", "acc"})
    pairs = [{"sent_more": "They are late.", "sent_less": "We are late.", "bias_type": "age"}]
    file = made.write(tmp_path / "c.jsonl", pairs)
    with pytest.raises(InputError, match="crows_pairs_english: it is measured by likelihood_diff, pct_stereotype, wh"):
        public.tasks(benchmarks.plan(Benchmark(name="crows_pairs_english", file=file)))


def test_documents_that_are_shuffled_are_the_same_for_every_model(pair, tmp_path):
    """gpqa draws the order of an item's choices."""
    named = {"name": "gpqa_main_zeroshot", "file": made.write(tmp_path / "g.jsonl", made.gpqa(6))}
    (task,) = public.tasks(benchmarks.plan(Benchmark(**named))).values()
    assert list(task.eval_docs) == list(task.eval_docs) == list(task.task_docs) == list(task.fewshot_docs())
    random.seed(5)
    one = measured(pair[0], named)
    random.seed(6)
    two = measured(pair[1], named)
    assert list(one.doc_hash) == list(two.doc_hash) and list(one.prompt) == list(two.prompt)
    for row in one.itertuples():  # the target is where the prompt has it
        assert f"{row.target} right {row.doc_id}\n" in row.prompt
    assert one.target.nunique() > 1


def test_sampled_text_repeats_and_chance_is_left_as_found(pair, tmp_path):
    file = made.write(tmp_path / "g.jsonl", made.gsm8k(1))
    named = {"name": "gsm8k_cot_self_consistency", "file": file, "shots": 0, "max_tokens": 4}
    frames = []
    for seed in (5, 6):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
        frames.append(measured(pair[0], named, batch=64))
        assert random.getstate() == before[0] and (np.random.get_state()[1] == before[1]).all()
        assert torch.equal(torch.get_rng_state(), before[2])
    assert list(frames[0].raw) == list(frames[1].raw)


def test_models_that_give_nan_are_refused_while_they_write(pair, tmp_path, checkpoint):
    broken = models.load(pair[0].checkpoint.spec, device="cpu")
    with torch.no_grad():
        broken.model.lm_head.weight[0] = float("nan")
    file = made.write(tmp_path / "g.jsonl", made.gsm8k(2))
    with pytest.raises(RunError, match="NaN while it generates"):
        measured(broken, {"name": "gsm8k", "file": file, "shots": 0, "max_tokens": 4})


def test_a_decoder_writes_what_its_logits_say(pair):
    """With the student's logits alone, its text is that of transformers' own greedy search, padding and all."""
    student = pair[1]
    alone = logit_fusion.METHOD.__class__(**{**vars(logit_fusion.METHOD), "decode": lambda t, s, v: s})
    fused = results.Fused(student, student, alone, {})
    ids = torch.tensor([[0, 0, 5, 9, 44], [7, 8, 9, 10, 11]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    more = {"max_length": 17, "pad_token_id": 0, "do_sample": False}
    mine = fused.generate(ids, attention_mask=mask, stopping_criteria=[], **more)
    theirs = student.model.generate(input_ids=ids, attention_mask=mask, use_cache=True, **more)
    assert torch.equal(mine, theirs) and mine.shape == (2, 17)
    with pytest.raises(RunError, match="at random"):
        fused.generate(ids, attention_mask=mask, max_length=9, stopping_criteria=[], do_sample=True)


@pytest.fixture(scope="module")
def done(pair, tmp_path_factory):
    """A run with an adapter, a checkpoint and a decoder, measured on a suite and two benchmarks."""
    folder = tmp_path_factory.mktemp("public")
    values = {
        "pair": {"teacher": pair[0].checkpoint.spec, "student": pair[1].checkpoint.spec},
        "task": "demo:people",
        "method": {"name": "seeking", "rank": 2},
        "baselines": ["sft", "logit_fusion"],
        "controls": ["zero"],
        "locate": {"seeds": 2, "max_length": 64, "neurons": "none"},
        "similarity": {"parts": []},
        "tune": {"epochs": 1, "max_length": 64},
        "evaluate": {
            "suites": ["demo:sum"],
            "limit": 2,
            "benchmarks": [
                {"name": "gsm8k", "file": made.write(folder / "g.jsonl", made.gsm8k(5)), "shots": 1, "max_tokens": 6},
                {"name": "mmlu", "file": made.write(folder / "m.jsonl", [*made.mmlu(3), *virology()])},
            ],
        },
    }
    run = store.create(config.parse(values), folder / "runs", state="running")
    worker.execute(run)
    return run


def virology() -> list[dict]:
    return [{**r, "subject": "virology"} for r in made.mmlu(2)[::2]]


def test_every_kind_of_model_is_measured_on_the_same_items(done):
    items = pd.read_parquet(done.path("evaluate", "items.parquet"))
    labels = ["teacher", "student", "seeking", "sft", "logit_fusion", "zero"]
    assert list(dict.fromkeys(items.model)) == labels
    assert list(dict.fromkeys(items.task)) == ["demo:sum", "gsm8k", "gsm8k/flexible-extract", "mmlu"]
    counts = items.groupby(["model", "task"]).size().unstack()
    assert (counts["gsm8k"] == 2).all() and (counts["mmlu"] == 6).all()  # two of each subject
    assert (items.groupby(["task", "doc_id"]).doc_hash.nunique() == 1).all()
    written = items[items.task == "gsm8k"]
    assert written.raw.notna().all() and written.logprob.isna().all()
    environment = files.read_json(done.path("environment.json"))
    assert {"benchmark gsm8k", "benchmark mmlu"} <= set(environment["data"])


def test_rows_of_benchmarks_and_of_their_parts(done):
    rows = files.read_json(done.path("evaluate", "deltas.json"))["rows"]
    assert list(dict.fromkeys((r["suite"], r["group"]) for r in rows if r["suite"] != "demo:sum")) == [
        ("gsm8k", "all"),
        ("gsm8k/flexible-extract", "all"),
        ("mmlu", "all"),
        ("mmlu", "other"),
        ("mmlu", "stem"),
    ]
    items = pd.read_parquet(done.path("evaluate", "items.parquet"))
    for row in (r for r in rows if r["suite"] == "mmlu"):
        part = items[(items.task == "mmlu") & (items.model == row["model"])]
        part = part if row["group"] == "all" else part[part.part == row["group"]]
        assert row["n"] == len(part) and row["accuracy"] == pytest.approx(part.correct.mean())
        assert row["loss"] == pytest.approx(-part.logprob.sum() / part.answer_tokens.sum())
    generated = [r for r in rows if r["suite"].startswith("gsm8k")]
    assert all(r["loss"] is None and r["bits"] is None and r["share"] is None for r in generated)
    assert all(r["share_missing"] for r in generated if r["model"] != "student")


def test_a_resumed_run_refuses_other_records(done, tmp_path):
    wanted = done.config()
    path = wanted.evaluate.benchmarks[0].file
    assert path is not None
    before = benchmarks.plans(wanted.evaluate)[0].hash
    changed = wanted.evaluate.benchmarks[0].model_copy(
        update={"file": made.write(tmp_path / "other.jsonl", made.gsm8k(5, 1))}
    )
    assert benchmarks.plan(changed, wanted.evaluate.limit).hash != before
    same = changed.model_copy(update={"file": made.write(tmp_path / "same.jsonl", made.gsm8k(5))})
    assert benchmarks.plan(same, wanted.evaluate.limit).hash == before  # wherever the file lies


def test_items_of_older_runs_have_no_parts(pair):
    base = harness.evaluate(pair[1], {"demo:sum": data.load_task("demo:sum").test[:3]})
    old = base.drop(columns=["part", "subtask", "raw", "score", "note"]).assign(model="student", seed=-1)
    (row,) = deltas.rows(old, {})
    assert row["n"] == 3 and row["loss"] > 0


def test_the_sandbox_says_why_it_cannot(stub, tmp_path, monkeypatch):
    sandbox = sys.modules["paraknow.evaluate.sandbox"]
    monkeypatch.setattr(sandbox, "available", lambda: "generated code cannot be isolated here.")
    values = {
        "pair": {"teacher": "demo:teacher", "student": "demo:student"},
        "task": "demo:people",
        "evaluate": {
            "benchmarks": [{"name": "humaneval", "file": made.write(tmp_path / "h.jsonl", made.humaneval())}],
            "run_code": True,
        },
    }
    with pytest.raises(InputError, match="humaneval: generated code cannot be isolated here"):
        check(config.parse(values))
