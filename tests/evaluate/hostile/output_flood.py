"""Prints without end, on every channel it has for that."""

import os
import sys


def answer(canary, port):
    while True:
        print("x" * 100_000)
        print("x" * 100_000, file=sys.stderr)
        os.write(1, b"x" * 100_000)
