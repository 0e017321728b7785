from __future__ import annotations

import pytest
import yaml

from paraknow import config, methods
from paraknow.errors import InputError

MINIMAL = {
    "pair": {"teacher": "demo:teacher", "student": "demo:student"},
    "task": "demo:people",
    "method": {"name": "seeking"},
}


def test_the_minimal_config_has_the_papers_defaults():
    made = config.parse(MINIMAL)
    assert made.locate.seeds == 32 and made.locate.structure == "window" and made.locate.layers == "sensitivity"
    assert (made.tune.epochs, made.tune.batch_size, made.tune.learning_rate, made.tune.warmup) == (3, 64, 3e-4, 0.03)
    assert methods.settings_of(made.method, "method").rank == 16
    assert made.run_seeds == (0,) and made.suites == ("demo:people",)


def test_dump_and_parse_give_the_same_config():
    made = config.parse({**MINIMAL, "baselines": ["gaussian", {"name": "pissa", "rank": 4}], "seeds": [1, 2]})
    assert config.parse(yaml.safe_load(config.dump(made))) == made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"locat": {}}, "unknown key 'locat'; did you mean 'locate'"),
        ({"locate": {"seed": 3}}, "unknown key 'locate.seed'; did you mean 'seeds'"),
        ({"locate": {"seeds": 0}}, "'locate.seeds'.*greater than or equal to 1.*given: 0"),
        ({"locate": {"origins": ["attention"], "modules": ["up"]}}, "leave no matrix"),
        ({"pair": {"teacher": "x"}}, "'pair.student' is missing"),
        ({"dtype": "int8"}, "'dtype'.*'float32'"),
        ({"task": []}, "'task'"),
        ({"seeds": [1, 1]}, "seeds names something twice"),
        ({"tune": {"learning_rate": "fast"}}, "'tune.learning_rate'"),
    ],
)
def test_wrong_fields_are_named(change, message):
    with pytest.raises(InputError, match=message):
        config.parse({**MINIMAL, **change})


def test_overrides(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, "method": "seeking"}))
    made = config.load(path, ["locate.seeds=16", "method.rank=4", "task=[demo:people, demo:sort]"])
    assert made.locate.seeds == 16 and made.method.settings() == {"rank": 4} and len(made.task) == 2
    for bad in ("locate.seeds", "=3", "task.x.y=1", "locate.seeds=[1"):
        with pytest.raises(InputError, match="--set"):
            config.load(path, [bad])
    path.write_text("a: [1")
    with pytest.raises(InputError, match="not valid YAML"):
        config.load(path)
    path.write_text("just text")
    with pytest.raises(InputError, match="mapping"):
        config.load(path)
    with pytest.raises(InputError, match="cannot be read"):
        config.load(tmp_path / "none.yaml")


def test_candidates_of_a_run():
    made = config.parse(
        {**MINIMAL, "method": {"name": "seeking", "rank": 4}, "baselines": ["gaussian", {"name": "pissa", "rank": 2}]}
    )
    found = methods.candidates(made)
    assert [c.label for c in found] == [
        "seeking",
        "gaussian",
        "pissa",
        "zero",
        "seeking+noise",
        "seeking+random_window",
    ]
    ranks = {c.label: getattr(c.settings, "rank", None) for c in found}
    assert ranks == {
        "seeking": 4,
        "gaussian": 4,
        "pissa": 2,
        "zero": None,
        "seeking+noise": 4,
        "seeking+random_window": 4,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "seking"}, "did you mean 'seeking'"),
        ({"method": {"name": "seeking", "rnk": 2}}, "unknown key 'rnk'; did you mean 'rank'"),
        ({"method": {"name": "seeking", "rank": 0}}, "'rank'"),
        ({"controls": ["gaussian"]}, "not a control"),
        ({"method": "noise"}, "put it under controls"),
        ({"baselines": ["random_window"]}, "put it under controls"),
        ({"seeds": [2**40]}, "'seeds.0'"),
        ({"baselines": ["gaussian", "gaussian"]}, "twice"),
    ],
)
def test_wrong_methods_are_named(change, message):
    with pytest.raises(InputError, match=message):
        methods.candidates(config.parse({**MINIMAL, **change}))


def test_a_placement_is_written_down_only_where_layers_wait():
    """Texts of runs from before there was such a setting stay equal."""
    plain = config.parse(MINIMAL)
    assert "placement" not in config.dump(plain)
    placed = config.parse({**MINIMAL, "placement": {"teacher": "auto"}})
    assert config.parse(yaml.safe_load(config.dump(placed))) == placed
    with pytest.raises(InputError, match=r"'placement.student': input should be 'device', 'auto' or 'offload'"):
        config.parse({**MINIMAL, "placement": {"student": "cpu"}})
