"""One run as one zip file: written here, opened read-only elsewhere (no torch).

A bundle holds what pages show of a run (its config, status, tables, maps and results; adapters where asked for) and
`bundle.json`, which lists every file with its size and SHA-256. What only carrying on with the run would need stays
behind: starts, blocks, checkpoints, locks, logs.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from paraknow import __version__, files, limits
from paraknow import config as configs
from paraknow.errors import InputError, ResourceError
from paraknow.runs import artifacts, private, store, zips
from paraknow.runs.store import Run
from paraknow.runs.upgrades import PASSED_OVER, UPGRADES

SCHEMA_VERSION = 1
LIST = "bundle.json"
MAX_LIST = 4 * 2**20  # bytes of bundle.json
NOT_TOLD = ("schema_version",)  # of a JSON file; its schema is written anew
ENDED = ("done", "failed", "cancelled", "lost")
STORED = 16 * 2**20  # tensors above this are not deflated: weights hardly shrink


class File(BaseModel):
    """One file of a bundle."""

    model_config = ConfigDict(strict=True)
    path: str = Field(max_length=400)
    size: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


def content_hash(listed: Sequence[File]) -> str:
    """SHA-256 over all paths and hashes: two bundles with the same one hold the same run."""
    lines = sorted(f"{file.path}\n{file.sha256}\n" for file in listed)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def export(run: Run, path: Path, adapters: bool = False, replace: bool = False) -> Path:
    """Write a run's bundle. Paths of this machine are shortened in it (see private.py); the file is whole or absent.

    Raises InputError: the run is not finished or holds a link, or the file's name is not free or does not end in .zip.
    """
    if path.suffix.lower() != ".zip":
        raise InputError(f"{path}: a bundle's name ends in .zip.")
    if path.exists() and not (replace and path.is_file()):
        raise InputError(
            f"{path} exists already; name a new file{'' if path.is_dir() else ' or replace it (--force)'}."
        )
    with files.replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        listed = []
        for name, source in _contents(run, adapters):
            info = zipfile.ZipInfo(name)  # no time: the same run gives the same bytes
            info.external_attr = 0o100644 << 16
            stored = name.endswith(".safetensors") and source.stat().st_size > STORED
            info.compress_type = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
            info.file_size = source.stat().st_size
            with source.open("rb") as stream, archive.open(info, "w") as target:
                size, digest = _copy(stream, target)
            listed.append(File(path=name, size=size, sha256=digest))
        about = {"paraknow": __version__, "run": run.id, "created": time.time()}
        with tempfile.TemporaryDirectory() as folder:
            files.write_json(Path(folder, LIST), {**about, "files": [file.model_dump() for file in listed]})
            archive.write(Path(folder, LIST), LIST)
    return path


def files_of(run: Run, adapters: bool = False) -> list[Path]:
    """The run's own files that its bundle holds. Raises InputError where one is a link."""
    return [run.path(*name.split("/")) for name in _names(run, adapters)]


def exported_content(run: Run, adapters: bool) -> str:
    """The content hash that a run's bundle would have."""
    listed = []
    for name, source in _contents(run, adapters):
        with source.open("rb") as stream:
            size, digest = _copy(stream, None)
        listed.append(File(path=name, size=size, sha256=digest))
    return content_hash(listed)


def _copy(source: BinaryIO, target: Any) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    while chunk := source.read(2**20):
        size += len(chunk)
        digest.update(chunk)
        if target is not None:
            target.write(chunk)
    return size, digest.hexdigest()


def _contents(run: Run, adapters: bool) -> Iterator[tuple[str, Path]]:
    """Every file of a run's bundle: its name there, and where its bytes lie while it is being read."""
    state, values = run.status().get("state"), run.config().model_dump(mode="json")
    if state not in ENDED or (not run.read_only and run.locked()):
        raise InputError(f"run {run.id} is {state}; a bundle is made of one that has ended.")
    short = private.names({k: v for k, v in values.items() if k != "name"})
    with tempfile.TemporaryDirectory(prefix="paraknow-bundle-") as folder:
        staged = Path(folder, "file")
        for name in _names(run, adapters):
            source = run.path(*name.split("/"))
            try:  # whatever is exported can be imported
                if name != "events.jsonl":  # whose last line may be torn
                    artifacts.check(source, name)
                rewritten = _rewritten(run, name, staged, values, short)
                if rewritten:
                    artifacts.check(staged, name)
            except ValueError as error:
                raise InputError(f"run {run.id}: {name} is damaged ({error}).") from None
            yield name, staged if rewritten else source
            staged.unlink(missing_ok=True)


def _rewritten(run: Run, name: str, target: Path, config: dict[str, Any], short: dict[str, str]) -> bool:
    """Write a file as others are to get it; False, and nothing written, where they get it as it is."""
    source, kind = run.path(*name.split("/")), artifacts.kind_of(name)
    if kind == "table":
        return bool(short) and private.write_table(source, target, short)
    if kind in ("tensors", "text") or name.endswith("tokenizer.json"):
        return False
    if kind == "config":
        target.write_text(configs.dump(configs.parse(private.renamed(config, short))), encoding="utf-8")
    elif kind == "events":
        lines = [json.dumps(private.renamed(event, short)) + "\n" for event in run.events()]
        target.write_text("".join(lines), encoding="utf-8")
    elif artifacts.is_adapter(name):
        _shorten_base(source, target, short)
    else:
        values = files.read_json(source)
        if name == "status.json":
            values = {k: v for k, v in run.status().items() if k not in (*store.OWN_PLACE, "silent")}
        files.write_json(target, private.renamed({k: v for k, v in values.items() if k not in NOT_TOLD}, short))
    return True


def _names(run: Run, adapters: bool) -> list[str]:
    """Paths of the files that belong into the bundle. Raises InputError where one of the folder's is a link."""
    found = []
    for folder, folders, names in os.walk(run.folder):
        inside = Path(folder).relative_to(run.folder)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in (*folders, *names):
            if Path(folder, name).is_symlink():
                raise InputError(f"run {run.id}: {(inside / name).as_posix()} is a link; a bundle holds files alone.")
        for name in names:
            path = (inside / name).as_posix()
            if artifacts.kind_of(path) and (adapters or not artifacts.is_adapter(path)):
                found.append(path)
    return sorted(found)


def _shorten_base(source: Path, target: Path, short: dict[str, str]) -> None:
    """Put short what an adapter or checkpoint says it was made from; all else in its files is left alone."""
    values = files.read_json(source)
    for key in ("base_model_name_or_path", "_name_or_path", "name_or_path"):
        if isinstance(values.get(key), str):
            values[key] = private.renamed(values[key], {**private.names([values[key]]), **short})
    target.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


# -- reading ----------------------------------------------------------------------------------------


class List(BaseModel):
    """bundle.json."""

    model_config = ConfigDict(strict=True)
    schema_version: int
    run: str = Field(pattern=f"^(?:{store.ID})$")
    paraknow: str = Field("an unknown version", max_length=100)
    created: artifacts.Time = 0.0
    files: list[File] | None = None  # None: schema 0 lists nothing


class Imported(NamedTuple):
    """The run that a bundle is now, and whether it was here already."""

    run: Run
    known: bool


def import_(path: Path, root: Path | None = None, called: str | None = None) -> Imported:
    """Make a read-only run of a bundle, after everything in it has been checked.

    A bundle whose content is here already gives the run that is; another run of its id gives it a new one, with the
    beginning of its content's hash behind. `called`: what sentences call the file. Nothing is left behind on failure.
    Raises InputError: the file is no bundle, damaged, too large, of a newer version, or holds what no run has.
    """
    root, where = root or store.runs_folder(), called or str(path)
    with zips.opened(path, where) as archive:
        about = _list(archive, path)
        names = _wanted(archive, about)
        limits.check_disk(where, root, archive.size)
        if archive.size > limits.free(root):
            raise ResourceError(f"{where}: unpacks to {archive.size / 2**20:.0f} MiB, more than is free on the disk.")
        made = not root.exists()
        root.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".import-", dir=root))
        try:
            folder.chmod(0o755)
            listed = _unpack(archive, names, about, folder)
            for version in range(about.schema_version, SCHEMA_VERSION):
                _upgraded(UPGRADES[version], folder, where)
            content = content_hash(listed)
            origin = {"from": about.paraknow, "bundle_schema": about.schema_version, "made": about.created}
            mark = {"imported": time.time(), **origin, "sha256": _sha256(path), "content": content}
            files.write_json(folder / store.IMPORTED, mark)
            return _placed(folder, root, about.run, content, listed)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if made:
                with suppress(OSError):  # it holds runs now
                    root.rmdir()


def _upgraded(upgrade: Callable[[Path], None], folder: Path, where: str) -> None:
    try:
        upgrade(folder)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise InputError(f"{where}: its results are not those of an older version ({type(error).__name__}).") from None


def _list(archive: zips.Archive, path: Path) -> List:
    """bundle.json; for a packed run folder without one, what stands in its place."""
    where = archive.where
    if LIST not in archive.entries:
        if "config.yaml" not in archive.entries:
            raise InputError(f"{where}: holds neither {LIST} nor a run's config.yaml, so it is no bundle.")
        name = archive.top or path.stem
        return List(schema_version=0, run=name if re.fullmatch(store.ID, name) else f"packed-{_sha256(path)[:12]}")
    try:
        values = json.loads(archive.read(LIST, MAX_LIST))
    except (ValueError, RecursionError):
        raise InputError(f"{where}: {LIST} is no valid JSON.") from None
    version = values.get("schema_version") if isinstance(values, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        by = str(values.get("paraknow"))[:100]
        raise InputError(
            f"{where}: was written by paraknow {by!r} as a bundle of schema {version}; this version ({__version__}) "
            f"reads up to schema {SCHEMA_VERSION}, so a newer paraknow is needed."
        )
    if bad := artifacts.unsound(List, values):
        raise InputError(f"{where}: {LIST} is damaged ({bad}).")
    about = List.model_validate(values)
    if about.schema_version != SCHEMA_VERSION or about.files is None:
        raise InputError(f"{where}: {LIST} is damaged (schema_version {about.schema_version} lists no files so).")
    return about


def _wanted(archive: zips.Archive, about: List) -> list[str]:
    """The entries to unpack: exactly those listed, all of kinds that a run has."""
    names = [name for name in archive.entries if name != LIST]
    if about.files is None:
        names = [name for name in names if not PASSED_OVER.fullmatch(name)]
    else:
        listed = {file.path: file.size for file in about.files}
        for name in (*listed, *names):
            if name not in archive.entries or name not in listed:
                what = "is listed and not there" if name in listed else "is there and not listed"
                raise InputError(f"{archive.where}: {name[:100]!r} {what}.")
            if archive.entries[name].file_size != listed[name]:
                raise InputError(f"{archive.where}: {name!r} has not the size that is listed.")
    if odd := next((name for name in names if artifacts.kind_of(name) is None), None):
        raise InputError(f"{archive.where}: {odd[:100]!r} is no file that a run has; nothing else is accepted.")
    if lacking := next((name for name in ("config.yaml", "status.json") if name not in names), None):
        raise InputError(f"{archive.where}: lacks {lacking}, which every run has.")
    return names


def _unpack(archive: zips.Archive, names: Sequence[str], about: List, folder: Path) -> list[File]:
    """Write the entries into the folder and check their hashes and what they hold."""
    expected = {file.path: file.sha256 for file in about.files or ()}
    listed = []
    for name in names:
        target = folder.joinpath(*name.split("/"))
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = archive.unpack(name, target)
        if digest != expected.get(name, digest):
            raise InputError(f"{archive.where}: {name!r} has not the content whose hash is listed.")
        try:
            artifacts.check(target, name)
        except ValueError as error:
            said = str(error).replace(f"{target}: ", "")
            raise InputError(f"{archive.where}: {name} is refused: {said}.") from None
        listed.append(File(path=name, size=target.stat().st_size, sha256=digest))
    state = files.read_json(folder / "status.json")["state"]
    if about.schema_version == SCHEMA_VERSION and state not in ENDED:
        raise InputError(
            f"{archive.where}: status.json is refused: a bundle's run has ended, and this one is {state!r}."
        )
    return listed


def _placed(folder: Path, root: Path, wanted: str, content: str, listed: Sequence[File]) -> Imported:
    """Give the unpacked folder its name among the runs, unless its content has one there already."""
    adapters = any(artifacts.is_adapter(file.path) for file in listed)
    for name in (wanted, f"{wanted[:100]}-{content[:8]}"):
        same = [run for run in store.all_runs(root) if run.id == name]
        if any(_content(run, adapters) == content for run in same):
            return Imported(same[0], known=True)
        if name in store.RESERVED:
            continue
        with store.numbered(root) as number:  # lists show it as the newest
            if (root / name).exists():
                continue
            status = files.read_json(folder / "status.json")
            files.write_json(folder / "status.json", {**status, "number": number})
            folder.rename(root / name)
            return Imported(Run(root / name), known=False)
    raise InputError(f"{root / wanted}: another run has this name and also {wanted[:100]}-{content[:8]}; delete one.")


def _content(run: Run, adapters: bool) -> str | None:
    """The content hash of a run that is here; None where it cannot be had."""
    try:
        if run.imported:
            return str(files.read_json(run.path(store.IMPORTED)).get("content"))
        return exported_content(run, adapters)
    except (InputError, OSError, ValueError):
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
