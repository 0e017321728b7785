"""Starts threads without end, each of which sleeps."""

import threading
import time

made = 0


def answer(canary, port):
    global made
    while True:
        try:
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
            made += 1
        except RuntimeError:
            return f"made {made}"
