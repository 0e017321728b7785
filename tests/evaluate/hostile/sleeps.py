"""Sleeps for longer than anyone waits."""

import time


def answer(canary, port):
    time.sleep(10_000)
