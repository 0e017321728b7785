"""The fresh process of the reload check, without its five seconds of imports.

A server that has imported what `paraknow.reload` needs, and nothing else, forks itself for every check: the process that
loads the results has none of the run's own state, as one that is started anew. What a run starts is this file as a
client: it hands its own output and errors over, waits, and ends with the code that the check ended with. One test
(test_inject.py) and `paraknow demo` start theirs anew.

Server: python -m tests.fresh ADDRESS; client: python tests/fresh.py ADDRESS ARGUMENT...
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RELOAD = ["-m", "paraknow.reload"]


class Checks:
    """The server in a folder of its own, started when it is first needed and ended with the block."""

    def __init__(self, folder: os.PathLike[str]):
        self.address, self.server = os.path.join(folder, "reload"), None

    def __enter__(self) -> Checks:
        return self

    def forked(self, command: list[str]) -> list[str]:
        """What to start instead of the command `python -m paraknow.reload …`; every other command as it is."""
        if command[1:3] != RELOAD:
            return command
        if self.server is None:
            started = [sys.executable, "-m", "tests.fresh", self.address]
            self.server = subprocess.Popen(started, stdout=subprocess.PIPE, cwd=ROOT)
            assert self.server.stdout and self.server.stdout.readline() == b"ready\n"
        return [sys.executable, "-S", __file__, self.address, *command[3:]]

    def __exit__(self, *_: object) -> None:
        if self.server is not None:
            self.server.kill()
            self.server.communicate()


def ask(address: str, arguments: list[str]) -> int:
    """The code the check ended with; 1 where the server went away."""
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(address)
        socket.send_fds(stream, [json.dumps(arguments).encode()], [1, 2])
        return (stream.recv(1) or b"\1")[0]


def serve(address: str) -> None:
    import socketserver
    import traceback

    import peft  # noqa: F401
    import torch
    from transformers.models.llama import modeling_llama  # noqa: F401 (named, as it is imported when first asked for)

    from paraknow import placing, reload  # noqa: F401

    torch.set_num_threads(1)

    class Check(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            text, (out, errors), *_ = socket.recv_fds(self.request, 2**16, 2)
            os.dup2(out, 1)
            os.dup2(errors, 2)
            code = 0
            try:
                reload.main(json.loads(text))
            except BaseException:
                traceback.print_exc()
                code = 1
            sys.stdout.flush()
            sys.stderr.flush()
            self.request.sendall(bytes([code]))

    class Server(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
        pass

    with Server(address, Check) as server:
        print("ready", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    address, *arguments = sys.argv[1:]
    if arguments:
        sys.exit(ask(address, arguments))
    serve(address)
