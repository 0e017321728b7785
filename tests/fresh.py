"""Fresh processes of a module, without their five seconds of imports.

A server that has imported what the module needs, and has done nothing else, forks itself for every call: what is
carried out there has none of the caller's own state, as in a process that is started anew. What a test starts is this
file as a client: it hands its own output, errors, surroundings and folder over, waits, and ends with the code that the
fork ended with; where it is killed, the fork ends too. The
reload checks of all runs in the tests' own process are made so; one test of test_inject.py and `paraknow demo` start
theirs anew.

Server: python -m tests.fresh ADDRESS MODULE; client: python tests/fresh.py ADDRESS MODULE ARGUMENT...
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NEEDS = {
    "paraknow.reload": ("peft", "transformers.models.llama.modeling_llama", "paraknow.placing"),
    "lm_eval": ("lm_eval.__main__", "lm_eval.evaluator", "lm_eval.models.huggingface", "datasets"),
}


class Forks:
    """The server of a module: started when it is first needed, ended with the block."""

    def __init__(self, module: str):
        self.folder = tempfile.TemporaryDirectory()  # pytest's own names are too long for a socket on some systems
        self.module, self.address, self.server = module, os.path.join(self.folder.name, "socket"), None

    def __enter__(self) -> Forks:
        return self

    def start(self) -> None:
        if self.server is None:
            started = [sys.executable, "-m", "tests.fresh", self.address, self.module]
            self.server = subprocess.Popen(started, stdout=subprocess.PIPE, cwd=ROOT)
            assert self.server.stdout and self.server.stdout.readline() == b"ready\n"

    def forked(self, command: list[str]) -> list[str]:
        """What to start instead of `python -m MODULE ARGUMENT...`; every other command as it is."""
        if command[1:3] == ["-m", self.module]:
            self.start()
        return client(self.address, self.module, command)

    def __exit__(self, *_: object) -> None:
        if self.server is not None:
            self.server.kill()
            self.server.communicate()
        self.folder.cleanup()


def client(address: str, module: str, command: list[str]) -> list[str]:
    """As Forks.forked, where the server is known to run."""
    if command[1:3] != ["-m", module]:
        return command
    return [sys.executable, "-S", __file__, address, *command[2:]]


def ask(address: str, words: list[str]) -> int:
    """The code that the fork ended with; 1 where the server went away."""
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(address)
        given = {"words": words, "surroundings": dict(os.environ), "folder": os.getcwd()}
        socket.send_fds(stream, [json.dumps(given).encode()], [1, 2])
        return (stream.recv(1) or b"\1")[0]


def read_tasks() -> None:
    """lm-eval's command line reads thousands of files of tasks before it begins. Forks find them read."""
    from functools import cache
    from pathlib import Path

    from lm_eval.tasks import _index

    _index.load_yaml = cache(_index.load_yaml)
    _index.TaskIndex.build([Path(_index.__file__).parent])


def serve(address: str, module: str) -> None:
    import importlib
    import runpy
    import socketserver
    import threading
    import traceback

    for name in NEEDS[module]:
        importlib.import_module(name)
    if module == "lm_eval":
        read_tasks()

    class Call(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            text, (out, errors), *_ = socket.recv_fds(self.request, 2**18, 2)
            os.dup2(out, 1)
            os.dup2(errors, 2)
            given = json.loads(text)
            sys.argv = given["words"]
            os.environ.clear()
            os.environ.update(given["surroundings"])
            os.chdir(given["folder"])
            threading.Thread(target=self.end_with_client, daemon=True).start()
            code = 0
            try:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            except BaseException:
                traceback.print_exc()
                code = 1
            sys.stdout.flush()
            sys.stderr.flush()
            self.request.sendall(bytes([code]))

        def end_with_client(self) -> None:
            if not self.request.recv(1):  # it says nothing more: its end is all that can come
                os._exit(1)

    class Server(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
        pass

    with Server(address, Call) as server:
        print("ready", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    address, module, *arguments = sys.argv[1:]
    if __package__:
        serve(address, module)
    sys.exit(ask(address, [module, *arguments]))
