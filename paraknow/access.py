"""Which files may be opened by name: all of them, or only those in the folders that were allowed (no torch).

`paraknow app` puts what it was told (`--models-dir`, `--data-dir`, a host that others reach) into the environment of
the page server. Everything that turns a name somebody typed into a file asks `place` or `found` here, in the page
server as in the worker, so that no page can forget to. A run that is queued under limits carries them in its folder
(access.json): the worker, which has no page, opens no more for it than the page that wrote its config might.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from paraknow import files, resources
from paraknow.errors import InputError

VARIABLE = "PARAKNOW_ACCESS"
FILE = "access.json"
ENTRIES = 20_000  # files of a folder that are looked at for links that lead out of it
LONGEST = 4096  # characters of a path, as the kernel has it
HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[A-Za-z0-9][\w.-]*)?", re.ASCII)
HUB_DATA = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[A-Za-z0-9][\w.-]*)?", re.ASCII)
_PATH = re.compile(r"(?<![\w./:~-])(?:~[\w.-]*)?/[^\s'\"`,;:()<>]*[^\s'\"`,;:()<>.]")

Kind = Literal["models", "data"]
Roots = tuple[str, ...] | None  # resolved folders; None: everywhere


@dataclass(frozen=True)
class Access:
    """shared: others reach the pages. models, data: the folders whose files may be opened; None is everywhere.

    login: nobody sees a page before st.login has let them in.
    """

    shared: bool = False
    models: Roots = None
    data: Roots = None
    login: bool = False

    @property
    def limited(self) -> bool:
        return self != Access()

    def folders(self, kind: Kind) -> Roots:
        """The folders whose files may be opened."""
        return self.models if kind == "models" else self.data

    def dump(self) -> str:
        return json.dumps(asdict(self))


CLOSED = Access(True, (), (), True)  # what damaged limits are read as
_USED: ContextVar[Access | None] = ContextVar("access", default=None)


def grant(shared: bool = False, models: Sequence[Path] = (), data: Sequence[Path] = (), login: bool = False) -> Access:
    """Access to some folders: a shared server opens nothing else; otherwise a kind without a folder is not limited.

    Raises InputError for what is no folder.
    """
    made: dict[str, Roots] = {}
    for kind, given in (("models", models), ("data", data)):
        for folder in given:
            if not folder.expanduser().is_dir():
                raise InputError(f"--{kind}-dir {str(folder)!r}: no such folder.")
        made[kind] = tuple(str(f.expanduser().resolve()) for f in given) if given or shared else None
    return Access(shared, made["models"], made["data"], login)


def parse(values: Any) -> Access:
    """Limits from what JSON holds; closed where that cannot be understood."""
    try:
        kinds = {k: None if values[k] is None else tuple(map(str, values[k])) for k in ("models", "data")}
        return Access(bool(values["shared"]), kinds["models"], kinds["data"], bool(values["login"]))
    except (KeyError, TypeError):
        return CLOSED


def current() -> Access:
    """The limits of this process, or of the run that is carried out in it."""
    if (used := _USED.get()) is not None:
        return used
    text = os.environ.get(VARIABLE)
    if not text:
        return Access()
    try:
        return parse(json.loads(text))
    except ValueError:
        return CLOSED


# -- limits of a run --------------------------------------------------------------------------------


def keep(folder: Path) -> None:
    """Put the limits of this process into a new run folder; nothing where there are none."""
    if (now := current()).limited:
        files.write_json(folder / FILE, asdict(now))


@contextmanager
def of_run(folder: Path, own: Path | None = None) -> Iterator[None]:
    """Inside, the limits are those the run's config was written under: none for the command line's own runs.

    What a run has made itself (a widened student) may be opened again. `own`: the run's folder, where `folder` is that
    of a question about it.
    """
    kept = Access()
    if (folder / FILE).exists():
        try:
            kept = parse(files.read_json(folder / FILE))
        except (OSError, ValueError):
            kept = CLOSED
    if kept.models is not None:
        kept = replace(kept, models=(*kept.models, str((own or folder).resolve())))
    token = _USED.set(kept if kept.limited else current())
    try:
        yield
    finally:
        _USED.reset(token)


# -- names and files --------------------------------------------------------------------------------


def place(name: str, kind: Kind, what: str) -> Path:
    """The path that a name means; its links resolved where there are limits.

    Raises InputError: it can be no path; it, or a link inside it, leads out of the allowed folders. The sentence is
    the same whether or not there is such a file, so that nobody learns from it what lies elsewhere.
    """
    roots = current().folders(kind)
    path = _resolved(name, roots)
    if path is None and roots is None:
        raise InputError(f"{what}: this can be no path of a file or folder.")
    if path is None or any(not _inside(Path(os.path.realpath(link)), roots) for link in _links(path, roots, what)):
        raise InputError(
            f"{what}: files can be opened here only from the folders named with --{kind}-dir, and this is in none of "
            "them."
        )
    return path


def found(name: str, kind: Kind) -> Path | None:
    """The path a name means if it exists and lies where files may be opened, else None."""
    path = _resolved(name, current().folders(kind))
    return path if path and path.exists() else None


def _resolved(name: str, roots: Roots) -> Path | None:
    """The path a name means; None where it can be none, or lies outside."""
    try:
        if "\0" in name or len(name) > LONGEST:
            return None
        path = Path(name).expanduser()
        path.exists()  # raises where a name is too long, or its folder may not be looked into
        if roots is None:
            return path
        if name.startswith(("//", "\\\\")):  # another machine's, where the system knows such names
            return None
        real = path.resolve()
        return real if _inside(real, roots) else None
    except (OSError, ValueError, RuntimeError):
        return None


def _inside(path: Path, roots: Roots) -> bool:
    return roots is None or any(path.is_relative_to(root) for root in roots)


def _links(folder: Path, roots: Roots, what: str) -> Iterator[Path]:
    """All links below a folder, none of them followed; where nothing is limited nobody looks."""
    seen = 0
    for base, folders, names in os.walk(folder) if roots is not None else ():
        for name in (*folders, *names):
            seen += 1
            if seen > ENTRIES:
                raise InputError(f"{what}: the folder holds more than {ENTRIES} files; name one further down.")
            path = Path(base, name)
            if path.is_symlink():
                yield path


def hub_data(name: str, what: str) -> None:
    """Refuse, where there are limits, a dataset's name that its reader could take for a local path. InputError."""
    if current().data is None:
        return
    repository = name.partition("@")[0]
    if not HUB_DATA.fullmatch(name) or any(map(os.path.lexists, (repository, repository.rpartition("/")[0]))):
        raise InputError(f"{what}: accepted here is org/name, org/name/config or org/name@revision of a dataset hub.")


def own_files(folder: Path, what: str) -> None:
    """Refuse, where there are limits, a checkpoint whose JSON names files outside its own folder. InputError.

    transformers would open them: weight files that an index lists, vocabulary files of a tokenizer's settings.
    """
    if current().models is None:
        return
    named: list[tuple[str, Any]] = []
    for index in folder.glob("*.index.json"):
        named += [(index.name, shard) for shard in (_object(index).get("weight_map") or {}).values()]
    settings = _object(folder / "tokenizer_config.json")
    named += [("tokenizer_config.json", v) for k, v in settings.items() if k.endswith("_file") and v is not None]
    for where, value in named:
        if not isinstance(value, str) or value != os.path.basename(value) or value in ("", ".", ".."):
            raise InputError(f"{what}: its {where} names a file outside its own folder, which is not opened here.")


def _object(path: Path) -> dict[str, Any]:
    try:
        return files.read_json(path)
    except (OSError, ValueError):
        return {}


def said(text: str) -> str:
    """A sentence for a page: on a shared server without paths that lie outside the allowed folders."""
    now = current()
    if not now.shared:
        return text
    roots = (*(now.models or ()), *(now.data or ()), str(resources.root()))
    shown = lambda m: m.group() if _inside(Path(os.path.normpath(m.group())), roots) else "…"  # noqa: E731
    return _PATH.sub(shown, text)
