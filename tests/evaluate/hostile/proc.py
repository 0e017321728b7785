"""Looks for other processes, their files and their memory under /proc, or makes a /proc."""

import ctypes
import os

libc = ctypes.CDLL(None)


def answer(canary, port):
    os.makedirs("proc", exist_ok=True)
    got = [libc.mount(b"proc", b"proc", b"proc", 0, None) == 0]
    for number in ("self", "1", "2", str(os.getppid())):
        for what in ("fd", "root", "mem", "environ", "task"):
            for base in ("/proc", "proc"):
                path = f"{base}/{number}/{what}"
                got += [path] * os.path.exists(path)
    return f"got {got}"
