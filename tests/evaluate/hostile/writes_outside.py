"""Writes beside its folder: the standard library, the root, the canary's folder."""

import contextlib
import json
import os


def answer(canary, port):
    done = []
    for path in (json.__file__, os.__file__ + ".new", "/new", "/usr/lib/new", canary, canary + ".new"):
        with contextlib.suppress(OSError):
            open(path, "a").close()
            done.append(path)
        with contextlib.suppress(OSError):
            os.utime(path)
            done.append(path)
    for path in (canary, os.path.dirname(canary)):
        for act in (lambda p: os.chmod(p, 0o777), os.unlink, lambda p: os.rename(p, "/work/x")):
            with contextlib.suppress(OSError):
                act(path)
                done.append(path)
    return f"wrote {done}"
