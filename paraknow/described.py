"""What a model's config.json says, wherever it lies: here, in the hub's cache, in the shipped table (no torch).

Nothing is downloaded but in `fetch`, which brings a hub model's config and tokenizer and no weights.
"""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from paraknow import access, checkpoints, limits, recipes, resources
from paraknow.errors import InputError

TABLE = "models.json"  # the shipped table's name, where sizes come from it
SMALL = ["config.json", "tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json", "*.jinja"]
LARGEST = 200 * 2**20  # bytes of them


def config_of(spec: str, scratch: Path) -> tuple[dict[str, Any], Path, str]:
    """(values of config.json, a folder to read about the tokenizer, where it is from).

    For a model that is not here, the folder holds what the table says, for methods' own checks, and only a mark of
    whose tokenizer it has, which is what checks of the vocabulary compare. Raises InputError: nobody here knows the
    model, or its config.json cannot be read.
    """
    folder = _folder(spec) or scratch
    if (folder / "config.json").is_file():
        try:
            return json.loads((folder / "config.json").read_text(encoding="utf-8")), folder, "config.json"
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"model {spec!r}: config.json cannot be read ({error}).") from None
    known = recipes.model_configs().get(spec.partition("@")[0])
    if known is None:
        raise InputError(
            f"model {spec!r}: no config.json on this machine, and the shipped table does not have it; nothing is "
            "downloaded to look at a model but its config and tokenizer, by `paraknow models --fetch` or the button of "
            "the Models page."
        )
    scratch.mkdir()
    mark = {"model": {"vocab": {known["tokenizer"]: 0}}}
    (scratch / "tokenizer.json").write_text(json.dumps(mark), encoding="utf-8")
    (scratch / "config.json").write_text(json.dumps(known["config"]), encoding="utf-8")
    return dict(known["config"]), scratch, TABLE


def _folder(spec: str) -> Path | None:
    if spec.startswith("demo:"):
        return resources.demo_model(spec.removeprefix("demo:"))
    if checkpoints.is_remote(spec):
        return cached(spec)
    return access.place(spec, "models", f"model {spec!r}")


def cached(spec: str) -> Path | None:
    """The folder of a hub model whose config.json was downloaded before."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    repository, _, revision = spec.partition("@")
    try:
        file = try_to_load_from_cache(repository, "config.json", revision=revision or None)
    except HFValidationError:
        return None
    return Path(file).parent if isinstance(file, str) else None


def fetch(spec: str) -> Path:
    """Bring a hub model's config and tokenizer into the cache, without weights; returns their folder.

    Raises InputError: no such repository, a gated one, a hub that cannot be reached.
    """
    from huggingface_hub import HfApi, snapshot_download

    repository, _, revision = spec.partition("@")
    with checkpoints.of_hub(spec):
        info = HfApi().model_info(repository, revision=revision or None, files_metadata=True)
        wanted = [f for f in info.siblings or [] if any(fnmatch(f.rfilename, pattern) for pattern in SMALL)]
        if (size := sum(f.size or 0 for f in wanted)) > LARGEST:
            raise InputError(
                f"model {spec!r}: config and tokenizer have {size / 2**20:.0f} MiB; at most {LARGEST // 2**20} are "
                "fetched to look at a model."
            )
        limits.check_download(f"model {spec!r}", size, Path.cwd())
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=SMALL))
