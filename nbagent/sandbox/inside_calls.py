"""Run as a cell: attempts to get powers from the kernel of the system, and to write where nothing may be written.

Standard library only. Each attempt answers with one line that begins with `held: ` or `through: `.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
import subprocess
import tempfile
from pathlib import Path

libc = ctypes.CDLL(None, use_errno=True)
room = ctypes.create_string_buffer(4096)
NEW = {"mount": 0x20000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000}
PTRACE_TRACEME, BPF_MAP_CREATE, KEYCTL_JOIN = 0, 0, 1
MAP = (ctypes.c_uint32 * 18)(2, 4, 4, 1)
"""An array with one entry, as BPF_MAP_CREATE takes it."""


def tried(number: int, *words: object) -> int:
    """The errno of one call in a child of its own; 0 where the kernel did it."""
    child = os.fork()
    if child == 0:
        given = [ctypes.c_long(word) if isinstance(word, int) else word for word in words]
        os._exit((ctypes.get_errno() or 255) if libc.syscall(number, *given) == -1 else 0)
    status = os.waitpid(child, 0)[1]
    return 255 if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def said(answers: dict[str, int]) -> str:
    """One line for the answers to several calls."""
    done = [name for name, number in answers.items() if number == 0]
    if done:
        return f"through: {', '.join(done)}"
    return "held: " + ", ".join(f"{name} {errno.errorcode.get(number, number)}" for name, number in answers.items())


def mount() -> str:
    """Mounts of several kinds, a new root."""
    place = Path(tempfile.gettempdir(), "nbagent-mount")
    place.mkdir(exist_ok=True)
    at = str(place).encode()
    return said(
        {
            "tmpfs": tried(165, b"none", at, b"tmpfs", 0, None),
            "proc": tried(165, b"none", at, b"proc", 0, None),
            "bind": tried(165, b"/proc", at, None, 0x1000, None),
            "remount": tried(165, None, b"/", None, 0x1020, None),
            "fsopen": tried(430, b"tmpfs", 0),
            "chroot": tried(161, at),
        }
    )


def unshare() -> str:
    """Namespaces of its own, in which it would be root, by three calls."""
    answers = {f"unshare {name}": tried(272, flag) for name, flag in NEW.items()}
    answers["clone user"] = tried(56, NEW["user"] | 17, 0, 0, 0, 0)
    answers["setns"] = setns()
    return said(answers)


def setns() -> int:
    """The errno of joining the first process's namespaces."""
    try:
        with Path("/proc/1/ns/mnt").open() as file:
            return tried(308, file.fileno(), 0)
    except OSError as error:
        return error.errno or 255


def become_root() -> str:
    """Root by setuid, by set-id programs, by capabilities."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    found = [f"user {os.geteuid()}"] if os.geteuid() == 0 else []
    found += [f"{name} {status[name]}" for name in ("CapEff", "CapPrm", "CapAmb") if int(status.get(name, "0"), 16)]
    if status.get("NoNewPrivs") != "1":
        found.append("programs may gain rights")
    for number, name in ((105, "setuid"), (106, "setgid")):
        if tried(number, 0) == 0:
            found.append(f"{name}(0) done")
    listed = subprocess.run(
        ["find", "/", "-xdev", "-type", "f", "-perm", "/6000"], capture_output=True, text=True, check=False
    ).stdout.split()
    found += [f"{path} changes who runs it" for path in listed]
    return f"through: {'; '.join(found[:5])}" if found else f"held: user {os.geteuid()}, no capability, none to gain"


def ptrace() -> str:
    """Reading and steering other processes."""
    mine = os.getpid()
    return said(
        {
            "ptrace": tried(101, PTRACE_TRACEME, 0, 0, 0),
            "process_vm_readv": tried(310, mine, None, 0, None, 0, 0),
            "kcmp": tried(312, mine, mine, 0, 0, 0),
        }
    )


def io_uring() -> str:
    """A ring of requests, which a filter of calls does not see."""
    return said({"io_uring_setup": tried(425, 4, room)})


def asynchronous() -> str:
    """Contexts of asynchronous input and output, of which the whole machine has one number."""
    return said({"io_setup": tried(206, 128, ctypes.byref(ctypes.c_ulong()))})


def limits_of_others() -> str:
    """Limits of the first process, which answers the host: with fewer open files it could not."""
    return said({"prlimit": tried(302, 1, 7, None, room)})


def server_memory() -> str:
    """Memory of the first process, which speaks with the host: a word of it read and written again."""
    try:
        lines = Path("/proc/1/maps").read_text().splitlines()
        at = next(int(line.partition("-")[0], 16) for line in lines if " rw-p " in line)
        with open("/proc/1/mem", "r+b", buffering=0) as memory:  # noqa: PTH123
            memory.seek(at)
            word = memory.read(8)
            memory.seek(at)
            memory.write(word)
    except OSError as error:
        return f"held: {error.strerror}"
    return "through: memory of process 1 can be written"


def bpf() -> str:
    """Programs and maps in the system's kernel, performance counters, faults handled by the program."""
    # struct perf_event_attr: type 1 (software), its size, then event 0 (the processor's clock)
    attributes = ctypes.create_string_buffer(struct.pack("<II", 1, 112), 128)
    return said(
        {
            "bpf": tried(321, BPF_MAP_CREATE, ctypes.byref(MAP), 72),
            "perf_event_open": tried(298, attributes, 0, -1, -1, 0),
            "userfaultfd": tried(323, 0),
        }
    )


def keyctl() -> str:
    """Keys of the system, which know no containers."""
    return said({"keyctl": tried(250, KEYCTL_JOIN, None), "add_key": tried(248, b"user", b"nbagent", b"x", 1, -3)})


def write_outside(own: list[str]) -> str:
    """Files in the image, the kernel's settings, the fork server's folder; `own` may be written."""
    found = []
    for folder in ("/", "/etc", "/usr/bin", "/usr/lib", "/opt/venv/bin", "/nbagent", "/data", "/root", "/var/tmp"):
        path = Path(folder, "nbagent-attack")
        with contextlib.suppress(OSError):
            path.write_bytes(b"x")
            path.unlink()
            found.append(folder)
    for setting in ("/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname"):
        with contextlib.suppress(OSError), open(setting, "r+b", buffering=0):  # noqa: PTH123
            found.append(setting)
    groups = [Path(base, "nbagent-attack") for base, names, _ in os.walk("/sys/fs/cgroup") if names or base][:20]
    for group in groups:
        with contextlib.suppress(OSError):
            group.mkdir()
            group.rmdir()
            found.append(str(group.parent))
    found = [place for place in found if place not in own]
    return f"through: written: {', '.join(found[:5])}" if found else "held: nothing could be written"


def overwrite() -> str:
    """Every file of the capsule, where it lies and where it is seen."""
    done = []
    for folder in (".", "/data"):
        for path in Path(folder).rglob("*.csv"):
            with contextlib.suppress(OSError):
                path.chmod(0o666)
            with contextlib.suppress(OSError):
                path.write_text("overwritten")
                done.append(str(path))
    return f"held: wrote {', '.join(done) or 'nothing'}"
