"""Removes folders that code one does not trust has filled: of any depth, whatever their modes, following nothing."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import secrets
from pathlib import Path

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_PASSES = 5
_log = logging.getLogger(__name__)


def remove_tree(folder: Path) -> None:
    """Remove a folder. A missing one is fine; one that cannot be removed is logged."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        parent = os.open(folder.parent, FOLDER)
        try:
            remove_at(parent, folder.name)
        finally:
            os.close(parent)


def remove_at(parent: int, name: str) -> None:
    """Remove what has this name in an open folder. A missing one is fine; one that cannot be removed is logged."""
    try:
        for _ in range(_PASSES):  # a process that is ending may still write
            inner = _open_folder(name, parent)
            try:
                _empty(inner)
            finally:
                os.close(inner)
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=parent)
                return
        os.rmdir(name, dir_fd=parent)
    except NotADirectoryError:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        pass
    except OSError as error:
        _log.warning("could not remove %s: %s", name, error)


def _empty(folder: int) -> None:
    """Remove what a folder holds. Folders within folders are first moved up, so that no depth needs a deep stack."""
    prefix, numbers = secrets.token_hex(8), itertools.count()
    names = os.listdir(folder)
    while names:
        name = names.pop()
        try:
            inner = _open_folder(name, folder)
        except NotADirectoryError:
            os.unlink(name, dir_fd=folder)
            continue
        except FileNotFoundError:
            continue
        try:
            for entry in os.listdir(inner):  # noqa: PTH208
                try:
                    os.unlink(entry, dir_fd=inner)
                except IsADirectoryError:
                    names.append(f"{prefix}{next(numbers)}")
                    os.close(_open_folder(entry, inner))
                    os.rename(entry, names[-1], src_dir_fd=inner, dst_dir_fd=folder)
        finally:
            os.close(inner)
        os.rmdir(name, dir_fd=folder)


def _open_folder(name: str, parent: int) -> int:
    """A folder, opened, and made its owner's to change. Raises NotADirectoryError for anything else."""
    fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{fd}", 0o700)  # noqa: PTH101
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(fd)
