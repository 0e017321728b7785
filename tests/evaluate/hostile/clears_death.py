"""Cuts the ties by which it would end with its parent, then goes on for ever."""

import ctypes
import os
import time

ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)
os.setsid()
os.closerange(0, 1000)


def answer(canary, port):
    time.sleep(10_000)


time.sleep(10_000)
