"""Raises an error whose text would rewrite the reader's terminal and the lines before."""


def answer(canary, port):
    raise ValueError("\x1b[2J\x1b]0;owned\x07\r\n\u202epassed" + "x" * 100_000)
