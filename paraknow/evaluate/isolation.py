"""The walls around generated code: one box per process, made of Linux namespaces. `sandbox` starts it.

One way is used, the kernel's own calls through ctypes: `unshare` and bubblewrap are not on every machine, would be
found on a PATH that others write, and leave out the limits and the filter below.

A box is three processes. The outer one makes the namespaces (user, mount, process, network, messages, host name)
and waits for word to end them. The first process inside builds the new root, drops every right and waits; when it
ends, the kernel ends whatever else is inside. The second process inside is the one that works: it has the limits
and the filter on it, runs as nobody, and can start no other.

- The root holds read-only views of the standard library and the shared libraries, and one small empty folder in
  memory. The old root is let go of, and the new one is a chroot, in which Linux makes nobody a new user namespace.
- The filter refuses starting a process or a program, opening a socket (the network's is not the only kind: a virtual
  machine's reaches its host), and whatever makes memory that no limit counts, or widens what the kernel exposes.
  One process means that its limits of memory and CPU time are those of the whole box.
- There is no /proc, no /dev, and no descriptor but the pipe to the other box; output goes nowhere.

Only the standard library and `crossing` are imported here: the interpreter starts with nothing else on its path.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import struct
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from paraknow.evaluate import crossing

NEW_USER, NEW_OTHERS = 0x10000000, 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000
NOSUID, NODEV, NOEXEC, RDONLY, REMOUNT, BIND, REC, PRIVATE = 2, 4, 8, 1, 32, 4096, 16384, 1 << 18
DETACH, AT_FDCWD, AT_RECURSIVE, MOUNT_SETATTR = 2, -100, 0x8000, 442
PDEATHSIG, NO_NEW_PRIVS, SET_SECCOMP, FILTER = 1, 38, 22, 2
NOBODY = 65534
LIBRARIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64")
FILES_OPEN = 64
FOLDER_ENTRIES = 1024

# Per machine: how the kernel calls it, pivot_root's number, and the calls refused: a number each, as the kernel's
# headers list them. clone is let through for threads; clone3 answers "no such call", so that libc asks clone.
MACHINES: dict[str, tuple[int, int, int, dict[str, int]]] = {
    "x86_64": (
        0xC000003E,
        155,
        56,
        {
            **dict(fork=57, vfork=58, execve=59, execveat=322, ptrace=101, process_vm_readv=310),
            **dict(process_vm_writev=311, socket=41, shmget=29, shmat=30, shmctl=31, semget=64, msgget=68),
            **dict(mq_open=240, memfd_create=319, unshare=272, setns=308, mount=165, umount2=166, pivot_root=155),
            **dict(chroot=161, keyctl=250, add_key=248, request_key=249, bpf=321, perf_event_open=298),
            **dict(userfaultfd=323, open_by_handle_at=304, personality=135, modify_ldt=154, sync=162, syncfs=306),
        },
    ),
    "aarch64": (
        0xC00000B7,
        41,
        220,
        {
            **dict(execve=221, execveat=281, ptrace=117, process_vm_readv=270, process_vm_writev=271, socket=198),
            **dict(shmget=194, shmat=196, shmctl=195, semget=190, msgget=186, mq_open=180, memfd_create=279),
            **dict(unshare=97, setns=268, mount=40, umount2=39, pivot_root=41, chroot=51, keyctl=219, add_key=217),
            **dict(request_key=218, bpf=280, perf_event_open=241, userfaultfd=282, open_by_handle_at=265),
            **dict(personality=92, sync=81, syncfs=267),
        },
    ),
}
NEWER = dict(  # numbered alike everywhere
    **dict(io_uring_setup=425, io_uring_enter=426, io_uring_register=427, open_tree=428, move_mount=429, fsopen=430),
    **dict(fsconfig=431, fsmount=432, fspick=433, pidfd_open=434, pidfd_getfd=438, pidfd_send_signal=424),
    **dict(process_madvise=440, mount_setattr=442, memfd_secret=447, open_tree_attr=467),
)
CLONE3 = 435

_libc: Any = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class Refused(Exception):
    """A step of the isolation did not work; the text names it."""


def _call(what: str, answer: int) -> None:
    if answer != 0:
        raise Refused(f"{what}: {os.strerror(ctypes.get_errno())}")


def _die_with_parent() -> None:
    _call("prctl", _libc.prctl(PDEATHSIG, int(signal.SIGKILL), 0, 0, 0))


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    names = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    _call(f"mounting {target}", _libc.mount(names[0], names[1], names[2], ctypes.c_ulong(flags), names[3]))


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def filter_program(machine: str) -> bytes:
    """The system call filter as the kernel's BPF instructions (8 bytes each).

    Raises Refused for a machine whose calls are not listed.
    """
    if machine not in MACHINES:
        raise Refused(f"system calls are known for {' and '.join(MACHINES)}, not for {machine}")
    arch, _, clone, calls = MACHINES[machine]

    def step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("=HBBI", code, yes, no, value)

    load, equal, at_least, any_bit, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    kill, allow, denied, unknown = 0x80000000, 0x7FFF0000, 0x00050001, 0x00050026
    steps = [step(load, 4), step(equal, arch, 1, 0), step(answer, kill), step(load, 0)]
    steps += [step(at_least, 0x40000000, 0, 1), step(answer, denied)]  # x86's other numbering of the same calls
    for number in sorted({*calls.values(), *NEWER.values()}):
        steps += [step(equal, number, 0, 1), step(answer, denied)]
    steps += [step(equal, CLONE3, 0, 1), step(answer, unknown)]
    steps += [step(equal, clone, 0, 3), step(load, 16), step(any_bit, 0x00010000, 1, 0), step(answer, denied)]
    return b"".join([*steps, step(answer, allow)])


def _enter_namespaces() -> None:
    """Namespaces of our own. Root inside and outside gets nobody's number too, so that limits bind it later."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        ready, go = os.pipe()
        outer = os.getpid()
        helper = os.fork()  # only a process outside may map a second number
        if helper == 0:
            os.close(go)
            try:
                if os.read(ready, 1):
                    for kind in ("gid_map", "uid_map"):
                        _write(f"/proc/{outer}/{kind}", f"0 0 1\n{NOBODY} {NOBODY} 1\n")
                os._exit(0)
            except BaseException:
                os._exit(1)
        try:
            _call("a user namespace", _libc.unshare(NEW_USER | NEW_OTHERS))
            os.write(go, b"x")
        finally:
            os.close(go)
            os.close(ready)
            mapped = os.waitpid(helper, 0)[1] == 0
        if not mapped:
            raise Refused("mapping user numbers into the namespace was not permitted")
    else:
        _call("a user namespace", _libc.unshare(NEW_USER | NEW_OTHERS))
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/gid_map", f"{NOBODY} {gid} 1\n")
        _write("/proc/self/uid_map", f"{NOBODY} {uid} 1\n")


def _needed() -> list[str]:
    """Folders Python needs to import its standard library, each once, outer ones first."""
    wanted = [*LIBRARIES, f"{sys.base_prefix}/lib", f"{sys.base_prefix}/lib64", *sys.path]
    chosen: list[str] = []
    for path in sorted({os.path.abspath(p) for p in wanted if p and os.path.isdir(p)}, key=len):
        if not any(path.startswith(f"{outer}/") for outer in chosen):
            chosen.append(path)
    return chosen


def _new_root(machine: str, folder_bytes: int) -> None:
    needed = [(path, os.path.realpath(path)) for path in _needed()]
    _mount("none", "/", None, REC | PRIVATE)
    spot = os.path.realpath(sys.base_prefix)  # any folder that is there: the old root stays whole below /old
    _mount("tmpfs", spot, "tmpfs", NOSUID | NODEV, "size=1m,nr_inodes=4096,mode=755")
    os.mkdir(f"{spot}/old")
    _call("changing the root", _libc.syscall(MACHINES[machine][1], os.fsencode(spot), os.fsencode(f"{spot}/old")))
    os.chdir("/")
    read_only = struct.pack("=4Q", RDONLY | NOSUID | NODEV, 0, 0, 0)
    for path, real in needed:
        os.makedirs(f"/box{path}", exist_ok=True)
        _mount(f"/old{real}", f"/box{path}", None, BIND | REC)
        target = os.fsencode(f"/box{path}")
        answer = _libc.syscall(MOUNT_SETATTR, AT_FDCWD, target, AT_RECURSIVE, read_only, len(read_only))
        _call(f"making {path} read-only", answer)
    os.mkdir("/box/work")
    size = f"size={max(4096, folder_bytes)},nr_inodes={FOLDER_ENTRIES},mode=777"
    _mount("tmpfs", "/box/work", "tmpfs", NOSUID | NODEV | NOEXEC, size)
    _call("leaving the old root", _libc.umount2(b"/old", DETACH))
    os.rmdir("/old")
    _mount("none", "/", None, REMOUNT | BIND | RDONLY | NOSUID | NODEV)
    os.chroot("/box")
    os.chdir("/work")


def _drop_rights() -> None:
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    _call("capset", _libc.capset(struct.pack("=Ii", 0x20080522, 0), bytes(24)))
    _call("prctl", _libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0))


def _limit(job: dict[str, Any]) -> None:
    seconds = max(1, int(-(-job["seconds"] // 1)))
    for what, most in (
        (resource.RLIMIT_AS, job["memory"]),
        (resource.RLIMIT_NPROC, job["processes"]),
        (resource.RLIMIT_FSIZE, job["file_bytes"]),
        (resource.RLIMIT_NOFILE, FILES_OPEN),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # a program may ignore the first


def _filter(machine: str) -> None:
    steps = ctypes.create_string_buffer(filter_program(machine))
    program = struct.pack("@HP", (len(steps) - 1) // 8, ctypes.addressof(steps))
    _call("the system call filter", _libc.prctl(SET_SECCOMP, FILTER, program, 0, 0))


def _close_all_but(*kept: int) -> None:
    low = 3
    for descriptor in sorted(kept):
        os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, 1 << 20)


def _work(job: dict[str, Any], report: int, channel: int, machine: str, act: Callable[..., dict | None]) -> NoReturn:
    """The process that runs the program or its tests. What holds the verdict's pipe never runs the program."""
    try:
        _limit(job)
        _filter(machine)
    except (Refused, OSError, ValueError) as error:
        _tell(report, {"refused": f"limits and filter: {error}"})
        os._exit(3)
    if job["role"] == "program":
        os.close(report)
        _close_all_but(channel)
    else:
        _close_all_but(report, channel)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    try:
        verdict = act(job, channel)
        if verdict is not None:
            _tell(report, verdict)
        os._exit(0)
    finally:
        os._exit(1)


def _tell(report: int, line: dict[str, Any]) -> None:
    os.write(report, json.dumps(line).encode() + b"\n")


def _first(job: dict[str, Any], report: int, channel: int, machine: str, alive: int, act: Any) -> None:
    """The first process inside. It lives as long as the one that works, and no longer than the outer one."""
    _die_with_parent()
    nothing = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    _call("the host name", _libc.sethostname(b"box", 3))
    _new_root(machine, job["file_bytes"])
    _drop_rights()
    _die_with_parent()  # again: a change of user clears it
    if select.select([alive], [], [], 0)[0]:
        return  # the outer process ended before it could take this one along
    worker = os.fork()
    if worker == 0:
        _work(job, report, channel, machine, act)
    os.close(channel)
    while True:
        pid, status = os.wait()
        if pid == worker:
            _tell(report, {"ended": status})
            return


def main() -> None:
    """Make the box, wait, end it when told to (SIGTERM). The job comes as JSON on standard input.

    Arguments: descriptors of the report and of the channel, the parent's number. Lines of JSON on the report:
    `refused` (why there is no box), `ended` (wait status of the process that worked), and what `act` answers.
    """
    report, channel, parent = map(int, sys.argv[1:4])
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are waited for, below
    try:
        _die_with_parent()
        if os.getppid() != parent:
            return
        job = json.loads(sys.stdin.buffer.read())
        machine = os.uname().machine
        filter_program(machine)
        _enter_namespaces()
        alive, held = os.pipe()
        first = os.fork()
        if first == 0:
            os.close(held)
            try:
                _first(job, report, channel, machine, alive, crossing.act)
            except (Refused, OSError) as error:
                _tell(report, {"refused": str(error)})
            finally:
                os._exit(0)
    except (Refused, OSError) as error:
        _tell(report, {"refused": str(error)})
        return
    for descriptor in (report, channel, alive):
        os.close(descriptor)
    while True:
        if signal.sigwait({signal.SIGTERM, signal.SIGCHLD}) == signal.SIGTERM:
            os.kill(first, signal.SIGKILL)
        if os.waitpid(first, os.WNOHANG)[0]:  # only once all in it are gone
            return
