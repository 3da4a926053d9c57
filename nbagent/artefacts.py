"""What an attempt wrote, brought out of its session into the run folder: regular files only, under a cap of bytes."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path, PurePosixPath

from nbagent_kernels import FileEntry, Session
from nbagent_kernels.capsule import SHARED_BYTES

FILES = 1000
"""Most files of one attempt."""
FOLDERS = 200
"""Most folders that are looked into."""
KEEP_S = 60.0
"""Seconds for all files of one attempt: whoever answers for them may be stopped, or made slow, by the agent's code."""
NAME_BYTES, PATH_BYTES = 255, 1000
"""Longest names and paths that are kept."""
_UNFIT = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENOENT}
"""What a name can be at fault for; all else that writing fails of is the run folder's."""
_log = logging.getLogger(__name__)


async def keep_artefacts(session: Session, capsule: Path | None, folder: Path, max_bytes: int) -> list[str]:
    """Copy the files that cells wrote or changed; returns their paths, relative to `folder`.

    A capsule's file is taken as unchanged where its size is the same and, up to `SHARED_BYTES`, its content too. Names
    and contents are an agent's: nothing is written outside of `folder`, no link is made or followed. What is too large
    for what is left of `max_bytes`, or not there within KEEP_S seconds, is left out with a warning.

    Raises:
        OSError: the run folder cannot be written.
        KernelError: the session failed on the host's side.
    """
    kept: list[str] = []
    try:
        async with asyncio.timeout(KEEP_S):
            await _keep(session, capsule, folder, max_bytes, kept)
    except TimeoutError:
        _log.warning("%s: %d files were kept in %g s; the rest is left out", folder.name, len(kept), KEEP_S)
    except BrokenPipeError as error:
        _log.warning("%s: %d files were kept; the rest is left out: %s", folder.name, len(kept), error.strerror)
    return kept


async def _keep(session: Session, capsule: Path | None, folder: Path, left: int, kept: list[str]) -> None:
    async for entry in _walk(session):
        place = _inside(entry.path)
        if place is None or len(kept) == FILES:
            continue
        if entry.size > left:
            _log.warning("%s: %d bytes are more than may still be kept", ascii(entry.path), entry.size)
            continue
        before = _of_size(capsule / place, entry.size) if capsule is not None else None
        if before is not None and entry.size >= SHARED_BYTES:
            continue
        try:
            content = await session.read(entry.path, left)
        except (BrokenPipeError, TimeoutError):
            raise
        except (OSError, ValueError):
            continue  # a link, a pipe, or gone meanwhile
        if before is not None and content == before.read_bytes():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        try:
            _write(folder / place, content)
        except OSError as error:
            if error.errno not in _UNFIT:
                raise
            _log.warning("%s is left out: %s", ascii(entry.path), error.strerror)
            continue
        left -= len(content)
        kept.append(str(place))


def _of_size(path: Path, size: int) -> Path | None:
    """A capsule's file, if it is there and of this size; None also where no file can have such a name."""
    try:
        return path if path.is_file() and path.stat().st_size == size else None
    except OSError:
        return None


async def _walk(session: Session) -> AsyncIterator[FileEntry]:
    folders = ["."]
    for _ in range(FOLDERS):
        if not folders:
            return
        try:
            entries = await session.list(folders.pop(0))
        except (BrokenPipeError, TimeoutError):
            raise
        except (OSError, ValueError):
            continue
        folders += [entry.path for entry in entries if entry.is_dir]
        for entry in entries:
            if not entry.is_dir:
                yield entry


def _inside(path: str) -> PurePosixPath | None:
    """A path that stays below the folder it is put in and that any file system takes; None for any other."""
    place = PurePosixPath(path)
    parts = place.parts
    if place.is_absolute() or not parts or ".." in parts or not path.isprintable():
        return None
    if len(os.fsencode(path)) > PATH_BYTES or any(len(os.fsencode(part)) > NAME_BYTES for part in parts):
        return None
    return place


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644), "wb") as file:
        file.write(content)
