"""Asks for namespaces in which it would be root, and for the old root back."""

import ctypes
import os

libc = ctypes.CDLL(None)


def answer(canary, port):
    got = [f"{flag:x}" for flag in (0x10000000, 0x20000, 0x10020000, 0x40000000) if libc.unshare(flag) == 0]
    for act in (lambda: os.chroot("."), lambda: os.setuid(0), lambda: os.mknod("device", 0o60600, 0x0801)):
        try:
            act()
            got.append("more")
        except OSError:
            pass
    got += ["a mount"] * (libc.mount(b"tmpfs", b"/work", b"tmpfs", 0, None) == 0)
    got += ["an unmount"] * (libc.umount2(b"/usr/lib", 2) == 0)
    return f"got {got}"
