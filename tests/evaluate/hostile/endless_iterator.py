"""Answers with an iterator that never ends and takes its time."""

import time


def answer(canary, port):
    while True:
        yield "x"
        time.sleep(0.1)
