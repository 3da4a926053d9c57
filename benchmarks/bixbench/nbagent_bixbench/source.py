"""Sets of tasks in BixBench's format: the published ones, in a folder or on the hub, and those of `nbagent tasks make`.

BixBench-Hypothesis keeps its capsules in a bucket: `hf sync hf://buckets/EdisonScientific/bixbench-hypothesis-capsules
FOLDER` fetches them, and the file of rows belongs where each row's `input_data_path` is found from it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbagent.errors import TaskFormatError
from nbagent.tasks import Task, TaskSource
from nbagent_bixbench.capsule import Unpacked, unpack
from nbagent_bixbench.hub import HubSet, is_hub_name
from nbagent_bixbench.modes import ask, default_mode, task_of
from nbagent_bixbench.rows import holds_rows, read_rows, rows_file
from nbagent_bixbench.types import Row

BUCKET = "hf://buckets/EdisonScientific/bixbench-hypothesis-capsules"
"""Where the capsules of BixBench-Hypothesis lie."""


@dataclass(frozen=True, slots=True)
class Located:
    """Where a set was found."""

    rows: Path
    """Its file of rows."""
    location: str
    """Under which the same rows are found again."""
    hub: HubSet | None = None
    """The set on the hub, where it came from there."""

    def open(self, cache: Path | None, rows: Sequence[Row] | None = None) -> BixBenchSource:
        """The set; `rows` in place of those of the file, which then may have problems. Raises TaskFormatError."""
        kept = capsule_cache() if self.hub is not None and cache is None else cache
        return BixBenchSource(self.rows, self.location, kept, self.hub, rows)


def locate(location: str) -> Located | None:
    """The set in a folder or file of rows, or on the hub (`OWNER/NAME[@REVISION]`); None for other locations."""
    path = Path(location)
    if path.is_file():
        named = path.suffix == ".jsonl" and path.name.startswith("BixBench")
        return Located(path, location) if named or holds_rows(path) else None
    if path.is_dir():
        file = rows_file(path)
        return Located(file, location) if file is not None else None
    if not is_hub_name(location):
        return None
    hub = HubSet(location)
    file = rows_file(hub.folder)
    if file is None:
        raise TaskFormatError(f"{location}: the set on the hub holds no rows of a schema that is known")
    return Located(file, hub.pinned, hub)


def open_source(location: str, cache: Path | None = None) -> TaskSource | None:
    """The set that `locate` finds, its rows read; None for other locations."""
    located = locate(location)
    return located.open(cache) if located is not None else None


def capsule_cache() -> Path:
    """Where unpacked capsules are kept for good: below NBAGENT_CACHE, or else below the user's cache folder."""
    named = os.environ.get("NBAGENT_CACHE")
    base = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nbagent"
    return base / "capsules"


class BixBenchSource:
    """A set in BixBench's format. Opening it reads the rows; asking for its tasks unpacks the capsules, once."""

    def __init__(
        self,
        path: Path,
        location: str,
        cache: Path | None,
        hub: HubSet | None = None,
        rows: Sequence[Row] | None = None,
    ) -> None:
        self.path = path
        """The file of rows."""
        self._location, self._hub = location, hub
        self._rows = read_rows(path) if rows is None else rows
        self._tasks: list[Task] | None = None
        if cache is None:
            cache = Path(tempfile.mkdtemp(prefix="nbagent-capsules-"))
            weakref.finalize(self, shutil.rmtree, cache, ignore_errors=True)
        self._cache = cache
        self._capsules: dict[str, Unpacked] = {}

    @property
    def name(self) -> str:
        """Name of the folder, or of the set on the hub."""
        return self._hub.name if self._hub else self.path.parent.resolve().name

    @property
    def rows(self) -> Sequence[Row]:
        """The rows as written."""
        return self._rows

    def tasks(self) -> Sequence[Task]:
        """All tasks in the file's order, as open questions (or hypotheses, where the set asks nothing else).

        Raises:
            TaskFormatError: a capsule cannot be used; names its zip and the row.
            StorageError: the disk is full.
        """
        if self._tasks is None:
            capsules = self.capsules(self._rows)
            self._tasks = [
                task_of(
                    ask(row, default_mode(row)),
                    capsules[row.data_folder].data,
                    find_reference(capsules[row.data_folder].notebooks, row.question_id),
                )
                for row in self._rows
            ]
        return self._tasks

    def capsules(self, rows: Sequence[Row], progress: Callable[[], None] = lambda: None) -> Mapping[str, Unpacked]:
        """The capsules of some rows by `data_folder`, fetched and unpacked where they are not there yet.

        Args:
            rows: of this set.
            progress: is called for each capsule.

        Raises:
            TaskFormatError: a capsule cannot be used; names its zip and the row.
            StorageError: the disk is full.
        """
        first = {row.data_folder: row for row in reversed(rows)}
        if self._hub is not None:
            self._hub.fetch([name for name in first if name not in self._capsules])
        secrets = defaultdict[str, set[str]](set)
        for row in self._rows:
            secrets[row.data_folder].update(row.secrets)
        for name, row in first.items():
            if name not in self._capsules:
                try:
                    self._capsules[name] = unpack(self.capsule_path(row), self._cache, secrets=secrets[name])
                except TaskFormatError as error:
                    raise TaskFormatError(f"{error} (asked for by {self.path.name}:{row.line})") from error
            progress()
        return self._capsules

    def capsule_path(self, row: Row) -> Path:
        """Where a row's capsule lies.

        Raises:
            TaskFormatError: it is not there.
        """
        # A set on the hub may keep its rows in a folder of their own.
        for base in {self.path.parent: 0, (self._hub.folder if self._hub else self.path.parent): 0}:
            for path in (base / row.data_folder, base / f"{row.data_folder}.zip"):
                if path.exists():
                    return path
        path = self.path.parent / row.data_folder
        if row.question:
            raise TaskFormatError(f"{path}: capsule not found; it belongs beside the file of questions")
        raise TaskFormatError(
            f"{path}: capsule not found; the capsules of BixBench-Hypothesis lie in a bucket: "
            f"`hf sync {BUCKET} FOLDER`, put the file of rows there too, and give FOLDER"
        )

    def fingerprint(self) -> dict[str, Any]:
        """Kind, location, number of tasks, SHA-256 of the file of questions."""
        digest = hashlib.sha256(self.path.read_bytes()).hexdigest()
        return {"kind": "bixbench", "location": self._location, "number": len(self._rows), "sha256": digest}


def find_reference(notebooks: Path, question_id: str) -> Path | None:
    """The notebook named after a question, else the only notebook there is, else None."""
    found = sorted(notebooks.rglob("*.ipynb"))
    # `nb-1-q1` must not find `nb-1-q10_executed.ipynb`.
    named = re.compile(rf"(?<![a-z0-9]){re.escape(question_id.lower())}(?![0-9])")
    own = [path for path in found if named.search(path.name.lower())]
    if own:
        return own[0]
    return found[0] if len(found) == 1 else None
