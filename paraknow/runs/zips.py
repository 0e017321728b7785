"""Zip files from elsewhere: what can be wrong with one is found before or while it is unpacked (no torch)."""

from __future__ import annotations

import hashlib
import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paraknow.errors import InputError

MAX_ENTRIES = 5000
MAX_TOTAL = 32 * 2**30  # bytes unpacked
MAX_RATIO = 100  # of an entry above SMALL; deflate reaches 1032, tables and weights do not reach 5
SMALL = 16 * 2**20
MAX_DIRECTORY = 4 * 2**20  # bytes of the list of entries, which is read at once
CHUNK = 2**20
_BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError, OverflowError, OSError)


class _Bounded(io.FileIO):
    """A file that never gives more at once than a list of entries may have."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY:
            raise zipfile.BadZipFile("its list of entries is too large")
        return super().read(size)


class Archive:
    """An open zip file whose entries have been checked: `entries` by name, folders left out."""

    def __init__(self, archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], top: str, where: str):
        self._archive, self.entries, self.where = archive, entries, where
        self.top = top  # the folder that was around all entries, if there was one

    @property
    def size(self) -> int:
        """Bytes unpacked, as declared; nothing more is ever written."""
        return sum(info.file_size for info in self.entries.values())

    def read(self, name: str, most: int) -> bytes:
        """A small entry's content. Raises InputError where it has more than `most` bytes or is damaged."""
        if self.entries[name].file_size > most:
            raise InputError(f"{self.where}: {name} is larger than {most // 2**20} MiB.")
        return b"".join(self._chunks(name))

    def unpack(self, name: str, target: Path) -> str:
        """Write an entry to a new file and return its SHA-256. Raises InputError where it is damaged."""
        digest = hashlib.sha256()
        with target.open("xb") as stream:
            for chunk in self._chunks(name):
                digest.update(chunk)
                stream.write(chunk)
        return digest.hexdigest()

    def _chunks(self, name: str) -> Iterator[bytes]:
        info, left = self.entries[name], self.entries[name].file_size
        with _readable(f"{self.where}: {name[:100]!r}"), self._archive.open(info) as stream:
            while chunk := stream.read(CHUNK):
                left -= len(chunk)
                if left < 0:
                    raise zipfile.BadZipFile("it holds more than it declares")
                yield chunk
            if left:
                raise zipfile.BadZipFile("it holds less than it declares")


@contextmanager
def opened(path: Path, where: str) -> Iterator[Archive]:
    """A zip file with sound entries; one folder around all of them is taken off their names.

    Raises InputError, its text beginning with `where`: no zip file, damaged, too large, or an entry that is no plain
    file inside it.
    """
    try:
        stream = _Bounded(path)
    except OSError as error:
        raise InputError(f"{where}: cannot be read ({error.strerror}).") from None
    with stream:
        with _readable(where):
            archive = zipfile.ZipFile(stream)
        with archive:
            yield Archive(archive, *_checked(archive, path.stat().st_size, where), where)


@contextmanager
def _readable(where: str) -> Iterator[None]:
    """Whatever a damaged zip file makes the zip module raise becomes one sentence."""
    try:
        yield
    except _BROKEN as error:
        raise InputError(f"{where}: is no readable zip file ({' '.join(str(error).split())[:200]}).") from None


def _checked(archive: zipfile.ZipFile, size: int, where: str) -> tuple[dict[str, zipfile.ZipInfo], str]:
    """The entries that are files, by name, and the folder around all of them."""
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        raise InputError(f"{where}: has {len(entries)} entries; at most {MAX_ENTRIES} are accepted.")
    for info in entries:
        if bad := _bad_name(info.orig_filename) or _bad_entry(info):
            raise InputError(f"{where}: the entry {info.orig_filename[:100]!r} {bad}.")
    files = [info for info in entries if not info.is_dir()]
    folded: dict[str, str] = {}
    for info in files:
        if other := folded.get(info.filename.casefold()):
            more = "is there twice" if other == info.filename else f"and {other[:100]!r} differ by case alone"
            raise InputError(f"{where}: the entry {info.filename[:100]!r} {more}.")
        folded[info.filename.casefold()] = info.filename
    if (total := sum(info.file_size for info in files)) > MAX_TOTAL:
        raise InputError(f"{where}: unpacks to {total / 2**30:.0f} GiB; at most {MAX_TOTAL // 2**30} are accepted.")
    if sum(info.compress_size for info in files) > size:
        raise InputError(f"{where}: its entries share their content, which no bundle's do.")
    tops = {info.filename.split("/")[0] for info in files}
    inside = len(tops) == 1 and all("/" in info.filename for info in files)
    names = [info.filename.split("/", 1)[1] if inside else info.filename for info in files]
    return dict(zip(names, files, strict=True)), tops.pop() if inside else ""


def _bad_name(name: str) -> str | None:
    """Why a name could lead out of the folder it is unpacked into, or be read differently elsewhere."""
    if any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) <= 0xDFFF for c in name):
        return "has a control character in its name"
    if name.startswith("/") or "\\" in name or ":" in name:
        return "has a name that is no relative path with forward slashes"
    parts = name.removesuffix("/").split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "has a name that leads elsewhere"
    return None if len(name) <= 400 else "has too long a name"


def _bad_entry(info: zipfile.ZipInfo) -> str | None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFDIR if info.is_dir() else stat.S_IFREG):
        return "is a link or a special file"
    if info.is_dir():
        return "is a folder with content" if info.file_size else None
    if info.flag_bits & 0x41:
        return "is encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is compressed in a way that is not accepted; stored and deflated ones are"
    if info.file_size > max(SMALL, MAX_RATIO * info.compress_size):
        return f"unpacks to more than {MAX_RATIO} times its size"
    return None
