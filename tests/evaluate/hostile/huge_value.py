"""Answers with more than anyone could read."""


def answer(canary, port):
    return "x" * 50_000_000
