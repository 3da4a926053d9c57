"""What an attempt wrote, brought out of its session into the run folder: regular files only, under a cap of bytes."""

from __future__ import annotations

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
_log = logging.getLogger(__name__)


async def keep_artefacts(session: Session, capsule: Path | None, folder: Path, max_bytes: int) -> list[str]:
    """Copy the files that cells wrote or changed; returns their paths, relative to `folder`.

    A capsule's file is taken as unchanged where its size is the same and, up to `SHARED_BYTES`, its content too. Names
    and contents are an agent's: nothing is written outside of `folder`, no link is made or followed. What is too large
    for what is left of `max_bytes` is left out with a warning.

    Raises:
        OSError: the run folder cannot be written.
        KernelError: the session failed on the host's side.
    """
    kept: list[str] = []
    left = max_bytes
    async for entry in _walk(session):
        place = _inside(entry.path)
        if place is None or len(kept) == FILES:
            continue
        if entry.size > left:
            _log.warning("%s: %d bytes are more than may still be kept", ascii(entry.path), entry.size)
            continue
        before = capsule / place if capsule is not None else None
        same = before is not None and before.is_file() and before.stat().st_size == entry.size
        if same and entry.size >= SHARED_BYTES:
            continue
        try:
            content = await session.read(entry.path, left)
        except OSError:
            continue  # a link, a pipe, or gone meanwhile
        if same and before is not None and content == before.read_bytes():
            continue
        _write(folder / place, content)
        left -= len(content)
        kept.append(str(place))
    return kept


async def _walk(session: Session) -> AsyncIterator[FileEntry]:
    folders = ["."]
    for _ in range(FOLDERS):
        if not folders:
            return
        try:
            entries = await session.list(folders.pop(0))
        except OSError:
            continue
        folders += [entry.path for entry in entries if entry.is_dir]
        for entry in entries:
            if not entry.is_dir:
                yield entry


def _inside(path: str) -> PurePosixPath | None:
    """A path that stays below the folder it is put in and that any file system takes; None for any other."""
    place = PurePosixPath(path)
    parts = place.parts
    if place.is_absolute() or not parts or ".." in parts or not path.isprintable() or len(os.fsencode(path)) > 1000:
        return None
    return place


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644), "wb") as file:
        file.write(content)
