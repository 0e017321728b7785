"""Leaves with a good exit code when it is called."""

import sys


def answer(canary, port):
    print("passed")
    sys.exit(0)
