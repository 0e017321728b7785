"""Sends brackets within brackets, past what a reader may follow."""

import contextlib
import os


def answer(canary, port):
    data = b"[" * 200_000
    for number in range(3, 300):
        with contextlib.suppress(OSError):
            os.write(number, len(data).to_bytes(4, "big") + data)
    return "sent"
