"""Calls the host: by TCP, by UDP, by the sockets of its files and of a virtual machine, and listens for calls."""

import socket


def answer(canary, port):
    got = []
    kinds = [(socket.AF_INET, ("127.0.0.1", port)), (socket.AF_INET6, ("::1", port)), (socket.AF_UNIX, canary)]
    kinds.append((socket.AF_VSOCK, (2, port)))
    for family, address in kinds:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            try:
                with socket.socket(family, kind) as end:
                    end.settimeout(1)
                    end.connect(address)
                    end.send(b"hello")
                    got.append(str(address))
            except OSError:
                pass
    try:
        socket.create_server(("127.0.0.1", 0))
        got.append("a server")
    except OSError:
        pass
    return f"got {got}"
