"""Calls itself until the stack ends, having raised Python's own bound."""

import sys

sys.setrecursionlimit(10**9)


def answer(canary, port):
    return [answer(canary, port)]
