"""Asks for memory that no limit on the address space counts: shared segments and files without a folder."""

import ctypes
import os

libc = ctypes.CDLL(None)


def answer(canary, port):
    got = []
    for size in (1 << 30, 1 << 20):
        if libc.shmget(0, size, 0o1600) >= 0:
            got.append("segment")
    try:
        os.memfd_create("hog")
        got.append("file in memory")
    except OSError:
        pass
    return f"got {got}"
