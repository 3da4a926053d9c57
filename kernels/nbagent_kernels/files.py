"""File verbs on a working directory that code one does not trust writes to: no link leads out, nothing blocks."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from nbagent_kernels.errors import PathOutside
from nbagent_kernels.types import FileEntry

_CHUNK = 1 << 20


class Files:
    """Reads below one folder. Links are followed only where they stay inside."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def list(self, path: str = ".") -> list[FileEntry]:
        """Entries of a folder, sorted by name. Raises PathOutside, FileNotFoundError, NotADirectoryError."""
        with self._open(path) as (fd, where):
            if not stat.S_ISDIR(os.fstat(fd).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, "not a folder", path)
            entries = []
            with _reopened(fd, os.O_RDONLY | os.O_DIRECTORY) as folder, os.scandir(folder) as items:
                for item in items:
                    is_dir = item.is_dir(follow_symlinks=False)
                    size = 0 if is_dir else item.stat(follow_symlinks=False).st_size
                    name = os.fsencode(item.name).decode("utf-8", "replace")
                    entries.append(FileEntry(str(PurePosixPath(where) / name), size, is_dir))
        return sorted(entries, key=lambda entry: entry.path)

    def read(self, path: str, max_bytes: int = 1 << 20) -> bytes:
        """The first bytes of a regular file. Raises PathOutside, FileNotFoundError, IsADirectoryError, OSError."""
        with self._open(path) as (fd, _):
            mode = os.fstat(fd).st_mode
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(errno.EISDIR, "a folder; list it instead", path)
            if not stat.S_ISREG(mode):
                raise OSError(errno.EINVAL, "not a regular file", path)
            with _reopened(fd, os.O_RDONLY) as file:
                return b"".join(_chunks(file, max_bytes))

    def export(self, dest: Path, max_bytes: int = 1 << 30) -> int:
        """Copy regular files and folders to `dest`, links and devices left out; returns bytes copied.

        Raises:
            OSError: more than `max_bytes`; what was copied so far stays.
        """
        dest.mkdir(parents=True, exist_ok=True)
        total = 0
        for folder, names, files, folder_fd in os.fwalk(self._root, follow_symlinks=False):
            target = dest / os.path.relpath(folder, self._root)
            target.mkdir(exist_ok=True)
            names.sort()
            for name in sorted(files):
                total += _copy(folder_fd, name, target / name, max_bytes - total)
        return total

    @contextmanager
    def _open(self, path: str) -> Iterator[tuple[int, str]]:
        """An O_PATH descriptor of what `path` names, and its path relative to the root, links resolved."""
        root = os.path.realpath(self._root)
        real = os.path.realpath(os.path.join(root, path))  # noqa: PTH118
        if real != root and not real.startswith(root + os.sep):
            raise PathOutside(errno.EPERM, "outside the working directory", path)
        relative = os.path.relpath(real, root)
        fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
        try:
            for part in PurePosixPath(relative).parts:
                # A link that took a component's place since realpath looked is refused here.
                step = os.open(part, os.O_PATH | os.O_NOFOLLOW, dir_fd=fd)
                os.close(fd)
                fd = step
            if stat.S_ISLNK(os.fstat(fd).st_mode):
                raise PathOutside(errno.EPERM, "a link that leads nowhere inside", path)
            yield fd, "" if relative == "." else relative
        finally:
            os.close(fd)


@contextmanager
def _reopened(fd: int, flags: int) -> Iterator[int]:
    """The same file as an O_PATH descriptor, opened for use."""
    real = os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        yield real
    finally:
        os.close(real)


def _chunks(fd: int, most: int) -> Iterator[bytes]:
    while most > 0 and (chunk := os.read(fd, min(most, _CHUNK))):
        most -= len(chunk)
        yield chunk


def _copy(folder: int, name: str, target: Path, most: int) -> int:
    """Copy one entry where it is a regular file; returns its bytes. Raises OSError past `most`."""
    try:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=folder)
    except FileNotFoundError:
        return 0
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return 0
        copied = 0
        out = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
        with _reopened(fd, os.O_RDONLY) as source, os.fdopen(out, "wb") as file:
            for chunk in _chunks(source, most + 1):
                copied += len(chunk)
                if copied > most:
                    raise OSError(errno.EFBIG, "the working directory is larger than the export may be", str(target))
                file.write(chunk)
        return copied
    finally:
        os.close(fd)
