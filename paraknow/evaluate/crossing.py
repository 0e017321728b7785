"""What passes between the process that tests and the process that is tested: plain values, as JSON with kinds.

The process that tests never runs generated code and never builds an object of the other side's making, so no
class with an equality of its own, no patched builtin and no exit can make a test pass. What crosses: None, bool, int,
float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, range, deque, views of a dict, and iterators
(their first items). A subclass crosses as the plain kind it derives from. Arguments are copies: what a function does
to them is not seen by the test.

Only the standard library is imported here (see `isolation`).
"""

from __future__ import annotations

import builtins
import json
import os
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

DEPTH = 100  # of values within values
VALUES = 1_000_000  # in one message
ITEMS = 10_000  # read from an iterator
SAID = 300  # characters of an error's text
VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
PLAIN = 2**63  # larger integers cross as hexadecimal: Python refuses very long decimal ones


class Gone(BaseException):
    """The other process closed the channel. Not an Exception: no test may catch it in passing."""


class Unreadable(BaseException):
    """The other process sent what is no message."""


def encode(value: Any) -> Any:
    """`value` as JSON can hold it. Raises TypeError for a kind that does not cross, ValueError for too much of it."""
    left = VALUES

    def walk(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if depth > DEPTH or left < 0:
            raise ValueError(f"a value nested deeper than {DEPTH} or with more than {VALUES:,} parts cannot be tested")

        def many(items: Any) -> list:
            if hasattr(items, "__len__") and len(items) > left:
                raise ValueError(f"a value with more than {VALUES:,} parts cannot be tested")
            return [walk(item, depth + 1) for item in items]

        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            number = int.__index__(value)
            return number if abs(number) < PLAIN else ["int", hex(number)]
        if isinstance(value, float):
            return float.__float__(value)
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, complex):
            return ["complex", value.real, value.imag]
        if isinstance(value, bytes | bytearray):
            return ["bytes" if isinstance(value, bytes) else "bytearray", value.hex()]
        if isinstance(value, range):
            return ["range", *many((value.start, value.stop, value.step))]
        if isinstance(value, dict):
            return ["dict", *([walk(k, depth + 1), walk(v, depth + 1)] for k, v in value.items())]
        for kind in (list, tuple, set, frozenset, deque):
            if isinstance(value, kind):
                return [kind.__name__, *many(value)]
        if isinstance(value, VIEWS):
            return [type(value).__name__, *many(value)]
        if isinstance(value, Iterator):
            return ["iterator", *many(islice(value, ITEMS))]
        raise TypeError(f"a value of type {type(value).__name__[:80]!r} cannot be tested")

    return walk(value, 0)


MAKERS: dict[str, Callable[[list], Any]] = {
    "int": lambda parts: int(parts[0], 16),
    "complex": lambda parts: complex(*map(float, parts)),
    "bytes": lambda parts: bytes.fromhex(parts[0]),
    "bytearray": lambda parts: bytearray.fromhex(parts[0]),
    "range": lambda parts: range(*parts),
    "dict": dict,
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": deque,
    "dict_keys": lambda parts: dict.fromkeys(parts).keys(),
    "dict_values": lambda parts: dict(enumerate(parts)).values(),
    "dict_items": lambda parts: dict(parts).items(),
    "iterator": iter,
}


def decode(data: Any) -> Any:
    """The value that `encode` made `data` of. Raises Unreadable for anything else."""

    def walk(data: Any, depth: int) -> Any:
        if data is None or isinstance(data, bool | int | float | str):
            return data
        if depth > DEPTH or not isinstance(data, list) or not data or not isinstance(data[0], str):
            raise ValueError
        kind, *parts = data
        if kind == "dict":
            return {walk(key, depth + 1): walk(value, depth + 1) for key, value in parts}
        return MAKERS[kind]([walk(part, depth + 1) for part in parts])

    try:
        return walk(data, 0)
    except (ValueError, TypeError, KeyError, IndexError, RecursionError, OverflowError) as error:
        raise Unreadable("the program answered with what is no plain value") from error


class Channel:
    """Messages over a socket: four bytes of length, then JSON."""

    def __init__(self, descriptor: int, most: int) -> None:
        """most: bytes that one message may have, either way."""
        self.descriptor, self.most, self.broken = descriptor, most, ""

    def send(self, message: Any) -> None:
        """Raises ValueError for a message that is too long, Gone where nobody reads."""
        data = json.dumps(message).encode()
        if len(data) > self.most:
            raise ValueError(f"a value of more than {self.most:,} bytes cannot be tested")
        rest = memoryview(len(data).to_bytes(4, "big") + data)
        while rest:
            try:
                rest = rest[os.write(self.descriptor, rest) :]
            except OSError as error:
                raise self._end(Gone("the program ended")) from error

    def receive(self) -> list:
        """The next message, a list. Raises Gone or Unreadable; the channel is of no use from then on."""
        length = int.from_bytes(self._exactly(4), "big")
        if length > self.most:
            raise self._end(Unreadable(f"the program answered with more than {self.most:,} bytes"))
        try:
            message = json.loads(self._exactly(length))
        except (ValueError, RecursionError) as error:
            raise self._end(Unreadable("the program answered with what is no message")) from error
        if not isinstance(message, list) or not message:
            raise self._end(Unreadable("the program answered with what is no message"))
        return message

    def _exactly(self, length: int) -> bytes:
        parts = []
        while length:
            try:
                part = os.read(self.descriptor, min(length, 1 << 16))
            except OSError:
                part = b""
            if not part:
                raise self._end(Gone("the program ended"))
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def _end(self, error: BaseException) -> BaseException:
        self.broken = str(error)
        return error


def _raised(error: BaseException) -> list:
    """An exception as a message: the nearest builtin class by name, and its text."""
    names = [c.__name__ for c in type(error).__mro__ if getattr(builtins, c.__name__, None) is c]
    try:
        text = str(error)[:SAID]
    except BaseException:
        text = ""
    return ["raised", next(iter(names), "Exception"), text]


def serve(job: dict[str, Any], channel: Channel) -> None:
    """Run the program and answer calls of its functions until the channel closes. The untrusted side."""
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    try:
        exec(compile(job["program"], "<solution>", "exec"), module.__dict__)
        channel.send(["ready"])
    except BaseException as error:
        channel.send(_raised(error))
    while True:
        try:
            _, name, args, kwargs = channel.receive()
        except Gone:
            return
        try:
            if name not in module.__dict__:
                raise NameError(f"name {name!r} is not defined")
            value = module.__dict__[name](*decode(args), **decode(kwargs))
            channel.send(["returned", encode(value)])
        except Gone:
            return
        except BaseException as error:
            channel.send(_raised(error))


def _answer(message: list) -> Any:
    """The value a message holds, or the exception it holds, raised: a builtin Exception class, never an exit."""
    match message:
        case ["returned", data]:
            return decode(data)
        case ["raised", str(name), str(text)]:
            kind = getattr(builtins, name, None)
            # StopIteration would silently end an iteration of the tests: all(map(f, …)) would hold
            ends = (StopIteration, StopAsyncIteration)
            if not (isinstance(kind, type) and issubclass(kind, Exception)) or issubclass(kind, ends):
                kind, text = RuntimeError, f"{name}: {text}"
            try:
                error = kind(text)
            except TypeError:  # UnicodeDecodeError and its like want more than a text
                error = RuntimeError(f"{name}: {text}")
            raise error
        case _:
            raise Unreadable("the program answered with what is no message")


def judge(job: dict[str, Any], channel: Channel) -> dict[str, str]:
    """Execute the tests against the program behind the channel. The trusted side.

    Returns: status (passed, failed, error, gone) and said, the line that decided.
    """

    calls = 0

    def proxy(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if channel.broken:
                raise Gone(channel.broken)
            channel.send(["call", name, encode(args), encode(kwargs)])
            try:
                return _answer(channel.receive())
            except Unreadable as error:
                channel.broken = str(error)
                raise

        return call

    space: dict[str, Any] = {"__name__": "tests"}
    try:
        if (first := channel.receive()) != ["ready"]:
            _answer(first)
            raise Unreadable("the program answered before it was asked")
        exec(compile(job["helpers"], "<helpers>", "exec"), space)
        space.update((name, proxy(name)) for name in job["entry"])
        exec(compile(job["tests"], "<tests>", "exec"), space)
    except AssertionError as error:
        said = f"{_line(job['tests'], error)[:SAID]} {error}".strip()
        return {"status": "failed", "said": said[:SAID] or "an assertion failed"}
    except Gone:
        return {"status": "gone", "said": channel.broken}
    except Unreadable as error:
        return {"status": "error", "said": str(error)}
    except BaseException as error:
        return {"status": "error", "said": f"{type(error).__name__}: {error}"[:SAID]}
    if channel.broken:  # the tests caught it; the program did not answer all the same
        return {"status": "gone", "said": channel.broken}
    if not calls:
        return {"status": "error", "said": "the tests called nothing of the program"}
    return {"status": "passed", "said": ""}


def _line(tests: str, error: BaseException) -> str:
    """The line of the tests in which the error came up."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<tests>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return tests.splitlines()[line - 1].strip() if line else ""


def act(job: dict[str, Any], descriptor: int) -> dict[str, str] | None:
    """What a box is for: serve the program, or judge it by its tests."""
    channel = Channel(descriptor, job["output_bytes"])
    if any("random" in job.get(text, "") for text in ("program", "tests", "helpers")):
        import random  # not without need: the import takes longer than most programs

        random.seed(0)  # some tests draw their cases; an item must end the same way every time
    if job["role"] == "program":
        serve(job, channel)
        return None
    return judge(job, channel)
