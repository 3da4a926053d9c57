"""A copy of a session's folders for its branch, made while the kernel stands still.

Nothing is followed: links stay links, and those into the copied folder point into the copy. FIFOs, sockets and devices
are left out. Blocks are shared where the file system can (a reflink); holes stay holes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from typing import TYPE_CHECKING

from nbagent_kernels.errors import CannotBranch
from nbagent_kernels.removal import FOLDER

if TYPE_CHECKING:
    from nbagent_kernels.workspace import Workspace

COPY_BYTES = 4 << 30
"""Bytes a branch may cost on disk; a session whose folders hold more cannot be branched."""
DEPTH = 200
"""Nested folders; each level holds two descriptors while it is copied."""
LINKED = 200
"""Files with several names that stay one file in the copy; further ones are copied for each name."""
FICLONE = 0x40049409
_CHUNK = 1 << 20


def copy_session(source: Workspace, target: Workspace, max_bytes: int = COPY_BYTES) -> None:
    """Copy working directory, HOME and TMPDIR of one session to another, whose own are empty.

    Raises:
        CannotBranch: more than `max_bytes`, too deep, unreadable, or the disk is full.
    """
    copy = _Copy(str(source.folder), str(target.folder), max_bytes)
    try:
        for name in (source.work.name, source.home.name, source.tmp.name):
            # By descriptor: a branch's path leads through folders that its parent's processes write to.
            copy.entries(os.open(name, FOLDER, dir_fd=source.fd), os.open(name, FOLDER, dir_fd=target.fd), name, 0)
    except OSError as error:
        raise CannotBranch(f"the working directory could not be copied: {error.strerror}: {error.filename}") from error
    finally:
        for fd in copy.linked.values():
            os.close(fd)


class _Copy:
    def __init__(self, source: str, target: str, max_bytes: int) -> None:
        self.source = source
        self.target = target
        self.max_bytes = max_bytes
        self.left = max_bytes
        self.linked: dict[tuple[int, int], int] = {}
        """Copies of files with several names, opened: by device and inode of the original."""

    def entries(self, source: int, target: int, path: str, depth: int) -> None:
        """Copy what one open folder holds, then its mode and time; closes both descriptors."""
        try:
            if depth > DEPTH:
                raise CannotBranch(f"folders are nested more than {DEPTH} deep at {path[:200]}")
            with os.scandir(source) as entries:
                for entry in entries:
                    self.entry(source, target, entry.name, f"{path}/{entry.name}", depth)
            _same_times(source, target)
        finally:
            os.close(source)
            os.close(target)

    def entry(self, source: int, target: int, name: str, path: str, depth: int) -> None:
        """Copy one entry, by what it is."""
        try:
            status = os.stat(name, dir_fd=source, follow_symlinks=False)
        except FileNotFoundError:
            return  # a process that the cells detached may still remove files
        if stat.S_ISLNK(status.st_mode):
            os.symlink(self.moved(os.readlink(name, dir_fd=source)), name, dir_fd=target)
        elif stat.S_ISDIR(status.st_mode):
            os.mkdir(name, 0o700, dir_fd=target)
            into = os.open(name, FOLDER, dir_fd=target)
            try:
                inside = os.open(name, FOLDER, dir_fd=source)
            except OSError:
                os.close(into)
                raise
            self.entries(inside, into, path, depth + 1)
        elif stat.S_ISREG(status.st_mode):
            key = (status.st_dev, status.st_ino)
            if key in self.linked:
                os.link(f"/proc/self/fd/{self.linked[key]}", name, dst_dir_fd=target)
                return
            self.file(source, target, name)
            if status.st_nlink > 1 and len(self.linked) < LINKED:
                self.linked[key] = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=target)

    def file(self, source: int, target: int, name: str) -> None:
        """Copy a regular file with its mode, times and holes."""
        theirs = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source)
        try:
            if not stat.S_ISREG(os.fstat(theirs).st_mode):
                return  # swapped since it was looked at
            ours = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target)
            try:
                try:
                    fcntl.ioctl(ours, FICLONE, theirs)
                except OSError:
                    self.segments(theirs, ours)
                _same_times(theirs, ours)
            finally:
                os.close(ours)
        finally:
            os.close(theirs)

    def segments(self, source: int, target: int) -> None:
        """Copy the parts of a file that are not holes."""
        size = os.fstat(source).st_size
        os.ftruncate(target, size)
        at = 0
        while at < size:
            end = size
            try:
                at = os.lseek(source, at, os.SEEK_DATA)
                end = min(os.lseek(source, at, os.SEEK_HOLE), size)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return  # only a hole is left
                # Else the file system does not tell holes, as gVisor's do not: all of it is data.
            self.left -= end - at
            if self.left < 0:
                raise CannotBranch(
                    f"the session's files hold more than {self.max_bytes / (1 << 30):g} GiB; remove some first"
                )
            while at < end:
                if not (copied := _copy_range(source, target, at, end - at)):
                    return  # it became shorter meanwhile
                at += copied

    def moved(self, link: str) -> str:
        """What a link points to, in the copy where that lies in what is copied."""
        for source in {self.source, os.path.realpath(self.source)}:
            if link == source or link.startswith(source + "/"):
                return self.target + link[len(source) :]
        return link


def _copy_range(source: int, target: int, at: int, size: int) -> int:
    with contextlib.suppress(OSError):
        return os.copy_file_range(source, target, size, at, at)
    chunk = os.pread(source, min(size, _CHUNK), at)
    return os.pwrite(target, chunk, at) if chunk else 0


def _same_times(source: int, target: int) -> None:
    status = os.fstat(source)
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
