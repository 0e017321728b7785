"""The dry run: true shapes without weights, and estimates that agree with what a real run counts."""

from __future__ import annotations

import json
import math

import pandas as pd
import psutil
import pytest
import yaml

from paraknow import checks, cli, config, data, dryrun, methods, passes, recipes
from paraknow.architecture import from_config
from paraknow.errors import InputError
from paraknow.evaluate.knowledge import limited
from paraknow.recipes import Sizes
from paraknow.runs import store, worker
from tests.test_bad_input import QUICK

# As the models' pages on the hub give them.
PUBLISHED = {
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-7b-chat-hf": 6_738_415_616,
    "meta-llama/Llama-2-13b-hf": 13_015_864_320,
    "meta-llama/Llama-2-13b-chat-hf": 13_015_864_320,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "princeton-nlp/Sheared-LLaMA-1.3B": 1_345_423_360,
}


def parse(**changes) -> config.RunConfig:
    return config.parse({**QUICK, **changes})


def literal_count(values: dict) -> int:
    """Parameters of a Llama-like model, written out."""
    d, f, v = values["hidden_size"], values["intermediate_size"], values["vocab_size"]
    heads, groups = values["num_attention_heads"], values["num_key_value_heads"]
    e = values.get("head_dim", d // heads)
    layer = d * heads * e * 2 + d * groups * e * 2 + 3 * d * f + 2 * d
    if values["model_type"] == "qwen2":
        layer += heads * e + 2 * groups * e  # biases of q, k and v
    return values["num_hidden_layers"] * layer + d + v * d * (1 if values["tie_word_embeddings"] else 2)


def test_the_shipped_table_gives_the_published_parameter_counts():
    for spec, entry in recipes.model_configs().items():
        shapes, parameters = dryrun.on_meta(json.dumps(entry["config"], sort_keys=True))
        assert parameters == literal_count(entry["config"]) == PUBLISHED.get(spec, parameters)
        dryrun._check_shapes(spec, from_config(entry["config"], spec), shapes)
    assert (
        round(literal_count(recipes.model_configs()["nvidia/Llama-3.1-Minitron-4B-Width-Base"]["config"]) / 1e9, 2)
        == 4.51
    )
    assert (
        round(literal_count(recipes.model_configs()["nvidia/Llama-3.1-Minitron-4B-Depth-Base"]["config"]) / 1e9, 2)
        == 4.54
    )
    assert round(literal_count(recipes.model_configs()["princeton-nlp/Sheared-LLaMA-2.7B"]["config"]) / 1e9, 2) == 2.70


def test_every_recipe_at_its_true_shapes():
    before, missing = psutil.Process().memory_info().rss, set()
    for recipe in recipes.catalogue().values():
        if recipe.method not in methods.catalogue():
            missing.add(recipe.method)
            continue
        found = dryrun.dry_run(recipe.parsed())
        assert [m["spec"] for m in found.models] == [recipe.pair.teacher, recipe.pair.student]
        assert all(math.prod(b["student"]) == round(b["share"] * math.prod(b["teacher"])) for b in found.blocks)
        assert all(need > 1e9 for need in found.memory.values())
        assert found.flops["teacher"] > 1e14 and found.flops["student"] > 1e13
        # What is unknown is what the recipe does not say, and nothing else; code has no training split.
        sizes = recipe.task.sizes
        assert any("train" in line for line in found.unknown) == (sizes.train is None)
        json.dumps(found.as_dict(), allow_nan=False)
    assert psutil.Process().memory_info().rss - before < 2**30, "the meta device holds no weights"
    assert not missing, f"recipes name methods that do not exist: {', '.join(sorted(missing))}"


def test_numbers_of_a_recipe_by_hand():
    """Llama-2 13B to 7B on GSM8K, counted on paper."""
    found = dryrun.dry_run(recipes.find("llama2-gsm8k-seeking").parsed())
    row = next(m for m in found.methods if m["model"] == "seeking")
    per_layer = 4 * (4096 + 4096) + 3 * (4096 + 11008)
    assert row["trainable"] == 32 * 16 * per_layer and row["tuning_steps"] == 3 * math.ceil(6726 / 64)
    assert row["tuning_examples"] == 6726 and row["added"] == 0
    sensitivity = next(p for p in found.passes if p["what"] == "sensitivity" and p["model"] == "teacher")
    n = 13_015_864_320 - 32000 * 5120  # the embedding is looked up, not multiplied
    assert sensitivity["flops"] == 32 * 512 * (2 * n + 2 * n + 2 * 13_015_864_320)
    tuned = next(p for p in found.passes if p["what"] == "gaussian" and p["stage"] == "tune")
    n = 6_738_415_616 - 32000 * 4096
    assert tuned["flops"] == 3 * 6726 * 512 * (2 * n + 2 * n + 2 * row["trainable"])
    assert [p["forward"] for p in found.passes if p["stage"] == "evaluate"] == [2 * 1319] * 7  # 0 and 8 shots
    assert found.parts["load"]["weights"] == 2 * (13_015_864_320 + 6_738_415_616)


def test_neurons_that_methods_move():
    pair = {"teacher": "meta-llama/Llama-2-13b-hf", "student": "meta-llama/Llama-2-7b-hf"}
    for method, words, trainable, added in (
        (
            {"name": "laten"},
            "1101 ffn, 410 attention, 410 value neurons in each of 32 layers",
            4 * 5120 * (5120 + 4096),
            0,
        ),
        ({"name": "transport"}, "13824 FFN neurons in each of 32 layers", 0, 3 * 4096 * 32 * (13824 - 11008)),
        ({"name": "transport", "mode": "widen", "neurons": 100}, "100 FFN neurons", 0, 3 * 4096 * 32 * 100),
        ({"name": "transport", "mode": "replace", "neurons": 100}, "100 FFN neurons", 0, 0),
    ):
        row = dryrun.dry_run(parse(pair=pair, method=method, evaluate={"limit": 1})).methods[0]
        assert row["moves"].startswith(words) and (row["trainable"], row["added"]) == (trainable, added)


EVERYTHING = {
    "method": {"name": "seeking", "rank": 4},
    "baselines": [
        *("lora_ga", "eva", "corda", "distillation", "masked_distillation", "sft", "laten", "block_scales"),
        {"name": "transport", "mode": "replace", "neurons": 4, "rows": 200},
    ],
    "controls": ["zero", "noise"],
    "locate": {"seeds": 8, "max_length": 64},
    "tune": {"epochs": 2, "max_length": 64, "batch_size": 16},
}


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """A dry run of a config with methods of every kind, and what the real run's hooks counted until it was tuned.

    All questions are of one length, so that no padding is counted.
    """
    task = tmp_path_factory.mktemp("task")
    for split, count in (("train", 36), ("align", 20), ("test", 4)):
        lines = [
            json.dumps(
                {
                    "question": f"{split[:2]} question number {i:02d} of many, all as long",
                    "answer": "yes" if i % 2 else "sky",
                }
            )
            for i in range(count)
        ]
        (task / f"{split}.jsonl").write_text("\n".join(lines))
    wanted = parse(**EVERYTHING, task=str(task))
    run = store.create(wanted, tmp_path_factory.mktemp("runs"))
    worker.execute(run, until="tune")
    return dryrun.dry_run(wanted), run


def test_what_is_tuned_agrees_with_a_real_run(counted):
    found, run = counted
    budgets = pd.read_parquet(run.path("tune", "budgets.parquet")).set_index("model")
    assert set(budgets.index) == {row["model"] for row in found.methods}
    for row in found.methods:
        real = budgets.loc[row["model"]]
        assert row["trainable"] == real.trainable and row["added"] == real.added, row["model"]
        if row["tuned"]:
            assert row["tuning_steps"] == real.steps and row["tuning_examples"] == real.examples, row["model"]


def test_operations_agree_with_what_hooks_counted(counted):
    """Neurons are located on texts that end before the answer's last word, so a tenth is allowed."""
    found, run = counted
    frame = pd.DataFrame(found.passes)
    spent = json.loads(run.path("locate", "spent.json").read_text())
    for model in ("teacher", "student"):
        own = frame[(frame.stage == "locate") & (frame.model == model)].flops.sum()
        assert own == pytest.approx(spent[f"{model}_flops"], rel=0.1)
    budgets = pd.read_parquet(run.path("tune", "budgets.parquet")).set_index("model")
    for label in budgets.index:
        if label == "eva":
            continue  # goes through its examples until its directions stand still
        own = frame[(frame.what.str.partition(":")[0] == label) & frame.stage.isin(["align", "tune"])]
        located = methods.get(label.partition("+")[2] or label).locates
        for model in ("teacher", "student"):
            expected = own[own.model == model].flops.sum()
            real = budgets.loc[label, f"{model}_flops"] - (spent[f"{model}_flops"] if located else 0)
            assert expected == pytest.approx(real, rel=0.1, abs=1), (label, model)


def test_requests_and_memory_are_those_of_a_real_run():
    wanted = parse(evaluate={"limit": 3, "suites": ["demo:people", "demo:sum"]}, baselines=["logit_fusion"])
    found = dryrun.dry_run(wanted)
    evaluated = [p for p in found.passes if p["stage"] == "evaluate"]
    people, sums = (data.load_task(f"demo:{n}").test for n in ("people", "sum"))
    asked = sum(len(e.choices or (1,)) for e in limited(people, 3)), 3
    assert sums[0].choices is None and not any(p["assumed"] for p in evaluated)
    by_label = {(p["what"], p["model"]): p["forward"] for p in evaluated[: len(evaluated) // 2]}
    assert set(by_label.values()) == {asked[0]} and ("logit_fusion", "teacher") in by_label
    assert {p["forward"] for p in evaluated[len(evaluated) // 2 :]} == {asked[1]}
    assert found.memory == checks.check(wanted).memory and not found.unknown


def test_a_folder_with_a_config_and_nothing_else(checkpoint, tmp_path):
    """No weights and no tokenizer are needed; lengths are then assumed."""
    for family in ("llama", "qwen2", "qwen3", "gemma"):
        folder = tmp_path / family
        folder.mkdir()
        (folder / "config.json").write_text((checkpoint(family) / "config.json").read_text())
        found = dryrun.dry_run(parse(pair={"teacher": str(folder), "student": str(folder)}))
        assert found.models[0]["from"] == "config.json" and all(p["assumed"] for p in found.passes)


def test_sizes_that_are_given_and_sizes_that_are_unknown():
    hub = parse(task="hub:nobody/nothing")
    found = dryrun.dry_run(hub)
    assert len(found.unknown) == 3 and any(p["flops"] is None for p in found.passes)
    assert found.methods[0]["tuning_steps"] is None
    sizes = {"hub:nobody/nothing": Sizes(train=100, align=10, test=50, tokens=30, choices=4)}
    found = dryrun.dry_run(hub, sizes)
    assert not found.unknown and found.methods[0]["tuning_steps"] == 2
    assert {p["tokens"] for p in found.passes} == {30} and found.passes[-1]["forward"] == 2 * 4


def test_one_tokenizer_is_known_by_name():
    pair = {"teacher": "meta-llama/Llama-2-13b-hf", "student": "meta-llama/Llama-2-7b-hf"}
    found = dryrun.dry_run(parse(pair=pair, locate={"origins": ["all"]}, method={"name": "seeking", "rank": 4}))
    assert {b["module"] for b in found.blocks} >= {"embed", "lm_head"}
    pair["student"] = "Qwen/Qwen2.5-1.5B"
    with pytest.raises(InputError, match="one vocabulary"):
        dryrun.dry_run(parse(pair=pair, locate={"origins": ["all"]}))
    with pytest.raises(InputError, match="needs one vocabulary"):
        dryrun.dry_run(parse(pair=pair, method="distillation"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pair": {"teacher": "nobody/nothing", "student": "demo:student"}}, "the shipped table does not have it"),
        ({"pair": {"teacher": "./nowhere/at/all", "student": "demo:student"}}, "no config.json on this machine"),
        ({"pair": {"teacher": "demo:techer", "student": "demo:student"}}, "there is no demo model 'techer'"),
        ({"pair": {"teacher": "meta-llama/Llama-3.2-1B", "student": "meta-llama/Llama-3.1-8B"}}, "fewer than"),
        ({"method": {"name": "seeking", "rank": 4000}}, "above the shorter side"),
        ({"method": {"name": "transport", "neurons": 600, "mode": "widen"}}, "more than the 512 neurons"),
        ({"method": "seekin"}, "did you mean 'seeking'"),
        ({"task": "nothing"}, "task 'nothing' was not found"),
        ({"method": "oracle"}, "needs a cloned pair"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(changes, said):
    with pytest.raises(InputError, match=said):
        dryrun.dry_run(parse(**changes))


def test_a_model_that_is_not_what_its_config_says():
    values = recipes.model_configs()["meta-llama/Llama-3.2-1B"]["config"]
    shapes, _ = dryrun.on_meta(json.dumps(values, sort_keys=True))
    name = "model.layers.3.self_attn.k_proj.weight"
    with pytest.raises(InputError, match=r"layers.3.self_attn.k_proj.weight is \(1, 2\)"):
        dryrun._check_shapes("m", from_config(values, "m"), {**shapes, name: (1, 2)})
    with pytest.raises(InputError, match="model.extra.weight is"):
        dryrun._check_shapes("m", from_config(values, "m"), {**shapes, "model.extra.weight": (1, 2)})


def test_weights_that_are_not_what_the_config_says(checkpoint, tmp_path):
    import shutil

    folder = tmp_path / "m"
    shutil.copytree(checkpoint("llama"), folder)
    values = json.loads((folder / "config.json").read_text()) | {"vocab_size": 500}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="parameters are stored, config.json gives"):
        dryrun.dry_run(parse(pair={"teacher": str(folder), "student": str(folder)}))


@pytest.fixture
def command(capsys, runs):
    """command("run", …) → (exit code, stdout, stderr); nothing may be written."""

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(list(arguments))
        captured = capsys.readouterr()
        assert not runs.exists()
        return stop.value.code, captured.out, captured.err

    return call


def test_the_command(command, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(QUICK))
    code, out, _ = command("run", str(path), "--dry-run", "--json")
    printed = json.loads(out)
    assert code == 0 and printed["schema_version"] == 1
    assert printed["dry_run"]["methods"][0]["tuning_steps"] == 11
    code, out, _ = command("run", "--recipe", "llama2-super-ni-seeking", "--dry-run")
    assert code == 0 and "at least; some counts are unknown" in out
    assert "hub:Muennighoff/natural-instructions: how many examples its train split has" in out
    for changed, said in (("method.rank=9000", "above the shorter side"), ("locate.seed=1", "did you mean 'seeds'")):
        code, out, err = command("run", "--recipe", "llama2-mmlu-seeking", "--dry-run", "--set", changed)
        assert code == 2 and out == "" and said in err and len(err.strip().splitlines()) == 1


def test_methods_nobody_described_are_unknown():
    wanted = parse(baselines=["gaussian"])
    candidates = methods.candidates(wanted)
    other = candidates[1].__class__(
        "other",
        methods.get("seeking").__class__(
            **{
                **vars(methods.get("gaussian")),
                "name": "other",
            }
        ),
        candidates[1].settings,
    )
    assert passes.aligned(None, other, candidates[0]) is None


def test_benchmarks_are_counted_where_their_records_are_files(tmp_path):
    from tests.evaluate import public_records as made

    named = [
        {"name": "gsm8k", "file": made.write(tmp_path / "g.jsonl", made.gsm8k(5)), "shots": 1, "limit": 3},
        {"name": "mmlu", "file": made.write(tmp_path / "m.jsonl", made.mmlu(3)), "label": "all"},
        {"name": "gsm8k", "label": "hub"},
        {"name": "arc_easy"},
    ]
    found = dryrun.dry_run(parse(evaluate={"suites": [], "benchmarks": named[:2]}))
    asked = {p["forward"] for p in found.passes if p["stage"] == "evaluate"}
    assert asked == {3 + 6 * 4} and not found.unknown
    found = dryrun.dry_run(parse(evaluate={"suites": [], "benchmarks": named[2:]}))
    assert found.unknown == ["arc_easy: how many items it has (nothing is read from a hub)."]
    found = dryrun.dry_run(parse(evaluate={"suites": [], "benchmarks": named[2:3]}))
    assert {p["forward"] for p in found.passes if p["stage"] == "evaluate"} == {1319}
