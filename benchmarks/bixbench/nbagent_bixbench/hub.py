"""Sets on the Hugging Face hub: `OWNER/NAME` or `OWNER/NAME@REVISION`, through huggingface_hub's own cache.

The library shows progress, goes on with a download that was cut off, and keeps what it fetched. On top, each new file
is compared with the digest under which the hub lists it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from nbagent.errors import UsageError
from nbagent_bixbench.rows import ROW_FILES

_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")


def is_hub_name(location: str) -> bool:
    """True for `OWNER/NAME[@REVISION]` where there is no such path, and no folder OWNER that could hold it."""
    match = _NAME.fullmatch(location)
    return match is not None and not Path(location).exists() and not Path(match[1]).parent.exists()


class HubSet:
    """One revision of a set on the hub.

    Raises:
        UsageError: there is no such set or revision, it is gated, or the hub cannot be reached and has it not cached.
    """

    def __init__(self, location: str) -> None:
        match = _NAME.fullmatch(location)
        assert match is not None
        self.name = match[1]
        self._location, self._revision = location, match[2]
        self.folder = self._download(ROW_FILES)
        """Where its files lie; named by the commit."""
        self._revision = self.folder.name
        for pattern in ROW_FILES:
            for path in self.folder.glob(pattern):
                check_digest(path)

    @property
    def pinned(self) -> str:
        """The name with the commit, under which the same files are found again."""
        return f"{self.name}@{self.folder.name}"

    def fetch(self, names: Sequence[str]) -> None:
        """Get files of the set, those that are not there yet. Raises UsageError."""
        missing = [name for name in names if not (self.folder / name).exists()]
        if missing:
            self._download(missing)
            for name in missing:
                check_digest(self.folder / name)

    def _download(self, patterns: Sequence[str]) -> Path:
        import httpx
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            HFValidationError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        try:
            path = snapshot_download(
                self.name, repo_type="dataset", revision=self._revision, allow_patterns=list(patterns)
            )
        except GatedRepoError:
            raise UsageError(
                f"{self.name}: this set is gated: ask for access at https://huggingface.co/datasets/{self.name}, then "
                "log in with `hf auth login`, or set HF_TOKEN"
            ) from None
        except RevisionNotFoundError:
            raise UsageError(f"{self._location}: the hub has the set, but no revision {self._revision!r}") from None
        except RepositoryNotFoundError:
            raise UsageError(
                f"{self._location}: no folder here and no set on the hub; check the name, or log in with "
                "`hf auth login` where it is private"
            ) from None
        except (HFValidationError, HfHubHTTPError, httpx.HTTPError, OSError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS):
                raise
            why = (str(error) or type(error).__name__).strip().splitlines()[0]
            raise UsageError(
                f"{self._location}: no folder here, and the hub does not give it: {why}; try again (what was fetched "
                "stays), or give a folder"
            ) from error
        return Path(path)


def check_digest(path: Path) -> None:
    """Compare a fetched file with the digest that names it in the hub's cache; a file that differs is removed.

    Large files are named by their SHA-256, others as git names a blob: by the SHA-1 of `blob SIZE\\0` and the content.

    Raises:
        UsageError: it differs.
    """
    blob = path.resolve()
    if not blob.is_file() or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob.name):
        return
    digest = hashlib.sha256() if len(blob.name) == 64 else hashlib.sha1(f"blob {blob.stat().st_size}\0".encode())
    with blob.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != blob.name:
        blob.unlink()
        if os.path.lexists(path):
            path.unlink()
        raise UsageError(f"{path.name}: what was fetched has not the digest that the hub names; run it again")
