"""Raises its own limits first, then takes memory."""

import contextlib
import resource

for name in dir(resource):
    if name.startswith("RLIMIT_"):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(getattr(resource, name), (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def answer(canary, port):
    kept = []
    while True:
        kept.append(b"x" * (1 << 26))
