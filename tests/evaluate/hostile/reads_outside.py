"""Reads the canary and the system's files by every path it can think of."""

import contextlib
import os


def answer(canary, port):
    read = []
    for path in (canary, f"/old{canary}", f"../../../../..{canary}", f"/proc/1/root{canary}", "/etc/passwd"):
        try:
            with open(path) as file:
                read.append(file.read())
        except OSError:
            pass
    for folder in ("/home", "/tmp", "/etc", "/old", "/mnt", "/proc", "/sys", "/dev", os.path.dirname(canary)):
        with contextlib.suppress(OSError):
            read.append(os.listdir(folder))
    return f"read {read}"
