"""A thousand configs that nobody would write: each is a RunConfig or one sentence, and soon."""

from __future__ import annotations

import copy
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paraknow import config as configs
from paraknow import methods
from paraknow.config import RunConfig
from paraknow.errors import InputError

EXAMPLES = 500  # of each kind
GOOD = {
    "pair": {"teacher": "demo:teacher", "student": "demo:student"},
    "task": "demo:people",
    "method": {"name": "seeking", "rank": 8},
    "baselines": ["gaussian", {"name": "transport", "label": "t-1"}],
    "controls": ["zero", "noise"],
    "locate": {"seeds": 2, "origins": ["attention"]},
    "evaluate": {"limit": 2, "benchmarks": [{"name": "gsm8k", "shots": 2}]},
}
COUNTS: Counter[str] = Counter()
QUICK = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
PARTS = [RunConfig, *(f.annotation for f in RunConfig.model_fields.values())]
FIELDS = sorted({name for part in PARTS for name in getattr(part, "model_fields", {})})
FIELDS += ["rank", "name", "label", "file", "shots", "teacher", "student", "<<", "", "a.b", "\u202e", "x" * 300]
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, 2**63, 2**31, 0, -1, 1e308, 1e-320, float("nan"), float("inf"), -0.0]),
    st.none().map(lambda _: -(10**5000)),  # more digits than Python writes out
    st.floats(),
    st.text(max_size=20),
    st.text(st.characters(categories=["Cs", "Cc", "Lu"]), max_size=5),
    st.sampled_from(
        ["seeking", "zero", "oracle", "demo:people", "demo:nobody", "cuda", "auto", "/etc/passwd", "x" * 9999]
    ),
    st.sampled_from([b"bytes", 1j, ..., {1, 2}, (), 3.0, "3", "true"]),
)
keys = st.one_of(st.sampled_from(FIELDS), st.text(max_size=8), st.integers(), st.none(), st.booleans())
trees = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(keys, inner, max_size=5)),
    max_leaves=12,
)


@st.composite
def changed(draw: Any) -> Any:
    """A good config with one to four of its places put wrong, added or taken away."""
    values = copy.deepcopy(GOOD)
    for _ in range(draw(st.integers(1, 4))):
        place: Any = values
        while isinstance(place, dict | list) and place:
            key = draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
            if draw(st.booleans()) or not isinstance(place[key], dict | list):
                break
            place = place[key]
        if not isinstance(place, dict | list) or not place:
            continue
        kind = draw(st.sampled_from(["put", "add", "take"]))
        if kind == "take":
            del place[key]
        elif kind == "add" and isinstance(place, dict):
            place[draw(keys)] = draw(trees)
        else:
            place[key] = draw(trees)
    return values


def outcome(make: Any) -> str:
    """What became of it; any other exception passes. A config whose methods are sound can be written and read again."""
    began = time.perf_counter()
    try:
        config = make()
        assert isinstance(config, RunConfig)
        try:
            methods.candidates(config)
            assert configs.parse(yaml.safe_load(configs.dump(config))) == config
        except InputError as error:
            one_sentence(str(error))
            return "a config, its methods refused"
        return "a config"
    except InputError as error:
        one_sentence(str(error))
        return "refused"
    finally:
        assert time.perf_counter() - began < 5


def one_sentence(text: str) -> None:
    assert "\n" not in text and len(text) < 2000 and "Traceback" not in text, text[:300]


@QUICK
@given(st.one_of(changed(), changed(), trees))
def random_values(values: Any) -> None:
    COUNTS[outcome(lambda: configs.parse(values))] += 1


LINES = st.one_of(
    st.sampled_from([f"{name}:" for name in FIELDS]),
    st.sampled_from(["a: &a [x, x]", "b: &b [*a, *a]", "- *a", "<<: *a", "? [1]", "--- ", "!!python/name:os.system x"]),
    st.sampled_from(
        ["pair: {teacher: a, student: b}", "task: t", "method: {name: seeking", "seed: .nan", "x: 0x" + "f" * 99]
    ),
    st.text(st.sampled_from(" -:?[]{},&*!|>'\"%@`#abc01.\n\t"), max_size=20),
)


@QUICK
@given(given=st.one_of(st.lists(st.tuples(st.integers(0, 4), LINES), max_size=8), changed()))
def random_files(path: Path, given: Any) -> None:
    if isinstance(given, list):
        text = "\n".join(" " * indent + line for indent, line in given)
    else:
        try:
            text = yaml.safe_dump(given)
        except (yaml.YAMLError, TypeError, ValueError):  # what YAML cannot say; the other test has it
            text = "x"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    COUNTS[outcome(lambda: configs.load(path))] += 1


def test_a_thousand_configs(tmp_path: Path) -> None:
    COUNTS.clear()
    random_values()
    random_files(tmp_path / "random.yaml")
    print(dict(COUNTS))  # shown by pytest -rP
    assert sum(COUNTS.values()) >= 2 * EXAMPLES and COUNTS["a config"] > 20 and COUNTS["refused"] > 500
