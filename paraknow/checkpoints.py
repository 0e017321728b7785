"""Checkpoints on disk: which folder a name means, what is in it, what it needs (no torch).

Only config.json, the tokenizer and the headers of safetensors files are read here.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from paraknow import access, limits, resources
from paraknow.architecture import Architecture, from_config
from paraknow.config import EMBEDDING, Locate
from paraknow.errors import InputError
from paraknow.progress import Progress, silent

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class Checkpoint:
    """A model that can be loaded: where it lies, its sizes and how many parameters it stores."""

    spec: str
    folder: Path
    architecture: Architecture
    parameters: int
    largest: int

    @property
    def title(self) -> str:
        """A short name for axes and legends."""
        return self.spec if self.spec.startswith("demo:") else Path(self.spec.partition("@")[0]).name


def find(spec: str) -> Checkpoint:
    """The checkpoint a name means: demo:NAME, a local folder, or a hub id org/name[@revision] (downloaded).

    Raises InputError: no such folder or model, no safetensors, a pickle, an unsupported family.
    """
    folder = _folder(spec)
    access.own_files(folder, f"model {spec!r}")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"model {spec!r}: {folder} has no config.json, so it is no checkpoint folder.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"model {spec!r}: config.json cannot be read ({error}).") from None
    architecture = from_config(config, f"model {spec!r}")
    sizes = [prod(t["shape"]) for header in weight_headers(spec, folder).values() for t in header.values()]
    if not sizes:
        raise InputError(f"model {spec!r}: its weight files hold no tensors.")
    if not has_tokenizer(folder):
        raise InputError(f"model {spec!r}: {folder} has no tokenizer (tokenizer.json).")
    return Checkpoint(spec, folder, architecture, sum(sizes), max(sizes))


def _folder(spec: str) -> Path:
    if spec.startswith("demo:"):
        return resources.demo_model(spec.removeprefix("demo:"))
    if is_remote(spec):
        return _download(spec)
    path = access.place(spec, "models", f"model {spec!r}")
    if path.is_dir():
        return path
    raise InputError(f"model {spec!r}: no such folder; accepted are demo:NAME, a folder, or a hub id org/name.")


def is_remote(spec: str) -> bool:
    """Whether a name is asked of a hub: it looks like org/name[@revision], and no folder that may be opened has it."""
    if not access.HUB.fullmatch(spec):
        return False
    folder = access.found(spec, "models")
    return folder is None or not folder.is_dir()


def unreachable() -> tuple[type[Exception], ...]:
    """The errors by which a hub says that it cannot be asked: its own, files', and its HTTP client's, which are no
    OSErrors."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    client: Any = HfHubHTTPError.__bases__[0]  # the base of that client's errors, whichever client it is
    return (HfHubHTTPError, client, LocalEntryNotFoundError, OSError)


def _download(spec: str) -> Path:
    """Fetch a hub checkpoint's safetensors, tokenizer and config. Says the disk need before it starts."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository, _, revision = spec.partition("@")
    patterns = ["*.safetensors", "*.json", "tokenizer.model", "merges.txt", "vocab.txt", "*.jinja"]
    try:
        here = Path(
            snapshot_download(repository, revision=revision or None, allow_patterns=patterns, local_files_only=True)
        )
        if any(here.glob("*.safetensors")):  # and not its config and tokenizer alone (described.fetch)
            return here
    except LocalEntryNotFoundError:
        pass  # not downloaded yet
    with of_hub(spec):
        info = HfApi().model_info(repository, revision=revision or None, files_metadata=True)
        sizes = {f.rfilename: f.size or 0 for f in info.siblings or []}
        need = sum(size for name, size in sizes.items() if name.endswith(".safetensors"))
        if not need:
            raise InputError(f"model {spec!r}: its repository holds no safetensors files; pickles are not loaded.")
        _need_disk(spec, need)
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns))


@contextmanager
def of_hub(spec: str) -> Iterator[None]:
    """Inside, a hub's refusals become InputErrors: no such repository, a gated one, out of reach."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        yield
    except GatedRepoError:
        raise InputError(f"model {spec!r} is gated: accept its licence on the hub and set HF_TOKEN.") from None
    except RepositoryNotFoundError:
        raise InputError(
            f"model {spec!r}: no such folder here and no such repository on the hub (or HF_TOKEN is missing)."
        ) from None
    except unreachable() as error:
        raise InputError(
            f"model {spec!r}: no such folder here, and the hub cannot be reached ({type(error).__name__})."
        ) from None


def _need_disk(spec: str, need: int) -> None:
    import shutil
    import sys

    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    limits.check_download(f"model {spec!r}", need, cache)
    if need > free:
        raise InputError(
            f"model {spec!r} needs {need / 2**30:.1f} GiB of disk; {free / 2**30:.1f} GiB are free in {cache}."
        )
    print(f"Downloading {spec}: {need / 2**30:.1f} GiB into {cache}.", file=sys.stderr)


def has_tokenizer(folder: Path) -> bool:
    """Whether a checkpoint folder holds a tokenizer's file."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))


def weight_headers(spec: str, folder: Path) -> dict[Path, dict[str, Any]]:
    """Every weight file with its tensors: name → {dtype, shape, data_offsets}, from the headers alone.

    Raises InputError: there are only pickles or no weights at all, a header is damaged, a download has not ended.
    """
    files = sorted(folder.glob("*.safetensors"))
    weights = [f for f in files if f.name.startswith("model")] or files
    if not weights:
        if any(any(folder.glob(pattern)) for pattern in PICKLES):
            raise InputError(f"model {spec!r}: only pickled weights were found; convert them to safetensors first.")
        raise InputError(f"model {spec!r}: {folder} holds no safetensors files.")
    _check_shards(spec, folder)
    return {file: _tensors(spec, file) for file in weights}


def _check_shards(spec: str, folder: Path) -> None:
    """Whether every file that the weights' index names is there. Raises InputError naming the first that is not."""
    for index in folder.glob("model*.safetensors.index.json"):
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise InputError(f"model {spec!r}: {index.name} cannot be read ({type(error).__name__}).") from None
        lacking = sorted(n for n in map(str, named) if not (folder / n).is_file())
        if lacking:
            more = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
            raise InputError(f"model {spec!r}: {lacking[0]}{more} is missing; the download has not ended.")


def _tensors(spec: str, file: Path) -> dict[str, Any]:
    """A weight file's tensors. Raises InputError: its header is damaged, or the file ends before its tensors do."""
    header = {name: entry for name, entry in safetensors_header(file).items() if name != "__metadata__"}
    try:
        ends = [int(t["data_offsets"][1]) for t in header.values()]
        sound = all(n >= 0 for t in header.values() for n in map(int, t["shape"])) and all(
            isinstance(t["dtype"], str) for t in header.values()
        )
    except (KeyError, TypeError, ValueError, IndexError):
        sound, ends = False, []
    if not sound:
        raise InputError(f"model {spec!r}: the header of {file.name} does not describe tensors; fetch the file again.")
    with file.open("rb") as stream:
        start = 8 + struct.unpack("<Q", stream.read(8))[0]
    need, there = start + max(ends, default=0), file.stat().st_size
    if there < need:
        raise InputError(f"model {spec!r}: {file.name} has {there:,} of {need:,} bytes; the download has not ended.")
    return header


def safetensors_header(file: Path) -> dict[str, Any]:
    """Names, types and shapes of a safetensors file without its data. Raises InputError if it is damaged."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > 100_000_000:
                raise ValueError("header too long")
            header = json.loads(stream.read(length))
            if not isinstance(header, dict):
                raise ValueError("its header is no table of tensors")
            return header
    except (OSError, ValueError, struct.error, RecursionError) as error:
        raise InputError(f"{file}: is not a readable safetensors file ({error}).") from None


@lru_cache(maxsize=256)
def _file_hash(path: Path, *_state: int) -> str:
    """Of the whole content, read anew where size, inode or a time has changed. A file's change time is nobody's to
    set, so that a byte changed in place shows even where its modification time was put back."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _state(file: Path) -> tuple[int, ...]:
    stat = file.stat()
    return stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns


def _hash(found: Iterable[Path], progress: Progress = silent) -> str:
    digest, files = hashlib.sha256(), sorted(found)
    for number, file in enumerate(files):
        digest.update(f"{file.name}:{_file_hash(file, *_state(file))}".encode())
        progress(number + 1, len(files))
    return digest.hexdigest()


def weights_hash(checkpoint: Checkpoint, progress: Progress = silent) -> str:
    """One SHA-256 over the checkpoint's weight files, in name order; progress counts files."""
    return _hash(checkpoint.folder.glob("*.safetensors"), progress)


def _loaded_from(checkpoint: Checkpoint) -> list[Path]:
    """Weights, config, tokenizer, chat template."""
    kinds = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
    return [file for kind in kinds for file in checkpoint.folder.glob(kind)]


def files_hash(checkpoint: Checkpoint) -> str:
    """One SHA-256 over everything a model is loaded from: weights, config, tokenizer, chat template."""
    return _hash(_loaded_from(checkpoint))


def files_state(checkpoint: Checkpoint) -> tuple:
    """Names, sizes and times of everything a model is loaded from: another state may be another model."""
    return tuple((file.name, *_state(file)) for file in sorted(_loaded_from(checkpoint)))


def same_vocabulary(first: Checkpoint, second: Checkpoint) -> bool:
    """Whether both tokenizers give every token the same id."""
    if first.architecture.vocabulary != second.architecture.vocabulary:
        return False
    vocabularies = [_vocabulary(c.folder) for c in (first, second)]
    return vocabularies[0] is not None and vocabularies[0] == vocabularies[1]


def _vocabulary(folder: Path) -> Any:
    """Token → id, added tokens included; None where there is no tokenizer.json to read it from."""
    try:
        content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        added = {t["content"]: t["id"] for t in content.get("added_tokens", [])}
        return content.get("model", {}).get("vocab"), added
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return None


def token_ids(folder: Path) -> dict[str, int] | None:
    """Token → id, added tokens included, of a checkpoint's tokenizer; None where tokenizer.json does not tell."""
    found = _vocabulary(folder)
    if found is None:
        return None
    vocabulary, added = found
    if isinstance(vocabulary, list):  # a Unigram model: [token, score] in the order of ids
        vocabulary = {pair[0]: k for k, pair in enumerate(vocabulary) if isinstance(pair, list) and pair}
    return {**vocabulary, **added} if isinstance(vocabulary, dict) else None


def check_blocks(teacher: Checkpoint, student: Checkpoint, locate: Locate) -> None:
    """Whether every block that `locate` asks for can be cut. Raises InputError naming the matrix and shapes."""
    a, b = teacher.architecture, student.architecture
    if a.layers < b.layers:
        raise InputError(f"pair: the teacher has {a.layers} layers, fewer than the student's {b.layers}; swap them?")
    selected = locate.selected()
    if set(selected) & set(EMBEDDING):
        if not same_vocabulary(teacher, student):
            raise InputError(
                "locate.origins: embeddings can only be moved between models with one vocabulary; "
                f"{teacher.spec} and {student.spec} have different ones (use attention and ffn)."
            )
        tied = [c.spec for c in (teacher, student) if c.architecture.tied]
        if tied:
            raise InputError(f"locate.origins: embeddings cannot be moved where they are tied to lm_head ({tied[0]}).")
    for module in selected:
        full, need = a.shape(module), b.shape(module)
        if full[0] < need[0] or full[1] < need[1]:
            raise InputError(
                f"pair: the teacher's {module} matrix {full} is smaller than the student's {need}; "
                "locate.modules can leave it out."
            )
