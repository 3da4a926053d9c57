"""Unpack a capsule's zip safely: data files in one folder, everything that may hold answers in another.

A capsule zip holds `CapsuleData-<uuid>/` (inputs) and `CapsuleNotebook-<uuid>/` (the expert's executed notebook, which
contains the answers). Only files below the data folder are data, and of those no notebook, R Markdown, Quarto or HTML
page. All else lands in a folder that stays on the host.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import stat
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from nbagent.errors import StorageError, TaskFormatError

KEPT_OUT = (".ipynb", ".rmd", ".qmd", ".html", ".htm")
"""Endings of files that may hold answers, wherever in the zip they are."""

IGNORED = ("__MACOSX", ".DS_Store", ".ipynb_checkpoints")
"""Names that are never unpacked."""


@dataclass(frozen=True, slots=True)
class CapsuleLimits:
    """How much one zip may unpack to."""

    files: int = 100_000
    """Entries."""
    bytes: int = 64 << 30
    """Unpacked bytes in all; the largest published capsules have some GB."""
    ratio: int = 300
    """Unpacked over packed bytes, looked at above `ratio_from`."""
    ratio_from: int = 256 << 20
    """Unpacked bytes below which the ratio does not matter: a small table of zeros packs very well."""


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A capsule on disk, shared by its questions and never written to."""

    data: Path
    """Data files only."""
    notebooks: Path
    """What was kept out of the data: for the host only."""


def unpack(archive: Path, cache: Path, limits: CapsuleLimits | None = None) -> Unpacked:
    """Unpack a capsule into the cache, or find it there. The entries' names, sizes and checksums are its cache key.

    Raises:
        TaskFormatError: the zip is missing, broken, unsafe, too large, or has no data folder.
        StorageError: the disk is full.
    """
    limits = limits or CapsuleLimits()
    if not archive.is_file():
        raise TaskFormatError(f"{archive}: capsule not found; it belongs beside the file of questions")
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = _checked(opened, archive, limits)
            home = cache / _key(entries)
            if not home.is_dir():
                _extract(opened, entries, home, archive, limits)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise TaskFormatError(f"{archive}: broken zip: {error}; get it again") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise StorageError(f"{cache}: the disk is full; free some space or name another cache") from error
        raise TaskFormatError(f"{archive}: cannot be unpacked: {error}") from error
    return Unpacked(home / "data", home / "notebooks")


@dataclass(frozen=True, slots=True)
class _Entry:
    info: zipfile.ZipInfo
    place: PurePosixPath
    """Where it goes: below `data/` or `notebooks/`."""


def _checked(opened: zipfile.ZipFile, archive: Path, limits: CapsuleLimits) -> list[_Entry]:
    infos = opened.infolist()
    if len(infos) > limits.files:
        raise TaskFormatError(f"{archive}: has {len(infos)} entries, more than {limits.files}")
    total, packed = sum(info.file_size for info in infos), max(1, archive.stat().st_size)
    if total > limits.bytes:
        raise TaskFormatError(f"{archive}: unpacks to {total} bytes, more than {limits.bytes}")
    if total > limits.ratio_from and total > limits.ratio * packed:
        raise TaskFormatError(f"{archive}: unpacks to {total // packed} times its size, more than {limits.ratio}")
    for info in infos:
        _check_entry(info, archive)
    level, mark = _data_folder(infos, archive)
    return [entry for info in infos if not info.is_dir() and (entry := _placed(info, level, mark)) is not None]


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


def _data_folder(infos: list[zipfile.ZipInfo], archive: Path) -> tuple[int, str]:
    """Depth and name of the data folder: at the top, or inside one wrapping folder."""
    for fits in (lambda name: name.startswith("CapsuleData"), lambda name: "Data" in name):
        for level in (0, 1):
            found = {
                folders[level] for info in infos if len(folders := _folders(info)) > level and fits(folders[level])
            }
            if len(found) > 1:
                names = ", ".join(sorted(found))
                raise TaskFormatError(f"{archive}: has several data folders: {names}; a capsule holds one")
            if found:
                return level, found.pop()
    raise TaskFormatError(f"{archive}: has no data folder; a capsule holds a folder CapsuleData-<uuid>")


def _folders(info: zipfile.ZipInfo) -> tuple[str, ...]:
    parts = PurePosixPath(info.filename).parts
    return parts if info.is_dir() else parts[:-1]


def _placed(info: zipfile.ZipInfo, level: int, mark: str) -> _Entry | None:
    parts = PurePosixPath(info.filename).parts
    if any(part in IGNORED for part in parts):
        return None
    if len(parts) > level + 1 and parts[level] == mark and not info.filename.lower().endswith(KEPT_OUT):
        return _Entry(info, PurePosixPath("data", *parts[level + 1 :]))
    return _Entry(info, PurePosixPath("notebooks", *parts))


def _key(entries: list[_Entry]) -> str:
    digest = hashlib.sha256()
    for entry in sorted(entries, key=lambda entry: entry.info.filename):
        digest.update(f"{entry.place}\0{entry.info.file_size}\0{entry.info.CRC}\n".encode())
    return digest.hexdigest()[:32]


def _extract(opened: zipfile.ZipFile, entries: list[_Entry], home: Path, archive: Path, limits: CapsuleLimits) -> None:
    home.parent.mkdir(parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=home.parent))
    left = limits.bytes
    try:
        (half / "data").mkdir()
        (half / "notebooks").mkdir()
        for entry in entries:
            target = half / entry.place
            target.parent.mkdir(parents=True, exist_ok=True)
            # "x": an entry named twice, or a file where a folder is, is an error and never an overwrite.
            with opened.open(entry.info) as source, target.open("xb") as sink:
                while block := source.read(1 << 20):
                    left -= len(block)
                    if left < 0:
                        raise TaskFormatError(f"{archive}: unpacks to more than {limits.bytes} bytes")
                    sink.write(block)
        half.chmod(0o755)
        try:
            half.rename(home)
        except OSError:
            # Somebody else has unpacked the same capsule meanwhile.
            if not home.is_dir():
                raise
    finally:
        shutil.rmtree(half, ignore_errors=True)
