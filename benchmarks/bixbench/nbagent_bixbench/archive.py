"""What a capsule holds, as a zip or as a folder: every entry checked before anything is written.

A capsule holds `CapsuleData-<uuid>/` (inputs) and `CapsuleNotebook-<uuid>/` (the expert's executed notebook, which
contains the answers). Only files below the data folder are data, and of those none that is named like a notebook.
"""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from nbagent.errors import TaskFormatError
from nbagent_bixbench.leaks import named_like_answers

IGNORED = ("__MACOSX", ".DS_Store", ".ipynb_checkpoints")
"""Names that are never unpacked."""


@dataclass(frozen=True, slots=True)
class CapsuleLimits:
    """How much one capsule may unpack to."""

    files: int = 100_000
    """Entries."""
    bytes: int = 64 << 30
    """Unpacked bytes in all; the largest published capsules have some GB."""
    ratio: int = 300
    """Unpacked over packed bytes, looked at above `ratio_from`."""
    ratio_from: int = 256 << 20
    """Unpacked bytes below which the ratio does not matter: a small table of zeros packs very well."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a capsule."""

    place: PurePosixPath
    """Where it goes: below `data/` or `notebooks/`."""
    mark: str
    """Size and checksum (of a zip's entry) or size and time (of a file): what tells contents apart without reading."""
    open: Callable[[], IO[bytes]]
    """Opens its content."""


def zip_entries(opened: zipfile.ZipFile, archive: Path, limits: CapsuleLimits) -> list[Entry]:
    """The files of a capsule's zip.

    Raises:
        TaskFormatError: it is unsafe, too large, or has no data folder.
    """
    infos = opened.infolist()
    _check_amount(archive, len(infos), sum(info.file_size for info in infos), limits, archive.stat().st_size)
    for info in infos:
        _check_entry(info, archive)
    folders = [PurePosixPath(i.filename).parts if i.is_dir() else PurePosixPath(i.filename).parts[:-1] for i in infos]
    level, mark = _data_folder(folders, archive)
    placed = [(info, _placed(info.filename, level, mark)) for info in infos if not info.is_dir()]
    return [
        Entry(place, f"{info.file_size} {info.CRC}", lambda info=info: opened.open(info))  # type: ignore[misc]
        for info, place in placed
        if place is not None
    ]


def folder_entries(folder: Path, limits: CapsuleLimits) -> list[Entry]:
    """The files of a capsule that lies there as a folder: all of it is data where no folder is named so.

    Raises:
        TaskFormatError: it holds links or too much.
    """
    files = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise TaskFormatError(f"{path}: is a link or no plain file; capsules hold plain files")
        if path.is_file():
            files.append((path.relative_to(folder).as_posix(), path, path.stat()))
    _check_amount(folder, len(files), sum(status.st_size for _, _, status in files), limits, None)
    folders = [PurePosixPath(name).parts[:-1] for name, _, _ in files]
    whole = not any(parts and parts[0].startswith(("CapsuleData", "CapsuleNotebook")) for parts in folders)
    level, mark = (-1, "") if whole else _data_folder(folders, folder)
    placed = [(path, status, _placed(name, level, mark)) for name, path, status in files]
    return [
        Entry(place, f"{status.st_size} {status.st_mtime_ns}", lambda path=path: path.open("rb"))  # type: ignore[misc]
        for path, status, place in placed
        if place is not None
    ]


def _check_amount(where: Path, files: int, total: int, limits: CapsuleLimits, packed: int | None) -> None:
    if files > limits.files:
        raise TaskFormatError(f"{where}: has {files} entries, more than {limits.files}")
    if total > limits.bytes:
        raise TaskFormatError(f"{where}: unpacks to {total} bytes, more than {limits.bytes}")
    if packed is not None and total > limits.ratio_from and total > limits.ratio * max(1, packed):
        raise TaskFormatError(f"{where}: unpacks to {total // max(1, packed)} times its size, more than {limits.ratio}")


def _check_entry(info: zipfile.ZipInfo, archive: Path) -> None:
    # `orig_filename` keeps what ZipInfo cuts or converts: a NUL, a backslash.
    name = info.orig_filename
    path = PurePosixPath(name)
    if not name or name.startswith("/") or "\\" in name or "\0" in name or name[1:2] == ":":
        raise TaskFormatError(f"{archive}: entry {name!r} has an absolute or unusable path")
    if ".." in path.parts:
        raise TaskFormatError(f"{archive}: entry {name!r} leads out of the capsule")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        raise TaskFormatError(f"{archive}: entry {name!r} is a link; capsules hold plain files")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise TaskFormatError(f"{archive}: entry {name!r} is not a plain file")
    if info.flag_bits & 1:
        raise TaskFormatError(f"{archive}: entry {name!r} is encrypted")


def _data_folder(folders: Sequence[tuple[str, ...]], where: Path) -> tuple[int, str]:
    """Depth and name of the data folder: at the top, or inside one wrapping folder."""
    for fits in (lambda name: name.startswith("CapsuleData"), lambda name: "Data" in name):
        for level in (0, 1):
            found = {parts[level] for parts in folders if len(parts) > level and fits(parts[level])}
            if len(found) > 1:
                names = ", ".join(sorted(found))
                raise TaskFormatError(f"{where}: has several data folders: {names}; a capsule holds one")
            if found:
                return level, found.pop()
    raise TaskFormatError(f"{where}: has no data folder; a capsule holds a folder CapsuleData-<uuid>")


def _placed(name: str, level: int, mark: str) -> PurePosixPath | None:
    parts = PurePosixPath(name).parts
    if any(part in IGNORED for part in parts):
        return None
    inside = level < 0 or (len(parts) > level + 1 and parts[level] == mark)
    # A second folder of notebooks may lie inside the data folder.
    of_notebooks = any(part.startswith("CapsuleNotebook") for part in parts[level + 1 :])
    if inside and not of_notebooks and not named_like_answers(parts[-1]):
        return PurePosixPath("data", *parts[level + 1 :])
    return PurePosixPath("notebooks", *parts)
