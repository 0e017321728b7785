"""Files that grow by lines while others read them: a run's events, read on from where one was; a log's end (no torch).

Nothing is read twice: a page asks every second, and a long run writes many thousands of lines.
"""

from __future__ import annotations

import json
import unicodedata
from contextlib import suppress
from pathlib import Path
from typing import Any

KNOWN = 256  # bytes before the place one has come to, by which the file is known again
BLOCK = 2**16  # bytes read at a time from a log's end
LONGEST = 2**20  # bytes of a log's end that are looked through for its last lines


class Lines:
    """The whole lines of a file, each once; a last one that is still being written waits until it is whole.

    A file that is shorter than it was, or another one under the same name, is read from its beginning: `again` says
    so after `new`, and what was read before is void. It is true of the first reading too.
    """

    def __init__(self, path: Path):
        self.path, self.at, self.known, self.again = path, 0, b"", False

    def new(self) -> list[str]:
        """The lines that have come since the last call; none where the file is not there (yet)."""
        try:
            with self.path.open("rb") as stream:
                stream.seek(self.at - len(self.known))
                self.again = not self.at or stream.read(len(self.known)) != self.known
                if self.again:
                    self.at, self.known = 0, b""
                    stream.seek(0)
                text = stream.read()
        except OSError:
            self.again = False
            return []
        return self._take(text[: text.rfind(b"\n") + 1])

    def _take(self, whole: bytes) -> list[str]:
        self.at += len(whole)
        self.known = (self.known + whole)[-KNOWN:]
        return whole.decode("utf-8", errors="replace").split("\n")[:-1]

    def last(self, count: int) -> list[str]:
        """The last lines, an unfinished one among them; `new` goes on after them. Only the file's end is read."""
        try:
            with self.path.open("rb") as stream:
                end = start = stream.seek(0, 2)
                text = b""
                while start and text.count(b"\n") <= count and len(text) < LONGEST:
                    start = max(0, start - BLOCK)
                    stream.seek(start)
                    text = stream.read(end - start)
        except OSError:
            return []
        self.at, self.known = end, text[-KNOWN:]
        if start:
            text = text.partition(b"\n")[2] or text  # the first line's beginning lies before what was read
        lines = text.decode("utf-8", errors="replace").split("\n")
        return (lines if lines[-1] else lines[:-1])[-count:] if count else []


class EventsReader:
    """A run's events as they come. `again`: see `Lines`."""

    def __init__(self, path: Path):
        self.lines = Lines(path)

    @property
    def again(self) -> bool:
        return self.lines.again

    def new(self) -> list[dict[str, Any]]:
        """Readable events since the last call, oldest first."""
        result = []
        for line in self.lines.new():
            with suppress(ValueError, RecursionError):
                event = json.loads(line)
                if isinstance(event, dict):
                    result.append(event)
        return result


def harmless(line: str) -> str:
    """A line of a log without what a terminal would obey or a reader would not see: control and format characters."""
    return "".join(
        c if c == "\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") else f"\\u{ord(c):04x}"
        for c in line.rstrip("\r")
    )
