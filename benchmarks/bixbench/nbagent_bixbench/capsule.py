"""Capsules unpacked: data files in one read-only folder that all questions share, everything else kept on the host.

A capsule is unpacked once into a cache, in a folder named by its content. Beside the files lies a manifest with their
sizes and digests; the copy is compared with it before each use, and one that was changed is unpacked again.

What is not covered: files are read-only by their mode, which stops accidents; code that runs as you and means to
can change it back. The next use notices.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nbagent.errors import StorageError, TaskFormatError
from nbagent_bixbench.archive import CapsuleLimits, Entry, folder_entries, zip_entries
from nbagent_bixbench.leaks import leaks_in, searchable, secrets_in

MANIFEST = "manifest.json"
_log = logging.getLogger(__name__)
_Files = dict[str, tuple[int, str, int]]
"""By place in the data folder: size, SHA-256, and the time of the last change of content or mode, in ns."""


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A capsule on disk, shared by its questions and never written to."""

    data: Path
    """Data files only; the files are read-only."""
    notebooks: Path
    """What was kept out of the data: for the host only."""
    kept_out: Mapping[str, str] = field(default_factory=dict)
    """Files of the data folder that were kept out for what is in them, with the reason."""


def unpack(archive: Path, cache: Path, limits: CapsuleLimits | None = None, secrets: Iterable[str] = ()) -> Unpacked:
    """Unpack a capsule into the cache, or find it there intact.

    Args:
        archive: its zip, or a folder.
        cache: where unpacked capsules are kept. What a zip's directory says of its entries (names, sizes, checksums)
            names the folder, so that the same content is there once.
        limits: how much it may hold.
        secrets: texts of its rows (see `Row.secrets`); a data file that holds one is kept out.

    Raises:
        TaskFormatError: the capsule is missing, broken, unsafe, too large, or has no data folder.
        StorageError: the disk is full.
    """
    limits = limits or CapsuleLimits()
    try:
        with _opened(archive, limits) as entries:
            home = cache / _key(entries)
            if home.is_dir() and not _intact(home):
                _log.warning("%s: its unpacked copy %s was changed; unpacking it again", archive, home)
                _discard(home)
            texts = searchable(secrets)
            if not home.is_dir():
                _extract(entries, home, archive, limits, texts)
            kept_out = _search(home, texts, archive)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise TaskFormatError(f"{archive}: broken zip: {error}; get it again") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise StorageError(f"{cache}: the disk is full; free some space or name another cache") from error
        raise TaskFormatError(f"{archive}: cannot be unpacked: {error}") from error
    return Unpacked(home / "data", home / "notebooks", kept_out)


@contextmanager
def _opened(archive: Path, limits: CapsuleLimits) -> Iterator[list[Entry]]:
    if archive.is_dir():
        yield folder_entries(archive, limits)
    elif archive.is_file():
        with zipfile.ZipFile(archive) as opened:
            yield zip_entries(opened, archive, limits)
    else:
        raise TaskFormatError(f"{archive}: capsule not found; it belongs beside the file of questions")


def _key(entries: Sequence[Entry]) -> str:
    digest = hashlib.sha256()
    for entry in sorted(entries, key=lambda entry: entry.place):
        digest.update(f"{entry.place}\0{entry.mark}\n".encode())
    return digest.hexdigest()[:32]


def _extract(
    entries: Sequence[Entry], home: Path, archive: Path, limits: CapsuleLimits, secrets: Sequence[str]
) -> None:
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
            with entry.open() as source, target.open("xb") as sink:
                while block := source.read(1 << 20):
                    left -= len(block)
                    if left < 0:
                        raise TaskFormatError(f"{archive}: unpacks to more than {limits.bytes} bytes")
                    sink.write(block)
            target.chmod(0o444)
        kept = _keep_out(half, list(leaks_in(half / "data", half / "notebooks")), archive)
        kept |= _keep_out(half, list(secrets_in(half / "data", secrets)), archive)
        _write_manifest(half, kept, list(_marks(secrets)))
        for folder in (half, half / "data", *(path for path in (half / "data").rglob("*") if path.is_dir())):
            folder.chmod(0o755)  # whatever the umask: sandboxes, which are no user of this machine, read large files
        try:
            half.rename(home)
        except OSError:
            # Somebody else has unpacked the same capsule meanwhile.
            if not home.is_dir():
                raise
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _keep_out(home: Path, found: Sequence[tuple[Path, str]], archive: Path) -> dict[str, str]:
    """Move files out of the data folder; their places with the reasons."""
    kept = {}
    for path, reason in found:
        place = path.relative_to(home / "data")
        target = home / "notebooks" / "from-data" / place
        target.parent.mkdir(parents=True, exist_ok=True)
        # Another process that has the same copy may have moved it a moment ago.
        with suppress(FileNotFoundError):
            path.rename(target)
        kept[place.as_posix()] = reason
        _log.warning("%s: %s is kept out of the agent's files: %s", archive, place.as_posix(), reason)
    return kept


def _search(home: Path, secrets: Sequence[str], archive: Path) -> dict[str, str]:
    """Keep out files that hold one of the texts; texts searched for once are remembered. All that is kept out."""
    manifest = _manifest(home)
    kept: dict[str, str] = dict(manifest["kept_out"])
    marks = _marks(secrets)
    fresh = [mark for mark in marks if mark not in manifest["searched"]]
    if fresh:
        found = list(secrets_in(home / "data", [marks[mark] for mark in fresh]))
        kept |= _keep_out(home, found, archive)
        _write_manifest(home, kept, [*manifest["searched"], *fresh], manifest["files"])
    return kept


def _marks(secrets: Sequence[str]) -> dict[str, str]:
    return {hashlib.sha256(text.encode()).hexdigest()[:16]: text for text in secrets}


def _manifest(home: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((home / MANIFEST).read_text(encoding="utf-8"))
    return loaded


def _write_manifest(
    home: Path, kept_out: Mapping[str, str], searched: Sequence[str], known: _Files | None = None
) -> None:
    files = {}
    for path in _data_files(home):
        place = path.relative_to(home / "data").as_posix()
        files[place] = known[place] if known else _stamp(path)
    manifest = {"files": files, "kept_out": dict(kept_out), "searched": list(searched)}
    with tempfile.NamedTemporaryFile("w", dir=home, delete=False, encoding="utf-8") as partial:
        json.dump(manifest, partial)
    Path(partial.name).rename(home / MANIFEST)


def _data_files(home: Path) -> list[Path]:
    return [path for path in (home / "data").rglob("*") if path.is_symlink() or not path.is_dir()]


def _stamp(path: Path) -> tuple[int, str, int]:
    status = path.stat()
    with path.open("rb") as file:
        return status.st_size, hashlib.file_digest(file, "sha256").hexdigest(), status.st_ctime_ns


def _intact(home: Path) -> bool:
    """Whether the data folder holds what the manifest says. Digests are taken only where a file's stamp has changed."""
    try:
        known = _manifest(home)["files"]
    except (OSError, ValueError, KeyError):
        return False
    paths = {path.relative_to(home / "data").as_posix(): path for path in _data_files(home)}
    moved = home / "notebooks" / "from-data"
    if set(paths) - set(known) or not all(place in paths or (moved / place).exists() for place in known):
        return False
    for place, path in paths.items():
        size, digest, changed = known[place]
        status = path.lstat()
        if path.is_symlink() or status.st_size != size:
            return False
        if status.st_ctime_ns != changed and _stamp(path)[1] != digest:
            return False
        if status.st_mode & 0o222:
            path.chmod(0o444)
    return True


def _discard(home: Path) -> None:
    """Take a damaged copy out of the way at once, then remove it."""
    aside = Path(tempfile.mkdtemp(prefix=".damaged-", dir=home.parent))
    home.rename(aside / home.name)
    shutil.rmtree(aside, ignore_errors=True)
