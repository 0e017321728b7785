"""Replaces itself by another program: the loader, a shell, Python."""

import contextlib
import os
import subprocess
import sys


def answer(canary, port):
    got = []
    for path in ("/bin/sh", sys.executable, "/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"):
        try:
            subprocess.run([path, "--version"], check=False)
            got.append(path)
        except OSError:
            pass
        with contextlib.suppress(OSError):
            os.execv(path, [path, "--version"])
    return f"ran {got}"
