"""What a benchmark asks, worked out without lm-eval, and every input that is refused."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from paraknow import cli, config
from paraknow.checks import check
from paraknow.config import Benchmark
from paraknow.errors import InputError
from paraknow.evaluate import benchmarks, catalogue, own, records
from tests.evaluate import public_records as made

PAIR = {"pair": {"teacher": "demo:teacher", "student": "demo:student"}, "task": "demo:people"}


def plan(name: str, file: str | None, run_code: bool = True, **more: Any) -> benchmarks.Plan:
    return benchmarks.plan(Benchmark(name=name, file=file, **more), None, run_code)


@pytest.fixture
def gsm8k(tmp_path: Path) -> str:
    return made.write(tmp_path / "gsm.jsonl", made.gsm8k(4))


# -- names -------------------------------------------------------------------------------------------------


def test_names_are_those_of_the_installed_lm_eval():
    known = catalogue.index()
    assert {"gsm8k", "mmlu", "arc_easy", "mmlu_stem_tasks"} <= set(known)
    assert [known[n].kind for n in ("gsm8k", "mmlu", "mmlu_stem_tasks", "squadv2")] == [
        "task",
        "group",
        "tag",
        "python",
    ]
    leaves = catalogue.leaves("mmlu")
    assert len(leaves) == 57 and {leaf.part for leaf in leaves} == {"stem", "humanities", "social sciences", "other"}
    about = catalogue.summary("gsm8k")
    assert about["source"] == "openai/gsm8k" and about["metric"] == "exact_match" and about["shots"] == 5
    assert catalogue.summary("humaneval")["needs"] == "evaluate.run_code"
    assert catalogue.summary("humaneval_plus")["needs"].startswith("refused")


def test_planning_imports_neither_torch_nor_lm_eval(gsm8k):
    code = f"""if True:
        import sys
        from paraknow.config import Benchmark
        from paraknow.evaluate import benchmarks
        assert benchmarks.plan(Benchmark(name="gsm8k", file={gsm8k!r}, shots=2)).items == 4
        bad = [m for m in ("torch", "transformers", "lm_eval", "datasets") if m in sys.modules]
        sys.exit(f"{{bad}}" if bad else 0)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gsm9k", "did you mean 'gsm8k'?"),
        ("qqqqqqqq", "`paraknow benchmarks NAME` searches them"),
        ("humaneval_plus", "with no sandbox around it"),
        ("wikitext", "measures perplexity"),
    ],
)
def test_names_that_are_refused(name, said):
    with pytest.raises(InputError, match=said):
        plan(name, None)


def test_code_needs_the_switch(tmp_path):
    file = made.write(tmp_path / "h.jsonl", made.humaneval())
    with pytest.raises(InputError, match=r"evaluate.run_code: true \(--run-code\)"):
        plan("humaneval", file, run_code=False)
    assert plan("humaneval", file).items == 2


# -- records -----------------------------------------------------------------------------------------------


def test_records_from_every_kind_of_file(tmp_path):
    rows = made.gsm8k(3)
    made.write(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as stream:
        stream.write("".join(json.dumps(r) + "\n" for r in rows))
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    for ending in ("jsonl", "json", "jsonl.gz", "parquet"):
        assert [r.values for r in records.read(tmp_path / f"a.{ending}")] == rows
    folder = tmp_path / "folder"
    folder.mkdir()
    made.write(folder / "test.jsonl", rows)
    made.write(folder / "train-00000.jsonl", made.gsm8k(7, 50))
    found = plan("gsm8k", str(folder), shots=5).pieces[0]
    assert len(found.splits["test"]) == 3 and len(found.splits["shots"]) == 7


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"question": "a", "answer": "b"}\n{"question": "a"}\n', "line 2: the field 'answer' is missing"),
        ('{"question": "a", "answer": "b"}\nnonsense\n', "line 2: not valid JSON"),
        ("[1]\n", "line 1: expected a JSON object, got list"),
        ("", "holds no records"),
    ],
)
def test_bad_records_are_named_with_their_line(tmp_path, text, said):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        plan("gsm8k", str(path))


def test_bad_files(tmp_path, gsm8k):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.jsonl.gz").write_text("no gzip")
    (tmp_path / "a.parquet").write_text("no parquet")
    for name, said in (
        ("none.jsonl", "was not found; accepted are"),
        ("a.txt", "accepted are a .jsonl"),
        ("empty", "the folder holds no records"),
        ("a.jsonl.gz", "cannot be read"),
        ("a.parquet", "cannot be read"),
    ):
        with pytest.raises(InputError, match=said):
            plan("gsm8k", str(tmp_path / name))
    with pytest.raises(InputError, match="reads it with its own code, so it takes no file"):
        plan("squadv2", gsm8k)
    with pytest.raises(InputError, match="shots_file goes with a file"):
        plan("gsm8k", None, shots_file=gsm8k)


def test_mmlu_in_one_file_is_parted_by_subject(tmp_path):
    found = plan("mmlu", made.write(tmp_path / "m.jsonl", made.mmlu(3)))
    assert [p.leaf.name for p in found.pieces] == ["mmlu_anatomy", "mmlu_astronomy"]
    assert found.items == 6 and found.requests == 24 and found.generated == 0
    only = plan("mmlu_anatomy", str(tmp_path / "m.jsonl"))
    assert only.items == 3
    for change, said in (
        ({"subject": "anatomi"}, "line 1: 'anatomi' is no subject of the benchmark; did you mean 'anatomy'"),
        ({"subject": None}, "line 1: the field 'subject' is missing"),
        ({"answer": 4}, "line 1: answer 4 is none of 0 to 3"),
        ({"answer": True}, "line 1: answer True is none"),
        ({"choices": ["a", "b"]}, "line 1: .*choices"),
    ):
        path = made.write(tmp_path / "bad.jsonl", [{**made.mmlu(1)[0], **change}])
        with pytest.raises(InputError, match=said):
            plan("mmlu", path)


# -- worked examples -----------------------------------------------------------------------------------------


def test_examples_never_are_the_item_itself(tmp_path, gsm8k):
    same = plan("gsm8k", gsm8k, shots=3).pieces[0]
    assert same.overrides["fewshot_split"] == same.overrides["test_split"] == "test"  # lm-eval leaves the item out
    with pytest.raises(InputError, match="4 shots are more than the 4 examples there are, the item itself left out"):
        plan("gsm8k", gsm8k, shots=4)
    train = made.write(tmp_path / "train.jsonl", made.gsm8k(5, 3))  # the first is the last test record
    with pytest.raises(InputError, match="1 records of shots_file are test records too"):
        plan("gsm8k", gsm8k, shots=2, shots_file=train)
    with pytest.raises(InputError, match="6 shots are more than the 5 examples"):
        plan("gsm8k", gsm8k, shots=6, shots_file=train)
    with pytest.raises(InputError, match="without worked examples; leave shots at 0"):
        plan("hrm8k_gsm8k", None, shots=2)
    with pytest.raises(InputError, match="it has no worked examples"):
        plan("humaneval", made.write(tmp_path / "h.jsonl", made.humaneval()), shots=1)
    assert plan("gsm8k_cot", gsm8k).pieces[0].overrides["num_fewshot"] == 8  # they stand in its YAML
    with pytest.raises(InputError, match="9 shots are more than its 8 worked examples"):
        plan("gsm8k_cot", gsm8k, shots=9)


def test_mbpp_keeps_its_publishers_division(tmp_path):
    whole = made.write(tmp_path / "mbpp.jsonl", made.mbpp([*range(1, 16), 511, 601]))
    piece = plan("mbpp", whole).pieces[0]
    assert [d["task_id"] for d in piece.splits["test"]] == [11, 12, 13, 14, 15]
    assert [d["task_id"] for d in piece.splits["prompt"]][:3] == [2, 3, 4] and piece.overrides["num_fewshot"] == 3
    assert "\r" not in piece.splits["test"][0]["code"]
    few = made.write(tmp_path / "few.jsonl", made.mbpp([601, 602]))
    assert plan("mbpp", few, shots=0).items == 2
    with pytest.raises(InputError, match="3 shots are more than the 0 examples there are"):
        plan("mbpp", few)
    for change, said in (
        ({"test_list": "assert"}, "line 1: the field 'test_list' is not a list"),
        ({"test_list": ["assert ("]}, "line 1: the field 'test_list' is not Python"),
        ({"test_setup_code": "x = ("}, "line 1: the field 'test_setup_code' is not Python"),
        ({"test_imports": ["import math", "import"]}, "line 1: the field 'test_imports' is not Python"),
        ({"test_imports": "import math"}, "line 1: the field 'test_imports' is not a list"),
        ({"text": ""}, "line 1: the field 'text' is empty"),
        ({"task_id": "x"}, "'task_id' is not a number"),
    ):
        with pytest.raises(InputError, match=said):
            plan("mbpp", made.write(tmp_path / "bad.jsonl", [{**made.mbpp([20])[0], **change}]), shots=0)


def test_super_ni_from_task_files_and_flattened(tmp_path):
    for number in (1, 2):
        (tmp_path / f"task{number}.json").write_text(json.dumps(made.super_ni(3)))
    found = plan("super_ni", str(tmp_path), limit=2)
    assert found.items == 4  # of each task file
    doc = found.pieces[0].splits["test"][0]
    assert doc["prompt"].startswith("Say the colour of the thing.\n\nInput: thing 0\nOutput: red\n\n")
    assert doc["prompt"].endswith("Input: object 0\nOutput:") and doc["references"] == ["Blue.", "navy"]
    with pytest.raises(InputError, match="3 shots are more than its 2 positive examples"):
        plan("super_ni", str(tmp_path), shots=3)
    flat = [
        {"task_name": "t", "id": "1", "definition": "Say it.", "inputs": "a", "targets": target}
        for target in ("x", "y")
    ]
    piece = plan("super_ni", made.write(tmp_path / "flat.jsonl", flat)).pieces[0]
    assert [d["references"] for d in piece.splits["test"]] == [["x", "y"]]
    with pytest.raises(InputError, match="hold no worked examples; set shots to 0"):
        plan("super_ni", str(tmp_path / "flat.jsonl"), shots=2)
    del flat[1]["definition"]
    with pytest.raises(InputError, match="line 2: the field 'definition' is missing"):
        plan("super_ni", made.write(tmp_path / "flat.jsonl", flat))


def test_exact_match_and_rouge():
    assert own.exact_match(" The  Blue! ", ["the blue"]) and not own.exact_match("blue", ["red", "green"])
    assert not own.exact_match("", ["?"]) and not own.exact_match("-", ["+"]) and own.exact_match(" + ", ["-", "+"])
    assert own.rouge_l("a b c d", ["x", "a c d e"]) == pytest.approx(0.75)  # 3 of 4 in order, both ways
    assert own.rouge_l("", ["a"]) == 0.0


def test_code_is_taken_out_of_a_chat():
    doc = {"entry_point": "f"}
    assert own.written("    return 1", doc) == "    return 1"
    assert own.written("Sure:\n```python\ndef f():\n    return 1\n```\nDone.", doc) == "\ndef f():\n    return 1\n"
    assert own.written("```\n    return 1\n", doc) == "    return 1\n"
    assert own.written("```py\ndef add(x): ...\n```", {"task_id": 1}) == "def add(x): ...\n"


HUMAN = {"entry_point": "add", "prompt": 'def add(a, b):\n    """Add them."""\n'}
ALONE = "def add(a, b):\n    return a + b\n"


@pytest.mark.parametrize(
    ("text", "doc", "code"),
    [
        ("    return a+b\n```\n", HUMAN, "    return a+b\n"),
        ("    return a+b\n```", HUMAN, "    return a+b\n"),
        ("    return a+b\n```\n\nThis function adds.\n", HUMAN, "    return a+b\n"),
        ("    return a + b\n\n```python\nadd(1,2)\n```\n", HUMAN, "    return a + b\n\n"),
        (f"{ALONE}```\nadd(1, 2)\n```\n", HUMAN, f"\n{ALONE}"),
        ("    return '```\\n' + a\n", HUMAN, "    return '```\\n' + a\n"),
        (f"{ALONE}```\n\nThis adds.\n", {}, ALONE),
        (f"{ALONE}\n```python\nadd(1, 2)\n```", {}, f"{ALONE}\n"),
        (f"Sure\n```python\n{ALONE}```\nDone.", {}, ALONE),
        (f"Sure\n```python\n{ALONE}```\nDone.", HUMAN, f"\n{ALONE}"),
        (f"# Solution\n```python\n{ALONE}```", {}, ALONE),
        (f"Here it is:\n\n```python\n{ALONE}```\nIt adds.", HUMAN, f"\n{ALONE}"),
    ],
)
def test_code_before_a_lone_fence_is_kept(text, doc, code):
    assert own.written(text, doc) == code


# -- configs -----------------------------------------------------------------------------------------------


def parsed(*named: Any, **more: Any) -> config.RunConfig:
    return config.parse({**PAIR, "evaluate": {"benchmarks": list(named), **more}})


def test_configs(gsm8k):
    wanted = parsed("arc_easy", {"name": "gsm8k", "file": gsm8k, "label": "gsm8k-0", "shots": 0}, batch_size="auto")
    assert [b.title for b in wanted.evaluate.benchmarks] == ["arc_easy", "gsm8k-0"]
    assert config.parse(config.RunConfig.model_validate(wanted.model_dump(mode="json")).model_dump()) == wanted
    assert wanted.suites == ("demo:people",) and parsed("gsm8k", suites=[]).suites == ()
    assert parsed(suites=[]).suites == ("demo:people",)  # something is measured
    for values, said in (
        ({"benchmarks": ["gsm8k", "gsm8k"]}, "benchmarks name 'gsm8k' twice"),
        ({"benchmarks": [{"file": "x"}]}, "'evaluate.benchmarks.0.name' is missing"),
        ({"benchmarks": [{"name": "gsm8k", "shots": -1}]}, "evaluate.benchmarks.0.shots"),
        ({"benchmarks": [{"name": "gsm8k", "max_tokens": 0}]}, "evaluate.benchmarks.0.max_tokens"),
        ({"batch_size": "many"}, "evaluate.batch_size"),
    ):
        with pytest.raises(InputError, match=said):
            config.parse({**PAIR, "evaluate": values})


def test_checks_before_models_are_loaded(gsm8k):
    check(parsed({"name": "gsm8k", "file": gsm8k, "shots": 0}))
    with pytest.raises(InputError, match="answers of 1024 tokens leave no room for a question in the context"):
        check(parsed({"name": "gsm8k", "file": gsm8k, "shots": 0, "max_tokens": 1024}))
    with pytest.raises(InputError, match="the tokenizer of 'demo:teacher' has no chat template"):
        check(parsed({"name": "gsm8k", "file": gsm8k, "shots": 0, "chat": True}))


def command(capsys: Any, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    shown = capsys.readouterr()
    return int(stop.value.code or 0), shown.out, shown.err


def test_the_command_line_names_and_refuses(capsys, tmp_path, gsm8k, runs, monkeypatch):
    code, out, _ = command(capsys, "benchmarks", "gsm8k", "--json")
    rows = json.loads(out)["benchmarks"]
    assert code == 0 and rows[0]["name"] == "gsm8k" and len(rows) > 3
    assert command(capsys, "benchmarks", "gsm99k")[0] == 2
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps(PAIR))
    code, _, err = command(capsys, "evaluate", str(path), "--shots", "3")
    assert code == 2 and "--shots goes with --benchmark" in err
    code, _, err = command(capsys, "evaluate", str(path), "--benchmark", f"gsm8k={gsm8k}", "--shots", "9")
    assert code == 2 and "9 shots are more than the 4 examples" in err
    # what huggingface_hub read from HF_HUB_OFFLINE when it was imported holds here: no hub is asked
    code, _, err = command(capsys, "evaluate", str(path), "--benchmark", "gsm8k")
    assert code == 2 and "gsm8k: the dataset cannot be reached" in err and "file: PATH" in err
    assert not runs.exists() or not list(runs.iterdir())


def test_real_records(benchmark_data):
    assert plan("gsm8k", str(benchmark_data / "gsm8k" / "test.jsonl")).items == 1319
    shots = str(benchmark_data / "gsm8k" / "train_2000.jsonl")
    assert plan("gsm8k", str(benchmark_data / "gsm8k" / "test.jsonl"), shots=8, shots_file=shots, limit=50).items == 50
    assert plan("mmlu", str(benchmark_data / "mmlu" / "sample_400.jsonl")).requests == 1600
    assert plan("humaneval", str(benchmark_data / "humaneval" / "HumanEval.jsonl.gz")).items == 164
