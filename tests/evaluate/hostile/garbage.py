"""Sends what is no message: a huge length, then noise."""

import contextlib
import os


def answer(canary, port):
    for number in range(3, 300):
        with contextlib.suppress(OSError):
            os.write(number, b"\xff" * 5000)
    return "sent"
