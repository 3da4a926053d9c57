"""Sets of tasks in BixBench's format: the published ones and those of `nbagent tasks make`."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nbagent.errors import TaskFormatError
from nbagent.tasks import Task, TaskSource
from nbagent_bixbench.capsule import Unpacked, unpack
from nbagent_bixbench.grade import KeyVerifier
from nbagent_bixbench.rows import read_rows
from nbagent_bixbench.types import Row


def open_source(location: str, cache: Path | None = None) -> TaskSource | None:
    """The set at a folder that holds `BixBench.jsonl` (or one `BixBench-*.jsonl`), or at that file; else None."""
    path = Path(location)
    if path.is_file() and path.suffix == ".jsonl" and path.name.startswith("BixBench"):
        return BixBenchSource(path, location, cache)
    if not path.is_dir():
        return None
    if (path / "BixBench.jsonl").is_file():
        return BixBenchSource(path / "BixBench.jsonl", location, cache)
    others = sorted(path.glob("BixBench-*.jsonl"))
    if len(others) > 1:
        raise TaskFormatError(f"{location}: holds {', '.join(x.name for x in others)}; name one of them")
    return BixBenchSource(others[0], location, cache) if others else None


class BixBenchSource:
    """A set in BixBench's format. Opening it reads the rows; asking for its tasks unpacks the capsules, once."""

    def __init__(self, path: Path, location: str, cache: Path | None) -> None:
        self._path = path
        self._location = location
        self._rows = read_rows(path)
        self._tasks: list[Task] | None = None
        if cache is None:
            cache = Path(tempfile.mkdtemp(prefix="nbagent-capsules-"))
            weakref.finalize(self, shutil.rmtree, cache, ignore_errors=True)
        self._cache = cache

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self._path.parent.resolve().name

    @property
    def rows(self) -> Sequence[Row]:
        """The rows as written."""
        return self._rows

    def tasks(self) -> Sequence[Task]:
        """All tasks in the file's order.

        Raises:
            TaskFormatError: a capsule cannot be used; names its zip and the row.
            StorageError: the disk is full.
        """
        if self._tasks is None:
            capsules: dict[str, Unpacked] = {}
            self._tasks = [self._task(row, capsules) for row in self._rows]
        return self._tasks

    def fingerprint(self) -> dict[str, Any]:
        """Kind, location, number of tasks, SHA-256 of the file of questions."""
        digest = hashlib.sha256(self._path.read_bytes()).hexdigest()
        return {"kind": "bixbench", "location": self._location, "number": len(self._rows), "sha256": digest}

    def _task(self, row: Row, capsules: dict[str, Unpacked]) -> Task:
        if row.data_folder not in capsules:
            if Path(row.data_folder).name != row.data_folder:
                raise TaskFormatError(f"{self._path}:{row.line}: data_folder {row.data_folder!r} must be a file name")
            try:
                capsules[row.data_folder] = unpack(self._path.parent / row.data_folder, self._cache)
            except TaskFormatError as error:
                raise TaskFormatError(f"{error} (asked for by {self._path.name}:{row.line})") from error
        capsule = capsules[row.data_folder]
        return Task(
            task_id=row.question_id,
            question=row.question,
            capsule=capsule.data,
            verifier=KeyVerifier(row.ideal, row.eval_mode),
            family=row.categories[0] if row.categories else "",
            seed=int.from_bytes(hashlib.sha256(row.question_id.lower().encode()).digest()[:4]),
            reference=find_reference(capsule.notebooks, row.question_id),
            key=row.ideal,
        )


def find_reference(notebooks: Path, question_id: str) -> Path | None:
    """The notebook named after a question, else the only notebook there is, else None."""
    found = sorted(notebooks.rglob("*.ipynb"))
    # `nb-1-q1` must not find `nb-1-q10_executed.ipynb`.
    named = re.compile(rf"(?<![a-z0-9]){re.escape(question_id.lower())}(?![0-9])")
    own = [path for path in found if named.search(path.name.lower())]
    if own:
        return own[0]
    return found[0] if len(found) == 1 else None
