"""People's own questions: a CSV or JSONL beside folders of data files, as a task source.

Columns (or JSON fields): `question`, `answer` (the key) and `data_folder` (relative to the file), and optionally
`eval_mode` (default: `range_verifier` for a key like `(1.2,1.4)`, else `str_verifier`), `family`, `language`, `id`.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nbagent.errors import TaskFormatError, UsageError
from nbagent.tasks import Task, TaskSource
from nbagent_bixbench.grade import EVAL_MODES, KeyVerifier, key_range
from nbagent_bixbench.leaks import KEPT_OUT

REQUIRED = ("question", "answer", "data_folder")
"""Columns that every file has."""

OPTIONAL = ("eval_mode", "family", "language", "id")
"""Columns that a file may have."""

LANGUAGES = ("python", "r")
"""Languages of kernels."""


def open_source(location: str, cache: Path | None = None) -> TaskSource | None:
    """The set in a `.csv` or `.jsonl` file, or in a folder with `questions.csv` or `questions.jsonl`; else None."""
    path = Path(location)
    if path.is_dir():
        found = [path / name for name in ("questions.csv", "questions.jsonl") if (path / name).is_file()]
        if len(found) > 1:
            raise TaskFormatError(f"{location}: holds questions.csv and questions.jsonl; name one of them")
        return OwnSource(found[0], location) if found else None
    if path.is_file() and path.suffix.lower() in (".csv", ".jsonl"):
        return OwnSource(path, location)
    return None


class OwnSource:
    """A set of people's own questions, checked when it is opened."""

    def __init__(self, path: Path, location: str) -> None:
        self._path = path
        self._location = location
        self._folders: dict[Path, None] = {}
        self._tasks = self._read()

    @property
    def name(self) -> str:
        """Name of the file, or of its folder where the file is called `questions`."""
        return self._path.resolve().parent.name if self._path.stem == "questions" else self._path.stem

    def tasks(self) -> Sequence[Task]:
        """All tasks in the file's order."""
        return self._tasks

    def fingerprint(self) -> dict[str, Any]:
        """Kind, location, number of tasks, SHA-256 of the questions and of the data files' names and sizes."""
        digest = hashlib.sha256(self._path.read_bytes())
        for folder in self._folders:
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                digest.update(f"{file.relative_to(folder).as_posix()}\0{file.stat().st_size}\n".encode())
        return {"kind": "own", "location": self._location, "number": len(self._tasks), "sha256": digest.hexdigest()}

    def _read(self) -> list[Task]:
        tasks: list[Task] = []
        seen: dict[str, int] = {}
        try:
            for line, record in _records(self._path):
                task = self._task(record, line, len(tasks) + 1)
                first = seen.setdefault(task.task_id.lower(), line)
                if first != line:
                    raise TaskFormatError(f"{self._path}:{line}: id {task.task_id!r} is taken by line {first}")
                tasks.append(task)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise TaskFormatError(f"{self._path}: cannot be read: {error}") from error
        if not tasks:
            raise TaskFormatError(f"{self._path}: holds no questions")
        return tasks

    def _task(self, record: dict[str, str], line: int, number: int) -> Task:
        where = f"{self._path}:{line}"
        for name in record:
            if name not in REQUIRED + OPTIONAL:
                near = difflib.get_close_matches(name, REQUIRED + OPTIONAL, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(REQUIRED + OPTIONAL)}"
                raise TaskFormatError(f"{where}: unknown column {name!r}; {hint}")
        for name in REQUIRED:
            if not record.get(name, "").strip():
                raise TaskFormatError(f"{where}: column {name!r} is missing or empty")
        key = record["answer"].strip()
        folder = self._folder(record["data_folder"].strip(), where)
        self._folders[folder] = None
        mode = record.get("eval_mode", "").strip() or ("range_verifier" if _is_range(key) else "str_verifier")
        if mode not in EVAL_MODES:
            raise TaskFormatError(f"{where}: eval_mode {mode!r} is unknown; one of {', '.join(EVAL_MODES)}")
        if mode == "range_verifier" and not _is_range(key):
            raise TaskFormatError(f"{where}: answer {key!r} is not a range such as (1.2,1.4), but eval_mode is {mode}")
        language = record.get("language", "").strip().lower() or "python"
        if language not in LANGUAGES:
            raise TaskFormatError(f"{where}: language {language!r} is unknown; one of {', '.join(LANGUAGES)}")
        task_id = record.get("id", "").strip() or f"{self._path.stem}-{number}"
        return Task(
            task_id=task_id,
            question=record["question"].strip(),
            capsule=folder,
            verifier=KeyVerifier(key, mode),
            language=language,
            family=record.get("family", "").strip(),
            seed=int.from_bytes(hashlib.sha256(task_id.lower().encode()).digest()[:4]),
            key=key,
        )

    def _folder(self, name: str, where: str) -> Path:
        folder = (self._path.parent / name).resolve()
        if folder in self._folders:
            return folder
        if not folder.is_dir():
            raise TaskFormatError(f"{where}: data_folder {name!r} is not a folder beside {self._path.name}")
        if folder in self._path.resolve().parents:
            raise TaskFormatError(
                f"{where}: data_folder {name!r} holds the questions with their answers; use a subfolder"
            )
        files = [path for path in folder.rglob("*") if path.is_file()]
        if not files:
            raise TaskFormatError(f"{where}: data_folder {name!r} holds no files")
        for file in files:
            if file.name.lower().endswith(KEPT_OUT):
                raise TaskFormatError(
                    f"{where}: data_folder {name!r} holds {file.name}, which may hold the answer; move it elsewhere"
                )
        return folder


def _records(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    if path.suffix.lower() == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            for name in REQUIRED:
                if name not in (reader.fieldnames or ()):
                    raise TaskFormatError(f"{path}:1: column {name!r} is missing; it needs {', '.join(REQUIRED)}")
            for record in reader:
                # DictReader files surplus cells under None, and leaves None in cells that lack.
                if None in record:
                    raise TaskFormatError(f"{path}:{reader.line_num}: more cells than columns; quote cells with commas")
                yield reader.line_num, {name: value or "" for name, value in record.items()}
        return
    for line, text in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except ValueError as error:
            raise TaskFormatError(f"{path}:{line}: not JSON: {error}") from error
        if not isinstance(record, dict):
            raise TaskFormatError(f"{path}:{line}: a row must be a JSON object, this is a {type(record).__name__}")
        for name, value in record.items():
            if isinstance(value, bool) or not isinstance(value, str | int | float | None):
                raise TaskFormatError(f"{path}:{line}: field {name!r} must be text or a number")
        yield line, {name: "" if value is None else str(value) for name, value in record.items()}


def _is_range(key: str) -> bool:
    try:
        key_range(key)
    except UsageError:
        return False
    return True
