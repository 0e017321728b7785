"""Deletes the canary and its folder, by every path to them it can think of."""

import os
import shutil


def answer(canary, port):
    done = []
    for path in (canary, os.path.dirname(canary), f"/old{canary}", f"../../../../..{canary}"):
        try:
            os.remove(path)
            done.append(path)
        except OSError:
            pass
        shutil.rmtree(path, ignore_errors=True)
    return f"deleted {done}"
