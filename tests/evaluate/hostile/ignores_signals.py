"""Never answers and handles every signal that it may, the one for used-up time too."""

import contextlib
import signal

for number in signal.valid_signals():
    with contextlib.suppress(OSError, ValueError):
        signal.signal(number, lambda *_: None)


def answer(canary, port):
    while True:
        pass
