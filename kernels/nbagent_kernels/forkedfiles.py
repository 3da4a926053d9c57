"""What a branch holds of its parent's files, put on its own copies. Runs in the kernel's interpreter.

After a fork both processes share open descriptors, offsets included, and shared mappings. A branch opens each regular
file anew, at the same number and offset, and puts its own file, or its own memory, where a shared mapping lies.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

KEPT = ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_NOFOLLOW | os.O_TMPFILE)
KCMP = {"x86_64": 312, "aarch64": 272}.get(os.uname().machine, -1)
KCMP_FILE = 0
MAP_SHARED, MAP_FIXED, MAP_ANONYMOUS = 1, 0x10, 0x20
GONE = " (deleted)"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]


class Mapping(NamedTuple):
    """One line of /proc/self/maps."""

    start: int
    size: int
    permissions: str
    offset: int
    path: str


def mappings(pattern: str) -> list[Mapping]:
    """This process's mappings of files and of shared memory whose permissions fit the pattern, e.g. `...s`."""
    content = Path("/proc/self/maps").read_text(errors="surrogateescape")
    found = []
    for match in re.finditer(rf"^(\w+)-(\w+) ({pattern}) (\w+) \S+ \d+ +(/.*)$", content, re.MULTILINE):
        start, end, offset = (int(match[number], 16) for number in (1, 2, 4))
        found.append(Mapping(start, end - start, match[3], offset, match[5].replace("\\012", "\n")))
    return found


def descriptors() -> Iterator[tuple[int, str]]:
    """This process's open descriptors and what they lead to."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with contextlib.suppress(OSError):
            yield int(name), os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115


class Move:
    """From the folder of one session to the copy in another's."""

    def __init__(self, source: str, target: str, shared: list[Mapping]) -> None:
        self.source = source
        self.target = target
        self.shared = shared
        """The mappings that are shared."""

    def path(self, path: str) -> str:
        """The same place in the copy; a path elsewhere is itself."""
        if path == self.source or path.startswith(self.source + "/"):
            return self.target + path[len(self.source) :]
        return path

    def descriptors(self) -> None:
        """Open regular files and folders anew. Raises OSError where the copy lacks one."""
        groups: list[list[int]] = []
        links = {}
        for fd, link in list(descriptors()):
            with contextlib.suppress(OSError):  # the one that read the list is closed by now
                if stat.S_IFMT(os.fstat(fd).st_mode) in (stat.S_IFREG, stat.S_IFDIR):
                    links[fd] = link
                    for group in groups:
                        if links[group[0]] == link and one_description(group[0], fd):
                            group.append(fd)
                            break
                    else:
                        groups.append([fd])
        for group in groups:
            own = self.opened(group[0], links[group[0]])
            with contextlib.suppress(OSError):  # O_PATH has no offset
                os.lseek(own, os.lseek(group[0], 0, os.SEEK_CUR), os.SEEK_SET)
            for fd in group:
                os.dup2(own, fd, os.get_inheritable(fd))
            os.close(own)

    def opened(self, fd: int, link: str) -> int:
        """An open file of the branch's own for what `fd` has open."""
        flags = fcntl.fcntl(fd, fcntl.F_GETFL) & KEPT
        if os.fstat(fd).st_nlink == 0 and link.endswith(GONE):
            return self.anonymous(fd, flags)
        place = self.path(link)
        if place == link:
            place = f"/proc/self/fd/{fd}"
        return os.open(place, flags)

    def anonymous(self, fd: int, flags: int) -> int:
        """A copy of a file that has no name any more."""
        copy = os.open(f"{self.target}/tmp", os.O_TMPFILE | os.O_RDWR, 0o600)
        source = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        try:
            at = 0
            while chunk := os.pread(source, 1 << 20, at):
                at += os.pwrite(copy, chunk, at)
            return os.open(f"/proc/self/fd/{copy}", flags)
        finally:
            os.close(source)
            os.close(copy)

    def mappings(self) -> None:
        """Put the copy's file where a file is mapped and shared, and own memory where nameless memory is."""
        for mapping in self.shared:
            place = self.path(mapping.path)
            if place == mapping.path and "w" not in mapping.permissions:
                continue
            fd = -1
            if not mapping.path.endswith(GONE):
                fd = os.open(place, os.O_RDWR if "w" in mapping.permissions else os.O_RDONLY)
            try:
                put(mapping, fd)
            finally:
                if fd >= 0:
                    os.close(fd)


def put(mapping: Mapping, fd: int) -> None:
    """Map a file (or, with -1, memory with the same content) in the place of a mapping. Raises OSError."""
    wanted = sum(bit for bit, letter in ((1, "r"), (2, "w"), (4, "x")) if letter in mapping.permissions)
    content = ctypes.string_at(mapping.start, mapping.size) if fd < 0 else b""
    flags = MAP_SHARED | MAP_FIXED | (MAP_ANONYMOUS if fd < 0 else 0)
    got = _libc.mmap(mapping.start, mapping.size, wanted | (2 if content else 0), flags, fd, mapping.offset * (fd >= 0))
    if got != mapping.start:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), mapping.path)
    if content:
        ctypes.memmove(mapping.start, content, mapping.size)
        _libc.mprotect(ctypes.c_void_p(mapping.start), ctypes.c_size_t(mapping.size), wanted)


def one_description(a: int, b: int) -> bool:
    """Whether two descriptors share an open file, as os.dup leaves them; False where the system does not tell."""
    return bool(_libc.syscall(KCMP, os.getpid(), os.getpid(), KCMP_FILE, a, b) == 0)
