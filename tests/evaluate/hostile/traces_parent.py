"""Attaches to its parent as a debugger would, and copies from its memory."""

import ctypes
import os

libc = ctypes.CDLL(None)


def answer(canary, port):
    got = []
    for number in (os.getppid(), 1):
        got += ["attached"] * (libc.ptrace(16, number, None, None) == 0)
        space = ctypes.create_string_buffer(16)
        piece = (ctypes.c_void_p * 2)(ctypes.addressof(space), 16)
        got += ["copied"] * (libc.process_vm_readv(number, piece, 1, piece, 1, 0) > 0)
    return f"got {got}"
