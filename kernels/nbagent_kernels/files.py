"""File verbs on a working directory that code one does not trust writes to: no link leads out, nothing blocks.

Large capsule files may stand in the working directory as links to the originals, which the kernel cannot write to (see
workspace.py): wherever a link leads to one of them, the verbs take it for the file.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from nbagent_kernels.errors import PathOutside
from nbagent_kernels.filestream import Frames, send_file
from nbagent_kernels.removal import FOLDER
from nbagent_kernels.types import FileEntry

LISTED = 10_000
"""Entries of one folder that are looked at; of a folder with more, these are whatever the system names first."""
EXPORTED = 100_000
"""Files and folders that one export may make."""
DEPTH = 40
"""Nested folders that an export follows; each level holds two descriptors."""
_CHUNK = 1 << 20
_log = logging.getLogger(__name__)


class Files:
    """Reads below one folder, the same one whatever takes its name later. Links are followed where they stay inside.

    Args:
        root: the folder's path, which links inside may begin with.
        fd: the folder, opened; closed by `close`.
        shared: files outside that links may lead to, as paths without links.
    """

    def __init__(self, root: Path, fd: int, shared: Collection[Path] = ()) -> None:
        self._root = os.path.realpath(root)
        self._fd = fd
        self.shared = frozenset(map(str, shared))

    def close(self) -> None:
        """Let go of the folder. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def list(self, path: str = ".") -> list[FileEntry]:
        """Entries of a folder, sorted by name, at most `LISTED`.

        Raises PathOutside, FileNotFoundError, NotADirectoryError.
        """
        with self._open(path) as (fd, where):
            if not stat.S_ISDIR(os.fstat(fd).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, "not a folder", path)
            entries = []
            with _reopened(fd, os.O_RDONLY | os.O_DIRECTORY) as folder, os.scandir(folder) as items:
                for item, _ in zip(items, range(LISTED), strict=False):
                    is_dir = item.is_dir(follow_symlinks=False)
                    size = 0 if is_dir else self._size(folder, item)
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
        """Copy regular files and folders to `dest`; returns bytes copied.

        Links, devices, what may not be read and what lies deeper than `DEPTH` are left out. A hole counts as the bytes
        that it stands for.

        Raises:
            OSError: more than `max_bytes` or `EXPORTED` entries; what was copied so far stays.
        """
        dest.mkdir(parents=True, exist_ok=True)
        target = os.open(dest, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with _reopened(self._fd, os.O_RDONLY | os.O_DIRECTORY) as source:
                return _Export(self.shared, max_bytes).folder(source, target, str(dest), 0)
        finally:
            os.close(target)

    def send(self, frames: Frames, max_bytes: int) -> None:
        """Send regular files and folders as a tree, by the rules of `export`. Raises OSError."""
        with _reopened(self._fd, os.O_RDONLY | os.O_DIRECTORY) as source:
            _Sending(self.shared, max_bytes, frames).folder(source, -1, ".", 0)

    def _size(self, folder: int, item: os.DirEntry[str]) -> int:
        if item.is_symlink() and (target := _shared_target(folder, item.name, self.shared)):
            return Path(target).stat().st_size
        return item.stat(follow_symlinks=False).st_size

    @contextmanager
    def _open(self, path: str) -> Iterator[tuple[int, str]]:
        """An O_PATH descriptor of what `path` names, and its path relative to the root, links resolved."""
        real = os.path.realpath(os.path.join(self._root, path))  # noqa: PTH118
        if real in self.shared:
            fd, parts, relative = os.open("/", os.O_PATH), PurePosixPath(real).parts[1:], path
        elif real == self._root or real.startswith(self._root + os.sep):
            relative = os.path.relpath(real, self._root)
            fd, parts = os.dup(self._fd), PurePosixPath(relative).parts
        else:
            raise PathOutside(errno.EPERM, "outside the working directory", path)
        try:
            for part in parts:
                # A link that took a component's place since realpath looked is refused here.
                step = os.open(part, os.O_PATH | os.O_NOFOLLOW, dir_fd=fd)
                os.close(fd)
                fd = step
            if stat.S_ISLNK(os.fstat(fd).st_mode):
                raise PathOutside(errno.EPERM, "a link that leads nowhere inside", path)
            yield fd, "" if relative == "." else relative
        finally:
            os.close(fd)


class _Export:
    """One copy on its way, from descriptor to descriptor, so that no name is looked up twice."""

    def __init__(self, shared: Collection[str], max_bytes: int) -> None:
        self.shared = shared
        self.bytes_left = max_bytes
        self.entries_left = EXPORTED

    def folder(self, source: int, target: int, path: str, depth: int) -> int:
        """Copy what one open folder holds into another; returns the bytes."""
        copied = 0
        for name in sorted(os.listdir(source)):
            try:
                fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=source)
            except FileNotFoundError:
                continue
            try:
                mode = os.fstat(fd).st_mode
                if stat.S_ISDIR(mode):
                    copied += self.inner(fd, target, name, path, depth + 1)
                elif stat.S_ISREG(mode):
                    copied += self.file(fd, target, name)
                elif stat.S_ISLNK(mode) and (shared := _shared_target(source, name, self.shared)):
                    with _opened(shared) as other:
                        copied += self.file(other, target, name)
            except PermissionError as error:
                _log.warning("export to %s: %s is left out: %s", path, ascii(name), error.strerror)
            finally:
                os.close(fd)
        return copied

    def inner(self, fd: int, target: int, name: str, path: str, depth: int) -> int:
        if depth > DEPTH:
            _log.warning("export to %s: what lies deeper than %d folders is left out", path, DEPTH)
            return 0
        self.count(name)
        return self.enter(fd, target, name, path, depth)

    def enter(self, fd: int, target: int, name: str, path: str, depth: int) -> int:
        """Copy a folder, as the one of its name in the target."""
        with suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=target)
        into = os.open(name, FOLDER, dir_fd=target)
        try:
            with _reopened(fd, os.O_RDONLY | os.O_DIRECTORY) as source:
                return self.folder(source, into, path, depth)
        finally:
            os.close(into)

    def file(self, fd: int, target: int, name: str) -> int:
        """Copy a regular file, which may grow meanwhile."""
        self.count(name)
        if os.fstat(fd).st_size > self.bytes_left:
            raise _too_large(name)
        copied = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK
        out = os.open(name, flags, 0o644, dir_fd=target)
        with _reopened(fd, os.O_RDONLY) as source, os.fdopen(out, "wb") as file:
            for chunk in _chunks(source, self.bytes_left + 1):
                copied += len(chunk)
                if copied > self.bytes_left:
                    raise _too_large(name)
                file.write(chunk)
        self.bytes_left -= copied
        return copied

    def count(self, name: str) -> None:
        self.entries_left -= 1
        if self.entries_left < 0:
            raise OSError(errno.EFBIG, f"the working directory has more than {EXPORTED} entries", name)


class _Sending(_Export):
    """The same as a stream, for which targets mean nothing."""

    def __init__(self, shared: Collection[str], max_bytes: int, frames: Frames) -> None:
        super().__init__(shared, max_bytes)
        self.frames = frames

    def enter(self, fd: int, target: int, name: str, path: str, depth: int) -> int:
        self.frames.say({"kind": "folder", "name": name})
        with _reopened(fd, os.O_RDONLY | os.O_DIRECTORY) as source:
            copied = self.folder(source, -1, path, depth)
        self.frames.say({"kind": "up"})
        return copied

    def file(self, fd: int, target: int, name: str) -> int:
        self.count(name)
        if os.fstat(fd).st_size > self.bytes_left:
            raise _too_large(name)
        with _reopened(fd, os.O_RDONLY) as source:
            copied = send_file(self.frames, name, _chunks(source, self.bytes_left + 1))
        self.bytes_left -= copied
        return copied


def _too_large(name: str) -> OSError:
    return OSError(errno.EFBIG, "the working directory is larger than the export may be", name)


def _shared_target(folder: int, name: str, shared: Collection[str]) -> str:
    """The shared file that a link points to; empty for any other link."""
    try:
        target = os.readlink(name, dir_fd=folder)
    except OSError:
        return ""
    return target if target in shared else ""


@contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        yield fd
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
