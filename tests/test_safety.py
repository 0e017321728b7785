"""Nothing is unpickled, nothing is run that came as data, and no shell is asked: read off the syntax trees."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = [p for folder in ("paraknow", "pages", "benchmarks", ".ci") for p in (ROOT / folder).rglob("*.py")]
SOURCES.append(ROOT / "app.py")
MODULES = set(
    "pickle cPickle _pickle cloudpickle dill joblib jsonpickle marshal shelve multiprocessing sqlitedict".split()
)
CALLS = {  # by the last part of what is called
    "read_pickle to_pickle loads_pickle system popen spawnl spawnv spawnve getoutput getstatusoutput __import__": "",
    "eval exec compile": "crossing.py",  # inside the sandbox, where code that models wrote is what is run
    "unsafe_load full_load unsafe_load_all full_load_all load_all literal_eval": "",
}
MADE_BY_LIBRARY = {"torch": {"load", "save"}, "np": {"load"}, "numpy": {"load"}, "yaml": {"load"}}
PEFT = ("inject.py", "reload.py")  # peft has no such switch: inject looks for the file, reload reads what inject wrote
SAFE_LOADERS = {"_Loader", "SafeLoader", "CSafeLoader"}


def dotted(node: ast.AST) -> str:
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([*([node.id] if isinstance(node, ast.Name) else []), *reversed(parts)])


def faults(tree: ast.AST, name: str = "x.py") -> Iterator[str]:
    """What of a file is not allowed."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            named = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            named += [f"{node.module}.{a.name}" for a in node.names] if isinstance(node, ast.ImportFrom) else []
            yield from (f"imports {n}" for n in named if n.split(".")[0] in MODULES or n == "torch.multiprocessing")
        if not isinstance(node, ast.Call):
            continue
        called = dotted(node.func)
        first, _, last = called.rpartition(".")
        keywords = {k.arg: k.value for k in node.keywords}
        for words, place in CALLS.items():
            method = isinstance(node.func, ast.Attribute) and first != "builtins" and words.startswith("eval")
            if last in words.split() and not method and name != place:  # model.eval(), re.compile() are methods
                yield f"calls {called}"
        if last in MADE_BY_LIBRARY.get(first, ()):
            loader = dotted(node.args[1]) if len(node.args) > 1 else dotted(keywords.get("Loader", ast.Constant(0)))
            if not (first == "yaml" and loader in SAFE_LOADERS):
                yield f"calls {called}"
        for word, wanted in (("shell", False), ("allow_pickle", False), ("trust_remote_code", False)):
            given = keywords.get(word, ast.Constant(wanted))
            if not (isinstance(given, ast.Constant) and given.value is wanted):
                yield f"calls {called} with {word}"
        if isinstance(weights := keywords.get("weights_only"), ast.Constant) and weights.value is False:
            yield f"calls {called} with weights_only=False"
        peft = "PeftModel" in called and name in PEFT
        if last == "from_pretrained" and "Model" in called and "use_safetensors" not in keywords and not peft:
            yield f"calls {called} without use_safetensors"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_unpickles_or_runs_what_came_as_data(path: Path) -> None:
    assert not list(faults(ast.parse(path.read_text(encoding="utf-8")), path.name))


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from cloudpickle import loads",
        "import joblib",
        "import torch; torch.load('x')",
        "np.load('x', allow_pickle=True)",
        "pd.read_pickle('x')",
        "frame.to_pickle('x')",
        "yaml.load(text)",
        "yaml.load(text, yaml.Loader)",
        "yaml.unsafe_load(text)",
        "eval('1')",
        "exec(code)",
        "subprocess.run('x', shell=True)",
        "subprocess.run('x', shell=asked)",
        "os.system('x')",
        "AutoModel.from_pretrained('x')",
        "AutoTokenizer.from_pretrained('x', trust_remote_code=True)",
        "from multiprocessing import Queue",
    ],
)
def test_the_rule_sees(code: str) -> None:
    assert list(faults(ast.parse(code)))


@pytest.mark.parametrize("code", ["model.eval()", "re.compile('x')", "yaml.load(text, _Loader)", "yaml.safe_load(t)"])
def test_the_rule_lets_pass(code: str) -> None:
    assert not list(faults(ast.parse(code)))


def test_loaders_of_our_own_are_safe_ones() -> None:
    import yaml

    from paraknow.evaluate import catalogue

    assert issubclass(catalogue._Loader, yaml.SafeLoader)
    with pytest.raises(yaml.YAMLError):
        yaml.load("!!python/object/apply:os.system ['true']", catalogue._Loader)
    assert type(yaml.load("!function utils.x", catalogue._Loader)) is catalogue.Function  # a name, nothing imported


def test_only_names_of_the_package_lead_to_code() -> None:
    """import_module gets fixed names, or those of modules found in the package."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and dotted(node.func).endswith("import_module"):
                assert isinstance(node.args[0], ast.Constant) or path.parent.name == "methods", path


# -- what is installed ------------------------------------------------------------------------------


def audit():
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_an_audit_says_of_packages() -> None:
    found = [
        {"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2", "3"]}]},
        {"name": "b", "version": "1", "vulns": [{"id": "PYSEC-2", "fix_versions": []}]},
        {"name": "c", "version": "1", "vulns": []},
        {"name": "d", "skip_reason": "not found"},
    ]
    lines, errors, count = audit().read(found, {})
    assert lines == ["AUDIT: a 1: PYSEC-1 (fixed in 2, 3)", "AUDIT: b 1: PYSEC-2 (no fix yet)"]
    assert (errors, count) == (1, 3)
    lines, errors, _ = audit().read(found, {"CVE-1": "not called here"})
    assert errors == 0 and "listed: not called here" in lines[0]


def test_a_listed_advisory_has_a_reason() -> None:
    script = audit()
    assert script.ignored("# x\n\nCVE-1 is not called\n") == {"CVE-1": "is not called"}
    script.ignored(script.IGNORED.read_text())
    with pytest.raises(ValueError, match="CVE-1 has no reason"):
        script.ignored("CVE-1\n")


def test_an_audit_that_reaches_nobody_says_so_and_fails_nothing(monkeypatch, capsys) -> None:
    script = audit()
    monkeypatch.setattr(script, "find_spec", lambda name: name)
    for answers in (
        [None],
        [[{"name": "pip", "skip_reason": "not found"}]],
        [[{"name": "pip", "version": "20.0", "vulns": []}]],
    ):
        monkeypatch.setattr(script, "asked", lambda *options, seconds, left=list(answers): left.pop(0))
        assert script.main() == 0 and "nothing was audited" in capsys.readouterr().out
    vulnerable = [{"name": "pip", "version": "20.0", "vulns": [{"id": "X", "fix_versions": ["21"]}]}]
    left = [vulnerable, vulnerable]
    monkeypatch.setattr(script, "asked", lambda *options, seconds: left.pop(0))
    assert script.main() == 1 and "1 of 1 packages looked up, 1 to be updated" in capsys.readouterr().out
