"""Answers with a list within a list, a hundred thousand times."""


def answer(canary, port):
    value = []
    for _ in range(100_000):
        value = [value]
    return value
