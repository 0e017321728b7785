"""Leaves without a word to Python."""

import os


def answer(canary, port):
    os._exit(0)
