"""Blobs: cell outputs stored once per content, named by the SHA-256 of their JSON."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

from nbagent.errors import StorageError, TrajectoryError

_ENCODE = json.JSONEncoder(separators=(",", ":"), sort_keys=True).encode
_FULL = (errno.ENOSPC, errno.EDQUOT)


def storage_failed(path: Path, error: OSError) -> NoReturn:
    """Raise the StorageError that names `path` and says what to do about `error`."""
    advice = (
        "free some space and resume the run" if error.errno in _FULL else "check that the disk is there and writable"
    )
    raise StorageError(f"{path}: cannot write: {error.strerror or error}; {advice}") from error


class Blobs:
    """A content-addressed store of JSON values, `root/<aa>/<sha256>`; in memory where `root` is None.

    Any number of processes may share one folder: a blob appears whole, by rename, and never changes.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root
        self._memory: dict[str, bytes] = {}
        self._known: set[str] = set()
        self._folders: set[str] = set()
        self._unsynced: set[Path] = set()
        self._lock = threading.Lock()
        self._serial = count()

    def path(self, sha: str) -> Path:
        """Where the blob lies. Raises ValueError for a store in memory."""
        if self.root is None:
            raise ValueError("this store is in memory")
        return self.root / sha[:2] / sha

    def put(self, value: Any) -> str:
        """Store a JSON value and return its SHA-256 in hex.

        Raises:
            StorageError: the disk is full or gone.
        """
        data = _ENCODE(value).encode("ascii")
        sha = hashlib.sha256(data).hexdigest()
        if sha in self._known:
            return sha
        if self.root is None:
            self._memory[sha] = data
        else:
            self._write(self.path(sha), data)
        self._known.add(sha)
        return sha

    def _write(self, path: Path, data: bytes) -> None:
        if path.parent.name not in self._folders:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                storage_failed(path, error)
            self._folders.add(path.parent.name)
        if path.exists() and path.stat().st_size == len(data):
            return
        partial = path.with_name(f".{os.getpid()}-{next(self._serial)}")
        try:
            partial.write_bytes(data)
            partial.rename(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            storage_failed(path, error)
        self._unsynced.add(path)

    def get(self, sha: str) -> Any:
        """The value stored under `sha`.

        Raises:
            TrajectoryError: it is missing, or its content is not what its name says.
        """
        data = self._memory.get(sha)
        if data is None:
            if self.root is None:
                raise TrajectoryError(f"no blob {sha} in memory")
            try:
                data = self.path(sha).read_bytes()
            except FileNotFoundError:
                raise TrajectoryError(
                    f"{self.path(sha)}: the blob is missing; copy blobs/ along with rollouts/"
                ) from None
        if hashlib.sha256(data).hexdigest() != sha:
            raise TrajectoryError(f"{self.path(sha)}: the blob's content does not match its name; it was damaged")
        return json.loads(data)

    def sync(self) -> None:
        """Make everything stored so far durable. Blocks on the disk: call it off the event loop."""
        with self._lock:
            while self._unsynced:
                path = self._unsynced.pop()
                try:
                    descriptor = os.open(path, os.O_RDONLY)
                    try:
                        os.fsync(descriptor)
                    finally:
                        os.close(descriptor)
                except OSError as error:
                    storage_failed(path, error)
