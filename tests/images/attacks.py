"""Run inside a container: asks the kernel for what a sandbox must not have, and prints what it answered, as JSON.

A name maps to the errno of the answer, 0 where the kernel did it.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import signal

libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWUSER, SIGCHLD = 0x10000000, 17
room = ctypes.create_string_buffer(4096)
here = ctypes.c_char_p(b"/tmp")

CALLS: dict[str, tuple[object, ...]] = {
    "ptrace": (101, 0, 0, 0, 0),
    "process_vm_readv": (310, os.getpid(), None, 0, None, 0, 0),
    "kcmp": (312, os.getpid(), os.getpid(), 0, 0, 0),
    "pidfd_getfd": (438, -1, 0, 0),
    "io_uring_setup": (425, 4, room),
    "socket AF_VSOCK": (41, 40, 1, 0),
    "socket AF_ALG": (41, 38, 5, 0),
    "socket AF_NETLINK": (41, 16, 3, 0),
    "socket AF_PACKET": (41, 17, 3, 0),
    "socket AF_INET datagrams": (41, 2, 2, 0),
    "socket AF_INET6 datagrams": (41, 10, 0x80002, 17),
    "socket AF_INET raw": (41, 2, 3, 1),
    "socket AF_INET sctp": (41, 2, 1, 132),
    "socket AF_UNIX with high bits": (41, (1 << 32) | 40, 1, 0),
    "userfaultfd": (323, 1),
    "unshare user": (272, CLONE_NEWUSER),
    "clone user": (56, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0),
    "clone3": (435, room, 88),
    "setns": (308, 0, 0),
    "mount": (165, here, here, here, 0, None),
    "fsopen": (430, ctypes.c_char_p(b"tmpfs"), 0),
    "open_tree": (428, -100, here, 1),
    "pivot_root": (155, here, here),
    "chroot": (161, here),
    "keyctl": (250, 0, -3, 1),
    "add_key": (248, ctypes.c_char_p(b"user"), ctypes.c_char_p(b"k"), here, 4, -3),
    "request_key": (249, ctypes.c_char_p(b"user"), ctypes.c_char_p(b"k"), None, -3),
    "bpf": (321, 0, room, 72),
    "perf_event_open": (298, room, 0, -1, -1, 0),
    "name_to_handle_at": (303, -100, here, room, ctypes.byref(ctypes.c_int()), 0),
    "open_by_handle_at": (304, -100, room, 0),
    "personality": (135, 0x0040000),
    "kexec_load": (246, 0, 0, None, 0),
    "init_module": (175, room, 0, here),
    "reboot": (169, 0, 0, 0, None),
    "swapon": (167, here, 0),
    "settimeofday": (164, room, None),
    "sethostname": (170, here, 4),
    "syslog": (103, 3, room, 10),
    "quotactl": (179, 0, None, 0, None),
    "fanotify_init": (300, 0x200, 0),
    "move_pages": (279, 0, 0, None, None, None, 0),
    "memfd_secret": (447, 0),
    "vmsplice": (278, -1, None, 0, 0),
    "io_setup": (206, 1, ctypes.byref(ctypes.c_ulong())),
    "prlimit of another": (302, os.getppid() or 1, 7, None, room),
    "seccomp": (317, 2, 0, room),
}


def tried(words: tuple[object, ...]) -> int:
    """The errno of one call, made in a child of its own; 128 + n where signal n ended it."""
    child = os.fork()
    if child == 0:
        as_long = [ctypes.c_long(word) if isinstance(word, int) else word for word in words]
        os._exit(ctypes.get_errno() if libc.syscall(*as_long) == -1 else 0)
    status = os.waitpid(child, 0)[1]
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def other_numbers() -> int:
    """getpid by int 0x80, where 32-bit calls have numbers of their own: 0 if the kernel answers it."""
    child = os.fork()
    if child == 0:
        code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20; int 0x80; ret
        call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
        os._exit(0 if call() == os.getpid() else 1)
    status = os.waitpid(child, 0)[1]
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


if __name__ == "__main__":
    signal.signal(signal.SIGSYS, signal.SIG_DFL)
    print(json.dumps({name: tried(words) for name, words in CALLS.items()} | {"int 0x80": other_numbers()}))
