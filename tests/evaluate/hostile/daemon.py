"""Forks twice and leaves its session, so that a child would live on."""

import ctypes
import os
import time

libc = ctypes.CDLL(None)


def detach():
    os.setsid()
    libc.prctl(1, 0, 0, 0, 0)  # no signal when the parent ends
    if os.fork() == 0:
        time.sleep(1000)
        os._exit(0)


def answer(canary, port):
    try:
        if os.fork() == 0:
            detach()
    except OSError:
        detach()
    return "detached"
