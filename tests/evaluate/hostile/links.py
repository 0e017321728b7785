"""Reaches for the canary through symbolic and hard links in its own folder."""

import contextlib
import os


def answer(canary, port):
    got = []
    for number, target in enumerate((canary, "/", "/proc/self/root" + canary, os.path.relpath(canary))):
        for link in (os.symlink, os.link):
            try:
                link(target, f"link{number}")
                with open(f"link{number}") as file:
                    got.append(file.read())
            except OSError:
                pass
            with contextlib.suppress(OSError):
                os.unlink(f"link{number}")
    return f"got {got}"
