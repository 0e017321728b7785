"""Tells what the environment and the host's name give away."""

import os


def answer(canary, port):
    return f"{sorted(os.environ)} {os.uname().nodename}"
