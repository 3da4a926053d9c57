"""What of a capsule comes into a working directory: its files and folders, and links that stay inside as files."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

SHARED_BYTES = 8 << 20
"""Capsule files of this size and more are linked where the kernel cannot write to them."""
COPIED_BYTES = 64 << 20
"""Capsules up to this size are copied into a container that runs already, which gets no more mounts; the copy takes
memory."""
_log = logging.getLogger(__name__)


class Entry(NamedTuple):
    """One thing in a capsule."""

    kind: Literal["folder", "file", "up"]
    """`up`: the end of the folder that was named last and not ended yet."""
    name: str
    """Its name in its folder."""
    source: str
    """Its path on the host, without links."""


def entries(capsule: Path) -> Iterator[Entry]:
    """All of it, each folder before what it holds. Raises OSError where it cannot be read, or is no folder."""
    inside = os.path.realpath(capsule)
    if not os.path.isdir(inside):  # noqa: PTH112
        raise NotADirectoryError(0, "not a folder")
    yield from _entries(capsule, inside, inside)


def shareable(entry: Entry, capsule: Path) -> bool:
    """Whether a file of a capsule is large and any user may read it, by its mode and those of all folders down to it.

    A sandbox has a uid that no file of the host belongs to, and sees the capsule's folder and what is below it.
    """
    inside, file = Path(os.path.realpath(capsule)), Path(entry.source)
    if file.stat().st_size < SHARED_BYTES:
        return False
    folders = [inside / folder for folder in file.relative_to(inside).parents]
    readable = all(place.stat().st_mode & stat.S_IROTH for place in (inside, file))
    return readable and all(folder.stat().st_mode & stat.S_IXOTH for folder in folders)


def quickly_copied(capsule: Path | None) -> bool:
    """Whether a session that runs can be given a capsule, in a container too."""
    try:
        files = [entry.source for entry in entries(capsule) if entry.kind == "file"] if capsule else []
        return sum(map(os.path.getsize, files)) <= COPIED_BYTES
    except OSError:
        return False


def _entries(capsule: Path, inside: str, folder: str) -> Iterator[Entry]:
    for name in sorted(os.listdir(folder)):  # noqa: PTH208
        place = os.path.join(folder, name)  # noqa: PTH118
        if os.path.isdir(place) and not os.path.islink(place):  # noqa: PTH112, PTH114
            yield Entry("folder", name, place)
            yield from _entries(capsule, inside, place)
            yield Entry("up", name, place)
            continue
        source = os.path.realpath(place)
        if source.startswith(inside + os.sep) and os.path.isfile(source):  # noqa: PTH113
            yield Entry("file", name, source)
        else:
            _log.warning("capsule %s: %s is left out, it leads outside or is no file", capsule, name)
