"""Rows of a set: one JSON object per line (or a Parquet file), checked field by field; every problem is kept.

Three schemas are told apart by their fields (see `nbagent_bixbench.schemas`): BixBench 1.5 and Verified-50, the older
one with a row per capsule, and BixBench-Hypothesis.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nbagent.errors import TaskFormatError
from nbagent.validation import Problem
from nbagent_bixbench.schemas import MARKS, rows_of
from nbagent_bixbench.types import Row

ROW_FILES = ("*.jsonl", "*.parquet", "data/*.jsonl", "data/*.parquet")
"""Where a set's file of rows may lie."""


def rows_file(folder: Path) -> Path | None:
    """A folder's file of rows: `BixBench.jsonl`, one `BixBench-*.jsonl`, or the only file that begins like one.

    Raises:
        TaskFormatError: there are several.
    """
    if (folder / "BixBench.jsonl").is_file():
        return folder / "BixBench.jsonl"
    found = sorted(folder.glob("BixBench-*.jsonl"))
    found = found or [path for pattern in ROW_FILES for path in sorted(folder.glob(pattern)) if holds_rows(path)]
    if len(found) > 1:
        raise TaskFormatError(f"{folder}: holds {', '.join(path.name for path in found)}; name one of them")
    return found[0] if found else None


def holds_rows(path: Path) -> bool:
    """Whether a file's first record has the fields of one of the schemas."""
    if path.suffix not in (".jsonl", ".parquet") or not path.is_file():
        return False
    try:
        _, first = next(_records(path), (0, ""))
    except TaskFormatError:
        return False
    return not isinstance(first, str) and any(first.keys() >= fields for fields in MARKS)


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, in its order.

    Raises:
        TaskFormatError: the file cannot be read or a row cannot be used; names file, line and field.
    """
    rows, problems = examine_rows(path)
    if problems:
        more = f" (and {len(problems) - 1} more; `nbagent bixbench check` lists them)" if len(problems) > 1 else ""
        raise TaskFormatError(f"{problems[0]}{more}")
    return rows


def examine_rows(path: Path) -> tuple[list[Row], list[Problem]]:
    """The rows that can be used, and everything that is wrong with the file.

    Raises:
        TaskFormatError: the file cannot be read at all.
    """
    rows: list[Row] = []
    problems: list[Problem] = []
    seen: dict[str, int] = {}
    for line, record in _records(path):
        if isinstance(record, str):
            problems.append(Problem(path, line, record))
            continue
        found, wrong = rows_of(record, line)
        problems += [Problem(path, line, what) for what in wrong]
        for row in found:
            # The published ids differ in case (`Bix-33-q6`), so two that differ only in that are one id.
            first = seen.get(row.question_id.lower())
            if first is not None:
                problems.append(Problem(path, line, f"question_id {row.question_id!r} is taken by line {first}"))
                continue
            seen[row.question_id.lower()] = line
            rows.append(row)
    if not rows and not problems:
        problems.append(Problem(path, 0, "holds no questions"))
    return rows, problems


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Line numbers with objects, or with what is wrong with the line."""
    try:
        if path.suffix == ".parquet":
            from pyarrow import ArrowException, parquet

            try:
                yield from enumerate(parquet.read_table(path).to_pylist(), start=1)
            except ArrowException as error:
                raise TaskFormatError(f"{path}: cannot be read: {error}") from error
            return
        # By bytes: str.splitlines would also split at U+2028 and U+0085, which JSON texts may hold.
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise TaskFormatError(f"{path}: cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode())
            json.dumps(record, ensure_ascii=False).encode()
        except UnicodeDecodeError as error:
            yield number, f"not UTF-8 text: {error}"
        except UnicodeEncodeError:
            yield number, "holds half a surrogate pair, which is no text"
        except RecursionError:
            yield number, "not JSON that can be read: nested too deeply"
        except ValueError as error:
            yield number, f"not JSON: {error}"
        else:
            whole = isinstance(record, dict)
            yield number, record if whole else f"a row must be a JSON object, this is a {type(record).__name__}"
