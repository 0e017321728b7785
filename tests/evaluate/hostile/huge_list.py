"""Answers with very many small values."""


def answer(canary, port):
    return list(range(5_000_000))
