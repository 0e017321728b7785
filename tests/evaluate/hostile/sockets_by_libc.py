"""The same past Python: libc's socket and the bare system call."""

import ctypes
import struct

libc = ctypes.CDLL(None)


def answer(canary, port):
    address = struct.pack("=H", 2) + struct.pack(">H", port) + bytes([127, 0, 0, 1]) + bytes(8)
    got = []
    for end in (libc.socket(2, 1, 0), libc.syscall(41, 2, 1, 0), libc.syscall(198, 2, 1, 0)):
        if end >= 0 and libc.connect(end, address, len(address)) == 0:
            got.append(end)
    return f"got {got}"
