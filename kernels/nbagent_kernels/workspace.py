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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nbagent_kernels.errors import KernelStartError
from nbagent_kernels.files import Files

_log = logging.getLogger(__name__)
_lock = threading.Lock()
_root: tuple[int, Path] | None = None
_numbers = itertools.count(1)


class Workspace:
    """One session's folders: `work` (the working directory), `home` and `tmp`."""

    def __init__(self) -> None:
        self.number = next(_numbers)
        """Unique in this process."""
        self.folder = process_root() / f"s{self.number}"
        """Holds the rest, and a backend's sockets."""
        self.work = self.folder / "work"
        self.home = self.folder / "home"
        self.tmp = self.folder / "tmp"
        for folder in (self.folder, self.work, self.home, self.tmp):
            folder.mkdir(mode=0o700)
        self.files = Files(self.work)
        """The file verbs."""

    async def fill(self, capsule: Path | None) -> None:
        """Copy the capsule's content into the working directory. Raises KernelStartError."""
        if capsule is None:
            return
        try:
            await asyncio.to_thread(_copy_capsule, capsule, self.work)
        except OSError as error:
            raise KernelStartError(f"capsule {capsule}: {error.strerror or error}; is the folder there?") from error

    async def remove(self) -> None:
        """Remove all of it."""
        await asyncio.to_thread(remove_tree, self.folder)


def process_root() -> Path:
    """This process's private folder, made on first use and removed when the process ends."""
    global _root
    with _lock:
        if _root is None or _root[0] != os.getpid():
            base = _base()
            _remove_orphans(base)
            root = base / f"{os.getpid()}-{_started(os.getpid())}"
            root.mkdir(mode=0o700, exist_ok=True)
            _root = (os.getpid(), root)
            atexit.register(_remove_own, os.getpid(), root)
        return _root[1]


def remove_tree(folder: Path) -> None:
    """Remove a folder, also where its content was made unwritable. A missing one is fine."""

    def retry(function: Callable[..., Any], path: str, error: Any) -> None:
        if isinstance(error[1], FileNotFoundError):
            return
        with contextlib.suppress(OSError):
            os.chmod(os.path.dirname(path), 0o700)  # noqa: PTH101, PTH120
            if not os.path.islink(path):  # noqa: PTH114
                os.chmod(path, 0o700)  # noqa: PTH101
            if function in (os.open, os.scandir, os.listdir, os.rmdir):
                shutil.rmtree(path, ignore_errors=True)
            else:
                function(path)

    shutil.rmtree(folder, onerror=retry)
    if folder.exists():
        _log.warning("could not remove %s", folder)


def _base() -> Path:
    # The sockets of a local kernel lie below and their path may have 107 bytes.
    place = Path(tempfile.gettempdir())
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


def _started(pid: int) -> str:
    """When a process started, in clock ticks since boot; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _remove_orphans(base: Path) -> None:
    for folder in base.iterdir():
        pid, _, started = folder.name.partition("-")
        if pid.isdigit() and _started(int(pid)) != started:
            remove_tree(folder)


def _remove_own(pid: int, root: Path) -> None:
    if os.getpid() == pid:
        remove_tree(root)


def _copy_capsule(capsule: Path, work: Path) -> None:
    """Copy files and folders; links inside the capsule become files, those that lead out are left behind."""
    inside = os.path.realpath(capsule)
    if not os.path.isdir(inside):  # noqa: PTH112
        raise NotADirectoryError(0, "not a folder")
    for folder, names, files in os.walk(inside):
        target = work / os.path.relpath(folder, inside)
        for name in names:
            (target / name).mkdir(mode=0o700, exist_ok=True)
        for name in files:
            source = os.path.realpath(os.path.join(folder, name))  # noqa: PTH118
            if not source.startswith(inside + os.sep) or not os.path.isfile(source):  # noqa: PTH113
                _log.warning("capsule %s: %s is left out, it leads outside or is no file", capsule, name)
                continue
            shutil.copyfile(source, target / name)
