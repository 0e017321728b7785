"""Item by item, the numbers of lm-eval's own command line on the same task, model and records."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from paraknow import data, models
from paraknow.config import Benchmark
from paraknow.evaluate import benchmarks, catalogue, harness, public
from tests import fresh
from tests.evaluate import public_records as made

TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] "
TOKENS = 12  # of a generated answer
SUITES = {name: data.load_task(name).test[:5] for name in ("demo:people", "demo:sum")}


@pytest.fixture(scope="module")
def folders(checkpoint, tmp_path_factory) -> dict[bool, Path]:
    """A tiny random model without a chat template, and with one."""
    plain = checkpoint("llama", max_position_embeddings=1024)
    chat = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(plain, chat)
    (chat / "chat_template.jinja").write_text(TEMPLATE)
    return {False: plain, True: chat}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("records")
    return {
        "gsm8k": made.write(folder / "gsm_test.jsonl", made.gsm8k(5)),
        "gsm8k shots": made.write(folder / "gsm_train.jsonl", made.gsm8k(9, 100)),
        "mmlu": made.write(folder / "mmlu_test.jsonl", made.mmlu(4)),
        "mmlu shots": made.write(folder / "mmlu_dev.jsonl", made.mmlu(3, 50)),
    }


def own_yaml(name: str, shots: int, test: str, train: str) -> dict[str, Any]:
    """lm-eval's YAML of a task with records from files, as one writes it for its command line."""
    leaf = catalogue.leaves(name)[0]
    values: dict[str, Any] = {
        "include": str(leaf.path),
        "task": f"local_{name}_{shots}",
        "tag": None,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": test, "train": train, "dev": train}},
        "num_fewshot": shots,
    }
    if leaf.generated:
        values["generation_kwargs"] = {**leaf.settings["generation_kwargs"], "max_gen_toks": TOKENS}
    return values


@pytest.fixture(scope="module")
def lm_eval(tmp_path_factory) -> Iterator[fresh.Forks]:
    """lm-eval's command line, in forks of a process that has imported it, with a home of their own."""
    with pytest.MonkeyPatch.context() as patch, fresh.Forks("lm_eval") as forks:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("OMP_NUM_THREADS", "1")
        forks.start()
        yield forks


def command_line(
    lm_eval: fresh.Forks, model: Path, tasks: list[dict[str, Any]], folder: Path, *more: str
) -> dict[str, list[dict]]:
    """Samples that `python -m lm_eval` leaves, by task, in the order of items."""
    for task in tasks:
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump(task))
    line = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu", "--batch_size", "16"]
    line += ["--model_args", f"pretrained={model},dtype=float32", "--include_path", str(folder), "--log_samples"]
    line += ["--tasks", ",".join(t["task"] for t in tasks), "--output_path", str(folder / "out"), *more]
    done = subprocess.run(lm_eval.forked(line), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {}
    for task in tasks:
        (path,) = folder.glob(f"out/**/samples_{task['task']}_*.jsonl")
        found[task["task"]] = [json.loads(x) for x in path.read_text().splitlines()]
    return found


def ours(folder: Path, files: dict[str, str], shots: int, chat: bool, batch: int = 4) -> Any:
    loaded = models.load(str(folder), device="cpu")
    asked = [
        Benchmark(
            name=name,
            file=files[name],
            shots=shots,
            shots_file=files[f"{name} shots"] if shots else None,
            chat=chat,
            max_tokens=TOKENS,
        )
        for name in ("gsm8k", "mmlu")
    ]
    return public.evaluate(loaded, [benchmarks.plan(b) for b in asked], batch)


def compare_generated(frame: Any, samples: list[dict]) -> None:
    for name, part in (("strict-match", "gsm8k"), ("flexible-extract", "gsm8k/flexible-extract")):
        rows = frame[frame.task == part].sort_values("doc_id")
        theirs = sorted((s for s in samples if s["filter"] == name), key=lambda s: s["doc_id"])
        assert len(rows) == len(theirs) == 5
        for row, sample in zip(rows.itertuples(), theirs, strict=True):
            assert row.prompt == sample["arguments"]["gen_args_0"]["arg_0"]
            assert row.raw == sample["resps"][0][0] and row.answer == sample["filtered_resps"][0].strip()
            assert row.correct == bool(sample["exact_match"]) and row.doc_hash == sample["doc_hash"]


def compare_ranked(rows: Any, theirs: list[dict]) -> None:
    assert len(rows) == len(theirs) > 0
    for row, sample in zip(rows.itertuples(), theirs, strict=True):
        scores = [float(r[0]) for r in sample["filtered_resps"]]
        assert row.prompt == sample["arguments"]["gen_args_0"]["arg_0"]
        if row.candidates is None:
            assert row.logprob == pytest.approx(scores[0], abs=1e-4)
        else:
            assert row.candidate_logprobs == pytest.approx(scores, abs=1e-4)
        assert row.correct == bool(sample["acc"])


def test_items_equal_the_command_line(lm_eval, folders, files, tmp_path):
    """gsm8k and two subjects of mmlu, 0 and 2 worked examples, and a demo suite of both kinds."""
    tasks = []
    for shots in (0, 2):
        tasks.append(own_yaml("gsm8k", shots, files["gsm8k"], files["gsm8k shots"]))
        for subject in made.SUBJECTS[:2]:
            parted = {}
            for key, split in (("mmlu", "test"), ("mmlu shots", "dev")):
                kept = [r for line in Path(files[key]).read_text().splitlines() if (r := json.loads(line))]
                rows = [r for r in kept if r["subject"] == subject]
                parted[split] = made.write(tmp_path / f"{subject}_{split}.jsonl", rows)
            tasks.append(own_yaml(f"mmlu_{subject}", shots, parted["test"], parted["dev"]))
    loaded = models.load(str(folders[False]), device="cpu")
    docs = {k: v for s in SUITES.values() for k, v in harness.documents(s, loaded.tokenizer).items()}
    for kind, rows in docs.items():
        path = Path(catalogue.__file__).parent / "tasks" / f"{kind}.yaml"
        values = {"include": str(path), "task": f"demo_{kind}", "dataset_path": "json"}
        values["dataset_kwargs"] = {"data_files": {"test": made.write(tmp_path / f"{kind}.jsonl", rows)}}
        tasks.append(values)
    theirs = command_line(lm_eval, folders[False], tasks, tmp_path)
    for shots in (0, 2):
        frame = ours(folders[False], files, shots, chat=False)
        compare_generated(frame, theirs[f"local_gsm8k_{shots}"])
        for subject in made.SUBJECTS[:2]:
            rows = frame[frame.subtask == f"mmlu_{subject}"].sort_values("doc_id")
            compare_ranked(rows, theirs[f"local_mmlu_{subject}_{shots}"])
            assert list(rows.doc_hash) == [s["doc_hash"] for s in theirs[f"local_mmlu_{subject}_{shots}"]]
    suites = harness.evaluate(loaded, SUITES, batch_size=4)
    for kind, missing in (("choice", False), ("answer", True)):
        rows = suites[suites.candidates.isna() == missing].sort_values("doc_id")
        compare_ranked(rows, theirs[f"demo_{kind}"])


def test_items_equal_the_command_line_with_a_chat_template(folders, files, tmp_path, lm_eval):
    task = own_yaml("gsm8k", 2, files["gsm8k"], files["gsm8k shots"])
    ranked = own_yaml("mmlu_anatomy", 0, made.write(tmp_path / "t.jsonl", made.mmlu(4)[::2]), files["mmlu shots"])
    theirs = command_line(lm_eval, folders[True], [task, ranked], tmp_path, "--apply_chat_template")
    frame = ours(folders[True], files, 2, chat=True)
    assert "[user] Question: Ada" in frame.prompt[0] and "[assistant] She has" in frame.prompt[0]
    compare_generated(frame, theirs["local_gsm8k_2"])
    zero = ours(folders[True], files, 0, chat=True)
    compare_ranked(zero[zero.subtask == "mmlu_anatomy"].sort_values("doc_id"), theirs["local_mmlu_anatomy_0"])


def test_what_is_drawn_at_random_equals_the_command_line(lm_eval, folders, tmp_path):
    """gpqa shuffles the choices of its items; self-consistency samples its answers."""
    data_files = {"gpqa": made.write(tmp_path / "gpqa.jsonl", made.gpqa(6))}
    data_files["gsm8k"] = made.write(tmp_path / "gsm8k.jsonl", made.gsm8k(2))
    names = {"gpqa": "gpqa_main_zeroshot", "gsm8k": "gsm8k_cot_self_consistency"}
    for key, name in names.items():
        task = own_yaml(name, 0, data_files[key], data_files[key])
        folder = tmp_path / key
        folder.mkdir()
        (theirs,) = command_line(lm_eval, folders[False], [task], folder).values()
        asked = Benchmark(name=name, file=data_files[key], shots=0, max_tokens=TOKENS)
        frame = public.evaluate(models.load(str(folders[False]), device="cpu"), [benchmarks.plan(asked)], 16)
        if key == "gpqa":
            compare_ranked(frame, theirs)
            assert list(frame.doc_hash) == [s["doc_hash"] for s in theirs]
            continue
        rows = frame[frame.task == name]
        first = [s for s in theirs if s["filter"] == "score-first"]
        assert list(rows.prompt) == [s["arguments"]["gen_args_0"]["arg_0"] for s in first]
        assert list(rows.raw) == [s["resps"][0][0] for s in first]
