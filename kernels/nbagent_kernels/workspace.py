"""Where sessions live on disk: one private folder per host process, in it one folder per session.

The process's folder is named by its pid and start time; one that a killed process left is removed by the next.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import itertools
import logging
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from nbagent_kernels.capsule import SHARED_BYTES, entries
from nbagent_kernels.cgroups import Counters, Group, is_over, oom_kills, started
from nbagent_kernels.errors import KernelError, KernelStartError
from nbagent_kernels.files import Files
from nbagent_kernels.removal import FOLDER, remove_at, remove_tree
from nbagent_kernels.types import FileEntry

WORK, HOME, TMP, BRANCHES = "work", "home", "tmp", "b"
"""Names of a session's folders; the last one holds those of its branches and is short, as paths of sockets must be."""
_log = logging.getLogger(__name__)
_lock = threading.Lock()
_root: tuple[int, Path] | None = None
_numbers = itertools.count(1)


class Workspace:
    """One session's folders and its control group.

    Args:
        within: the session that this one branches off from. Its kernel may touch this one's folders too, which lie in
            its own: rights that a kernel has given up do not come back in its fork.
    """

    def __init__(self, within: Workspace | None = None) -> None:
        self.number = next_number()
        """Unique in this process."""
        self._name = f"s{self.number}"
        self._within = within
        self._users = 1
        self.folder: Path = (within.folder / BRANCHES if within else process_root()) / self._name
        """Holds the rest, and a backend's sockets."""
        outer = self._outer()
        try:
            os.mkdir(self._name, 0o700, dir_fd=outer)
            self.fd = os.open(self._name, FOLDER, dir_fd=outer)
            """The folder, opened: a branch's path leads through folders that other kernels write to."""
        finally:
            os.close(outer)
        for name in (WORK, HOME, TMP, BRANCHES):
            os.mkdir(name, 0o700, dir_fd=self.fd)
        self.work, self.home, self.tmp = self.folder / WORK, self.folder / HOME, self.folder / TMP
        self.writable = (self.work, self.home, self.tmp, self.folder / BRANCHES)
        """What the kernel may write to."""
        self.shared: tuple[Path, ...] = within.shared if within else ()
        """Capsule files that stand in the working directory as links."""
        self.files = Files(self.work, os.open(WORK, FOLDER, dir_fd=self.fd), self.shared)
        """The file verbs."""
        self.group: Counters | None = None
        """Bounds and counts what the session uses; None where the system grants no control group."""
        if within:
            with _lock:
                within._users += 1

    async def fill(self, capsule: Path | None, share: bool = False) -> None:
        """Put the capsule's content into the working directory; with `share`, large files as links to the originals.

        Raises KernelStartError.
        """
        if capsule is None:
            return
        try:
            self.shared = await asyncio.to_thread(_copy_capsule, capsule, self.work, share)
        except OSError as error:
            raise KernelStartError(f"capsule {capsule}: {error.strerror or error}; is the folder there?") from error
        self.files.shared = frozenset(map(str, self.shared))

    async def list(self, path: str) -> list[FileEntry]:
        """See Session.list."""
        return await asyncio.to_thread(self.files.list, path)

    async def read(self, path: str, max_bytes: int) -> bytes:
        """See Session.read."""
        return await asyncio.to_thread(self.files.read, path, max_bytes)

    async def export(self, dest: Path, max_bytes: int) -> int:
        """See Session.export."""
        return await asyncio.to_thread(self.files.export, dest, max_bytes)

    def takes(self, capsule: Path | None) -> bool:
        """Whether `fill` can put a capsule into folders that a kernel has."""
        return True

    @property
    def failure(self) -> KernelError | None:
        """Why the folders are gone, where that was not the session's doing."""
        return None

    @property
    def groups(self) -> Sequence[str]:
        """Folders of the control group; none where there is none."""
        return [str(folder) for folder in self.group.folders] if self.group is not None else []

    def oom_kills(self) -> int:
        """Out-of-memory kills so far: the session's, or this process's where the session has no control group."""
        return self.group.oom_kills() if self.group is not None else oom_kills()

    async def remove(self) -> None:
        """Remove all of it; the folder itself when no branch lies in it any more."""
        await asyncio.to_thread(self._remove)

    def _remove(self) -> None:
        self.files.close()
        if isinstance(self.group, Group):
            self.group.end()
        for name in os.listdir(self.fd):  # noqa: PTH208
            if name != BRANCHES:
                remove_at(self.fd, name)
        self._release()

    def _release(self) -> None:
        with _lock:
            self._users -= 1
            if self._users:
                return
        os.close(self.fd)
        outer = self._outer()
        try:
            remove_at(outer, self._name)
        finally:
            os.close(outer)
        if self._within:
            self._within._release()

    def _outer(self) -> int:
        """The folder that this one lies in, opened."""
        if self._within:
            return os.open(BRANCHES, FOLDER, dir_fd=self._within.fd)
        return os.open(process_root(), FOLDER)


def next_number() -> int:
    """A session's number: unique in this process."""
    return next(_numbers)


def process_root() -> Path:
    """This process's private folder, made on first use and removed when the process ends."""
    global _root
    with _lock:
        if _root is None or _root[0] != os.getpid():
            for left in orphans():
                remove_tree(left)
            root = _base() / f"{os.getpid()}-{started(os.getpid())}"
            root.mkdir(mode=0o700, exist_ok=True)
            _root = (os.getpid(), root)
            atexit.register(_remove_own, os.getpid(), root)
        return _root[1]


def _base() -> Path:
    # The sockets of a local kernel lie below and their path may have 107 bytes.
    place = Path(tempfile.gettempdir()).resolve()
    if len(os.fsencode(place)) > 50:
        place = Path("/tmp")
    base = place / f"nbagent-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        base.mkdir(mode=0o700)
    status = base.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise KernelStartError(f"{base} belongs to somebody else; remove it or set TMPDIR to another folder")
    if status.st_mode & 0o077:
        base.chmod(0o700)
    return base


def orphans() -> list[Path]:
    """Folders of processes that have ended without removing them."""
    return [folder for folder in _base().iterdir() if is_over(folder.name)]


def _remove_own(pid: int, root: Path) -> None:
    if os.getpid() == pid:
        remove_tree(root)


def _copy_capsule(capsule: Path, work: Path, share: bool) -> tuple[Path, ...]:
    """Copy files and folders; returns the files that were linked instead of copied."""
    shared, folder = [], work
    for kind, name, source in entries(capsule):
        if kind == "folder":
            folder /= name
            folder.mkdir(mode=0o700, exist_ok=True)
        elif kind == "up":
            folder = folder.parent
        elif share and os.path.getsize(source) >= SHARED_BYTES:  # noqa: PTH202
            (folder / name).symlink_to(source)
            shared.append(Path(source))
        else:
            shutil.copyfile(source, folder / name)
    return tuple(shared)
