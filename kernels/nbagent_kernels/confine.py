"""Confines the process that calls it, and all it starts, for good. Standard library only, as for a kernel of any kind.

A forked kernel calls `confine(plan)` before its first cell; a kernel of the backend `local` is started through

    confine.py PLAN ARGV…        (a trial without ARGV: says `apart` where namespaces are granted)

PLAN is JSON, made by confinement.py:
    {"read": […], "sockets": […], "write": […]}   paths, each with what is below it; those not there are skipped
    {"abi": int, "network": bool}                 Landlock's ABI, 0 for none; whether the network stays as it is
    {"apart": bool, "shm_bytes": int | None}      whether to leave the host's namespaces; size of /dev/shm
    {"rlimits": {name: value}, "groups": […]}     for the program only: a forked kernel gets them otherwise

Landlock (landlock(7), Linux 5.13 and later) decides on files and signals, as far as its ABI goes. Namespaces, where the
system grants them, give the session a /dev/shm, terminals, System V IPC and a network of its own; where it does not,
Landlock forbids TCP.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import stat
import struct
import sys
from typing import Any

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_FILE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 5
MAKE_CHAR, MAKE_SOCK, MAKE_BLOCK, TRUNCATE, IOCTL_DEV = 1 << 6, 1 << 9, 1 << 11, 1 << 14, 1 << 15
ON_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
"""Rights that a rule for something other than a folder may have."""
FS_BITS = {0: 0, 1: 13, 2: 14, 3: 15, 4: 15}
"""Landlock ABI -> number of file system rights; 16 from ABI 5 on."""
RIGHTS = {
    "read": EXECUTE | READ_FILE | READ_DIR,
    "sockets": READ_FILE | READ_DIR | REMOVE_FILE | MAKE_SOCK,
    "write": ((1 << 16) - 1) & ~(MAKE_CHAR | MAKE_BLOCK),
}
"""Rights by what a plan calls them."""
TCP = 0b11
SCOPES = 0b11
"""Abstract Unix sockets, signals."""
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWNET = 0x20000, 0x8000000, 0x10000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_SLAVE = 2, 4, 8, 4096, 16384, 1 << 19
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
PR_SET_NO_NEW_PRIVS = 38
CAPABILITY_V3, CAP_DAC_READ_SEARCH = 0x20080522, 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def confine(plan: dict[str, Any]) -> bool:
    """Restrict this process, which has one thread. True where it has got namespaces of its own.

    Raises:
        OSError: Landlock is there and refuses.
    """
    apart = plan["apart"] and leave_namespaces(plan)
    call(_libc.prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if plan["abi"]:
        restrict({**plan, "network": plan["network"] or apart})
    drop_capabilities()
    return apart


def landlock_abi() -> int:
    """Version of Landlock's interface here; 0 where there is none."""
    return max(0, int(_libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1)))


def restrict(plan: dict[str, Any]) -> None:
    """Enter a Landlock domain. Inside another one this can only take rights away."""
    abi = plan["abi"]
    handled = (1 << FS_BITS.get(abi, 16)) - 1
    attributes = struct.pack("QQQ", handled, 0 if plan["network"] or abi < 4 else TCP, SCOPES if abi >= 6 else 0)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    ruleset = call(_libc.syscall, CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    try:
        for kind, rights in RIGHTS.items():
            for path in plan[kind]:
                with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                    allow(ruleset, path, rights & handled)
        try:
            call(_libc.syscall, RESTRICT_SELF, ruleset, 0)
        except OSError as error:
            # A process has 16 domains at most. A branch that deep keeps those it was forked with.
            if error.errno != errno.E2BIG:
                raise
    finally:
        os.close(ruleset)


def allow(ruleset: int, path: str, rights: int) -> None:
    """Add a rule for a path and what is below it."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= ON_FILES
        call(_libc.syscall, ADD_RULE, ruleset, 1, struct.pack("=Qi", rights, fd), 0)
    finally:
        os.close(fd)


def leave_namespaces(plan: dict[str, Any]) -> bool:
    """Take a mount, an IPC and, unless TCP is allowed, a network namespace of one's own; False where that is refused.

    The host's mounts stay as they are, but for a /dev/shm and a /dev/pts of the session's own. The network is a
    loopback that only the session's processes use: ipykernel's own forks speak over it, and so do pools of R workers.
    """
    flags = CLONE_NEWNS | CLONE_NEWIPC | (0 if plan["network"] else CLONE_NEWNET)
    uid, gid = os.geteuid(), os.getegid()
    try:
        if _libc.unshare(flags):
            # Without root, in a user namespace in which this user is all there is.
            call(_libc.unshare, flags | CLONE_NEWUSER)
            for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
                with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123
                    file.write(text)
        size = "" if plan["shm_bytes"] is None else f",size={plan['shm_bytes']}"
        mount("none", "/", None, MS_REC | MS_SLAVE)
        mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, f"mode=1777{size}")
        mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620")
        mount("/dev/pts/ptmx", "/dev/ptmx", None, MS_BIND)
        if not plan["network"]:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
                fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
    except OSError:
        return False
    return True


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """mount(2)."""
    kind_bytes, option_bytes = kind and kind.encode(), options and options.encode()
    call(_libc.mount, source.encode(), target.encode(), kind_bytes, ctypes.c_ulong(flags), option_bytes)


def drop_capabilities() -> None:
    """Give up root's powers, but for reading what belongs to others: that, Landlock decides."""
    header = struct.pack("Ii", CAPABILITY_V3, 0)
    held = ctypes.create_string_buffer(24)
    call(_libc.capget, header, held)
    keep = struct.unpack("6I", held.raw)[1] & (1 << CAP_DAC_READ_SEARCH) if os.geteuid() == 0 else 0
    call(_libc.capset, header, struct.pack("6I", keep, keep, 0, 0, 0, 0))


def call(function: Any, *args: Any) -> int:
    """A C function's result. Raises OSError where it is -1."""
    result = int(function(*args))
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


if __name__ == "__main__":
    import json
    import resource

    given = json.loads(sys.argv[1])
    for folder in given["groups"]:
        with open(f"{folder}/cgroup.procs", "w") as members:  # noqa: PTH123
            members.write("0")
    apart = confine(given)
    if len(sys.argv) == 2:
        print("apart" if apart else "")
        sys.exit()
    for name, value in given["rlimits"].items():
        limit = getattr(resource, name)
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    os.execvp(sys.argv[2], sys.argv[2:])
