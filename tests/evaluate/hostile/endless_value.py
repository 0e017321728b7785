"""Answers with a list that holds itself, twice."""


def answer(canary, port):
    value = []
    value += [value, value]
    return value
