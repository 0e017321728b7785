"""Recipes: their expansion, the published figures (METHODS part 5), and that every one is a config that can be read."""

from __future__ import annotations

import json

import pytest
import yaml

from paraknow import cli, config, methods, recipes
from paraknow.errors import InputError

# METHODS part 5, its first table: task → student, teacher, seeking, laten, semalign.
TABLE = {
    "mmlu": (44.20, 52.90, 49.60, 44.40, 50.30),
    "gsm8k": (16.07, 20.55, 28.23, 20.47, 19.21),
    "humaneval": (14.05, 18.75, 15.44, 14.63, 17.34),
    "mbpp": (17.80, 19.20, 20.60, 18.20, 18.78),
}
# Its second paragraph: plain LoRA and Seeking, two figures each.
OWN = {
    "gsm8k": ((23.38, 21.05), (25.30, 26.31)),
    "mmlu": ((47.77, 47.07), (49.37, 46.53)),
    "super-ni": ((24.93, 41.25), (26.16, 42.98)),
}


@pytest.fixture
def command(capsys, runs):
    """command("recipes", "--json") → (exit code, stdout, stderr)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(list(arguments))
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return call


def test_every_recipe_is_a_config_with_methods_that_exist():
    found = recipes.catalogue()
    known, wanted = methods.catalogue(), {r.parsed().method.name for r in found.values()}
    assert not wanted - set(known), f"recipes name methods that do not exist: {', '.join(sorted(wanted - set(known)))}"
    for recipe in found.values():
        methods.candidates(recipe.parsed())


def test_every_cell_of_the_first_table_is_a_recipe_with_its_figures():
    for task, (student, teacher, *values) in TABLE.items():
        for method, value in zip(("seeking", "laten", "semalign"), values, strict=True):
            recipe = recipes.find(f"llama2-chat-{task}-{method}")
            assert recipe.parsed().pair.teacher == "meta-llama/Llama-2-13b-chat-hf"
            assert recipe.parsed().pair.student == "meta-llama/Llama-2-7b-chat-hf"
            figures = {f["model"]: f["value"] for f in recipe.figures()}
            assert figures == {"student": student, "teacher": teacher, method: value}
            assert all(f["source"] == "arXiv 2510.24208v1" and f["measure"] for f in recipe.figures())


def test_seekings_own_figures():
    for task, (plain, seeking) in OWN.items():
        recipe = recipes.find(f"llama2-{task}-seeking")
        assert recipe.parsed().pair.student == "meta-llama/Llama-2-7b-hf"
        own = {m: tuple(f["value"] for f in recipe.figures() if f["model"] == m) for m in ("gaussian", "seeking")}
        assert own == {"gaussian": plain, "seeking": seeking}
        # what the paper sets (METHODS 1.1 and 2.1)
        c = recipe.parsed()
        assert (c.locate.seeds, c.method.settings()["rank"], c.tune.epochs, c.tune.batch_size) == (32, 16, 3, 64)
        assert (c.tune.learning_rate, c.tune.warmup) == (3e-4, 0.03)


def test_public_pairs_claim_nothing_and_say_who_comes_from_whom():
    made = [r for r in recipes.catalogue().values() if r.method == "transport"]
    assert len({(r.pair.teacher, r.pair.student) for r in made}) == 8
    assert {r.pair.about.partition(" (")[0] for r in made} == {"strangers", "one lineage"}
    assert not any(r.figures() for r in made)


def test_what_cannot_be_scored_yet_says_so():
    for recipe in recipes.catalogue().values():
        code = any(word in recipe.task.task for word in ("humaneval", "mbpp"))
        assert code == any("sandbox" in need for need in recipe.task.needs)


def test_every_model_has_its_sizes_in_the_table():
    specs = {s for r in recipes.catalogue().values() for s in (r.pair.teacher, r.pair.student)}
    of_scale = {"meta-llama/Llama-3.1-70B", "meta-llama/Llama-3.1-405B"}  # docs/scale.md works them out
    assert specs == set(recipes.model_configs()) - of_scale
    assert "confirmed against the model cards" in (recipes.folder() / "models.json").read_text()


def test_the_yaml_of_a_recipe_is_its_config():
    for recipe in recipes.catalogue().values():
        text = recipe.yaml()
        assert config.parse(yaml.safe_load(text)) == recipe.parsed()
        assert text.count("not ours") == len(recipe.figures()) and text.count("# Needs") == len(recipe.task.needs)


FAMILY = {
    "title": "t",
    "source": "s",
    "pairs": {"p": {"teacher": "demo:teacher", "student": "demo:student"}},
    "tasks": {"a": {"task": "demo:people"}, "b": {"task": "demo:sum"}},
    "config": {"tune": {"epochs": 5, "max_length": 64}, "dtype": "bfloat16"},
    "methods": {
        "x": {"method": {"name": "seeking"}, "tune": {"epochs": 7}},
        "y": {"method": {"name": "gaussian", "label": "plain"}},
    },
}


def family(**changes) -> recipes.Family:
    return recipes.Family.model_validate({**FAMILY, **changes})


def test_expansion_and_nested_settings():
    made = {r.name: r.parsed() for r in recipes.expand(family())}
    assert list(made) == ["p-a-x", "p-a-y", "p-b-x", "p-b-y"]
    assert made["p-a-x"].tune.epochs == 7 and made["p-a-y"].tune.epochs == 5
    assert all(c.tune.max_length == 64 and c.dtype == "bfloat16" for c in made.values())
    assert made["p-b-y"].task == ("demo:sum",) and made["p-b-y"].method.title == "plain"
    assert FAMILY["config"]["tune"]["epochs"] == 5


def test_bad_files_are_named(tmp_path):
    path = tmp_path / "f.yaml"
    for text, said in (
        ("{", "cannot be read as YAML"),
        (yaml.safe_dump({**FAMILY, "tittle": "x"}), "unknown key 'tittle'; did you mean 'title'"),
        (yaml.safe_dump({**FAMILY, "methods": {"x": {"tune": {}}}}), "every entry of methods needs method"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=said):
            recipes.read(path)
    with pytest.raises(InputError, match="did you mean 'llama2-mmlu-seeking'"):
        recipes.find("llama2-mmlu-seking")


def test_two_recipes_of_one_name_are_refused(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(FAMILY))
    monkeypatch.setattr(recipes, "folder", lambda: tmp_path)
    with pytest.raises(InputError, match="another recipe named 'p-a-x'"):
        recipes.catalogue.__wrapped__()


def test_the_commands(command):
    code, out, _ = command("recipes", "--json")
    listed = json.loads(out)
    assert code == 0 and listed["schema_version"] == 1
    rows = {r["name"]: r for r in listed["recipes"]}
    assert list(rows) == list(recipes.catalogue())
    assert {"teacher", "student", "task", "method", "published", "needs", "source"} <= set(rows["llama2-mmlu-seeking"])
    code, out, _ = command("recipes")
    assert code == 0 and "not ours" in out and "llama2-chat-mmlu-laten" in out
    code, out, _ = command("recipes", "show", "llama2-mmlu-seeking")
    assert code == 0 and config.parse(yaml.safe_load(out)) == recipes.find("llama2-mmlu-seeking").parsed()
    code, out, err = command("recipes", "show", "nothing")
    assert code == 2 and out == "" and err.startswith("paraknow: there is no recipe 'nothing'")
