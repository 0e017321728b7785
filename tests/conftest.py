"""Shared fixtures: tiny random checkpoints of every family, the demo pair, a runs folder of the test's own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for a hub is a fault, not a wait
os.environ["TQDM_DISABLE"] = "1"  # read once, when tqdm is imported
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # read once, when torch is imported; see worker.quiet

import pytest
import torch
from filelock import FileLock

from paraknow import inject, models, resources
from tests import fresh

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


# Those that take half a minute or more, the longest first.
LONGEST = """
    demo/test_story browser/test_reading browser/test_dashboard browser/test_survival test_real_records
    faults/test_kills faults/test_supervisor runs/test_worker evaluate/test_lm_eval runs/test_cluster
    demo/test_build runs/test_transfer browser/test_hostile runs/test_sweep pages/test_pages
""".split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: two are run at a time, and a long one at the end would run alone."""
    order = {Path(__file__).parent / f"{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


def _config(family: str, **changes: Any) -> Any:
    import transformers

    names = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma": "Gemma"}
    kind = getattr(transformers, f"{names[family]}Config")
    values = {
        "vocab_size": 512,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "tie_word_embeddings": family == "gemma",
        "eos_token_id": 1,
        "pad_token_id": 0,
        "bos_token_id": None,
        **SIZES,
        **changes,
    }
    return kind(**values)


@pytest.fixture(scope="session")
def demo_tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(resources.demo_model("student"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, demo_tokenizer: Any) -> Callable[..., Path]:
    """checkpoint("qwen2", hidden_size=…) → a folder with a tiny random model of that family."""
    made: dict[Any, Path] = {}

    def make(family: str = "llama", seed: int = 0, **changes: Any) -> Path:
        from transformers import AutoModelForCausalLM

        key = (family, seed, tuple(sorted(changes.items())))
        if key not in made:
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(_config(family, **changes))
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1:  # transformers' 0.02 gives gradients too small to compare
                    torch.nn.init.normal_(parameter, std=0.2)
                elif "norm" in name:
                    parameter.data += 0.1 * torch.randn_like(parameter)
            folder = tmp_path_factory.mktemp(family)
            model.save_pretrained(folder)
            demo_tokenizer.save_pretrained(folder)
            made[key] = folder
        return made[key]

    return make


@pytest.fixture(scope="session")
def tiny_pair(checkpoint: Callable[..., Path]) -> tuple[models.Loaded, models.Loaded]:
    """A random teacher and a random smaller student, both with grouped queries."""
    return (
        models.load(str(checkpoint("llama")), device="cpu"),
        models.load(str(checkpoint("llama", seed=1, **SMALL, num_key_value_heads=1)), device="cpu"),
    )


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty runs folder that the library uses."""
    folder = tmp_path / "runs"
    monkeypatch.setenv("PARAKNOW_RUNS", str(folder))
    return folder


@pytest.fixture(scope="session", autouse=True)
def reload_checks() -> Iterator[fresh.Forks]:
    """Reload checks in forks of a server that is started for the first of them; see tests/fresh.py."""
    with (
        fresh.Forks("paraknow.reload") as checks,
        pytest.MonkeyPatch.context() as patch,
    ):
        watched = inject._watched
        patch.setattr(inject, "_watched", lambda command, *rest: watched(checks.forked(command), *rest))
        yield checks


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, reload_checks: fresh.Forks) -> Path:
    """The folder of a run of QUICK that is done, made once for all of pytest's processes: to be read or copied."""
    from paraknow import config
    from paraknow.runs import store, worker
    from tests.test_bad_input import QUICK

    root = tmp_path_factory.getbasetemp()
    root = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "finished"
    with FileLock(f"{root}.lock"):
        if not (root / "which").is_file():
            run = store.create(config.parse(QUICK), root)
            worker.execute(run)
            assert run.status()["state"] == "done"
            (root / "which").write_text(run.id)
    return root / (root / "which").read_text()


@pytest.fixture(scope="session")
def benchmark_data() -> Path:
    """Real GSM8K and MMLU records; tests that need them skip where they are absent."""
    folder = Path(os.environ.get("PARAKNOW_TEST_DATA", ""))
    if not os.environ.get("PARAKNOW_TEST_DATA") or not folder.is_dir():
        pytest.skip("PARAKNOW_TEST_DATA names no folder with real benchmark records")
    return folder
