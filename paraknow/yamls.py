"""YAML from people and from elsewhere, within limits that hold before anything is built from it (no torch).

YAML can make little text stand for very much (aliases of aliases), nest without end, or ask for kinds of values that
no config has. What is refused here needs no further care behind it.
"""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from paraknow.errors import InputError

MAX_BYTES = 128 * 1024  # a config with every default written out has 2 KiB
MAX_DEPTH = 40
MAX_VALUES = 20_000  # with aliases written out
MAX_NUMBER = 100  # characters of a number or date
_KINDS = {f"tag:yaml.org,2002:{kind}" for kind in "null bool int float str timestamp seq map merge".split()}
_TEXT = "tag:yaml.org,2002:str"


class _Loader(yaml.SafeLoader):
    """Stops at nesting and at numbers of values that no config has, before time is spent on them: what PyYAML needs
    for nesting grows with its square."""

    where = ""
    depth = values = 0

    def fetch_flow_collection_start(self, token: Any) -> None:
        if self.flow_level > MAX_DEPTH:
            raise _too_deep(self.where)
        super().fetch_flow_collection_start(token)

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth, self.values = self.depth + 1, self.values + 1
        if self.depth > MAX_DEPTH + 1:
            raise _too_deep(self.where)
        if self.values > MAX_VALUES:
            raise _too_many(self.where)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _too_large(where: str) -> InputError:
    return InputError(f"{where}: is larger than {MAX_BYTES // 1024} KiB, which no such file needs.")


def _too_deep(where: str) -> InputError:
    return InputError(f"{where}: is nested deeper than {MAX_DEPTH} levels.")


def _too_many(where: str) -> InputError:
    return InputError(f"{where}: holds more than {MAX_VALUES} values with its aliases written out.")


def read(path: Path) -> Any:
    """Plain values from a YAML file. Raises InputError: it cannot be read, is too large, or no plain YAML."""
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise _too_large(str(path))
        return parse(content.decode("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}).") from None


def parse(text: str, where: str) -> Any:
    """Plain values from YAML text, the caller's own. Raises InputError: one sentence that begins with `where`."""
    return copy.deepcopy(_parsed(text, where))


@lru_cache(maxsize=64)  # every page reads the configs of the same few runs, several times
def _parsed(text: str, where: str) -> Any:
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise _too_large(where)
    try:
        loader = _Loader(text)
        loader.where = where
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, loader, {}, where)
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # ValueError: dates and numbers that are none
        raise InputError(f"{where}: is not valid YAML ({_short(error)}).") from None


def _measure(node: yaml.Node, loader: Any, known: dict[int, tuple[int, int]], where: str) -> tuple[int, int]:
    """(values, depth) of a node with its aliases written out; `known` keeps those of nodes met before."""
    if id(node) in known:
        if not known[id(node)][0]:
            raise InputError(f"{where}: a value contains itself (*alias), which no setting can.")
        return known[id(node)]
    if node.tag not in _KINDS:
        raise InputError(f"{where}: the tag {node.tag[:80]!r} is not accepted; plain values are.")
    if not isinstance(node, yaml.CollectionNode):
        plain = loader.resolve(yaml.ScalarNode, node.value, (True, False))
        if node.tag not in (_TEXT, plain):
            raise InputError(f"{where}: {node.value[:80]!r} is not what its tag {node.tag[18:]!r} says.")
        if node.tag != _TEXT and len(node.value) > MAX_NUMBER:
            raise InputError(f"{where}: a number of {len(node.value)} characters is not accepted.")
        known[id(node)] = (1, 0)
        return known[id(node)]
    known[id(node)] = (0, 0)  # under way
    inner = [one for pair in node.value for one in pair] if isinstance(node, yaml.MappingNode) else node.value
    values, depth = 1, 0
    for one in inner:
        count, below = _measure(one, loader, known, where)
        values, depth = values + count, max(depth, below + 1)
        if values > MAX_VALUES:
            raise _too_many(where)
        if depth > MAX_DEPTH:
            raise _too_deep(where)
    known[id(node)] = (values, depth)
    return known[id(node)]


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]} …"
